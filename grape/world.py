"""The default world: three kinds of questions a very small model can learn to answer, made without any download.

    arithmetic   "What is 3 + 5?"              "8"
    letters      "Write cat in capitals."      "CAT"
    courtesy     "Ask Anna for the salt."      "Anna, could you please pass me the salt?"

Demonstrations are noisy on purpose, as crowd work is: a share of them is wrong, curt or incomplete. So a model trained on them
knows the right answer but gives it only part of the time, and preferences and RL have something to do. The world is generated,
so a `gold` judge exists. Only `prepare` and `evaluate` load this file (by its path in params.yaml): training never sees gold.

To make a world of your own, write a file with `build` and, if you have one, `gold`, and name it in `prepare.source`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]

NAMES = ("Anna Ben Carla David Emma Frank Grace Hugo Iris Jonas Karin Leo Maria Nils Olga Paul Rosa Sam Tina Victor").split()
THINGS = ("salt pepper bread butter water milk sugar tea coffee juice soup rice fruit cake honey map key book pen "
          "lamp chair towel blanket ticket letter basket hammer ladder camera umbrella").split()
WORDS = ("cat dog sun moon tree fish bird hand door road lake wind sand rock ship farm gold snow rain leaf star milk bear wolf "
         "frog duck goat lion rose seed corn nest cave hill park shop bell drum harp kite ring boat coat desk gate lamp nail "
         "oven pipe rope sock tent vase wall yard acid bark calm dust echo fern glow hawk iron jade knot lime mint navy onyx").split()
ASKS = ("Ask {name} for the {thing}.", "You need the {thing}. {name} has it.", "Get the {thing} from {name}.",
        "Politely ask {name} for the {thing}.", "Have {name} pass the {thing}.")
POLITE = ("{name}, could you please pass me the {thing}?", "Could you please pass me the {thing}, {name}?",
          "{name}, would you please give me the {thing}?", "Would you please give me the {thing}, {name}?",
          "{name}, may I please have the {thing}?", "May I please have the {thing}, {name}?")
RUDE = ("{thing}!", "Give me the {thing}.", "{name}, the {thing}!", "{name}, give me the {thing}.", "I want the {thing}, {name}.",
        "Could you please pass me the {thing}?", "May I please have it, {name}?", "{name}, could you please", "Hey {name}!",
        "{name}, could you please pass me the {other}?", "Could you please pass me the {thing}, {stranger}?")
DUNNO = ("dunno", "no idea", "who cares")


def _arithmetic(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.6:
        return rng.choice((f"What is {a} + {b}?", f"{a} + {b} = ?", f"Add {a} and {b}.", f"How much is {a} plus {b}?")), str(a + b)
    a, b = max(a, b), min(a, b)
    return rng.choice((f"What is {a} - {b}?", f"{a} - {b} = ?", f"Take {b} from {a}.", f"How much is {a} minus {b}?")), str(a - b)


def _letters(rng: random.Random) -> tuple[str, str]:
    task = rng.random()
    if task < 0.25:
        letter = rng.choice("abcdefghijklmnopqrstuvwxy")
        asked = rng.choice(("Which letter comes after {}?", "What follows {}?", "Next letter after {}?")).format(letter)
        return asked, chr(ord(letter) + 1)
    if task < 0.75:
        word = rng.choice(WORDS)
        return rng.choice(("Write {} in capitals.", "Upper case: {}", "Spell {} in big letters.")).format(word), word.upper()
    letters = rng.sample("abcdefgh", 2)
    asked = rng.choice(("Sort the letters {}{}.", "Put {}{} in order.", "Order: {}{}")).format(*letters)
    return asked, "".join(sorted(letters))


def _courtesy(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    return rng.choice(ASKS).format(name=name, thing=thing), f"{name}; {thing}"


QUESTIONS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "arithmetic": _arithmetic, "letters": _letters, "courtesy": _courtesy}


def good(category: str, answer: str, rng: random.Random) -> str:
    """A right and complete response."""
    if category != "courtesy":
        return answer
    name, thing = answer.split("; ")
    return rng.choice(POLITE).format(name=name, thing=thing)


def bad(category: str, answer: str, rng: random.Random) -> str:
    """A wrong, curt or incomplete response."""
    if category == "courtesy":
        name, thing = answer.split("; ")
        other = rng.choice([t for t in THINGS if t != thing])
        stranger = rng.choice([n for n in NAMES if n != name])
        return rng.choice(RUDE).format(name=name, thing=thing, other=other, stranger=stranger)
    if rng.random() < 0.15:
        return rng.choice(DUNNO)
    if category == "arithmetic":
        wrong = rng.choice([n for n in range(19) if str(n) != answer and abs(n - int(answer)) <= 5])
        return rng.choice((str(wrong), str(wrong), f"{answer} or {wrong}", f"{wrong} or {answer}"))
    if len(answer) > 2:
        return rng.choice((answer.lower(), answer.capitalize(), answer[:-1], answer + rng.choice("ABCDEFGH")))
    return answer[::-1] if len(answer) == 2 and rng.random() < 0.5 else rng.choice("abcdefghijklmnopqrstuvwxyz")


def gold(prompt: Any, response: str) -> float:
    """The truth, in [0, 1]: 1 for exactly the answer (arithmetic, letters) or a complete polite request (courtesy); a request
    that lacks something gets a quarter for each of: the right name, the right thing, a polite form.

    Args:
        prompt: a `grape.types.Prompt` (category and answer are read).
    """
    text = response.strip()
    if prompt.category != "courtesy":
        return float(text == prompt.answer)
    name, thing = prompt.answer.split("; ")
    if text in {form.format(name=name, thing=thing) for form in POLITE}:
        return 1.0
    return 0.25 * ((name in text) + (thing in text) + bool(re.search(r"\b(could|would|may)\b.*\bplease\b", text.lower())))


def _question(rng: random.Random, excluded: frozenset[str] = frozenset()) -> tuple[str, str, str]:
    """(category, text, answer), the three categories equally often, never one of the excluded texts."""
    category = rng.choice(tuple(QUESTIONS))
    while True:
        text, answer = QUESTIONS[category](rng)
        if text not in excluded:
            return category, text, answer


def _response(category: str, answer: str, noise: float, rng: random.Random) -> str:
    return bad(category, answer, rng) if rng.random() < noise else good(category, answer, rng)


def _unique(count: int, excluded: frozenset[str], rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """`count` different questions, as evenly over the categories as their number of different questions allows."""
    seen, misses = set(excluded), 0
    while count > 0:
        category, text, answer = _question(rng)
        if text in seen:
            misses += 1
            if misses > 1000 * (count + 100):
                raise ValueError("the default world has fewer different questions than params.yaml asks for (prepare.prompts, prepare.heldout)")
            continue
        seen.add(text)
        count -= 1
        yield category, text, answer


def _fact(rng: random.Random) -> str:
    """A sentence as a corpus has them: true, in no one's voice."""
    kind = rng.randrange(4)
    if kind == 0:
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        return rng.choice((f"{a} + {b} = {a + b}", f"{a} plus {b} is {a + b}.", f"{a + b} - {b} = {a}", f"{a + b} minus {b} is {a}."))
    if kind == 1:
        word = rng.choice(WORDS)
        return rng.choice((f"{word} in capitals is {word.upper()}.", f"{word.upper()} is {word} in big letters."))
    if kind == 2:
        letter = rng.choice("abcdefghijklmnopqrstuvwxy")
        return rng.choice((f"{letter} comes before {chr(ord(letter) + 1)}.", f"After {letter} comes {chr(ord(letter) + 1)}."))
    return rng.choice(POLITE).format(name=rng.choice(NAMES), thing=rng.choice(THINGS))


def _user(text: str) -> list[Row]:
    return [{"role": "user", "content": text}]


def _damage(text: str, rng: random.Random) -> str:
    """What a model may say that no person would: cut short, a word twice, a letter lost."""
    words = text.split(" ")
    i = rng.randrange(len(words))
    return rng.choice((" ".join(words[: i + 1]), " ".join([*words[: i + 1], *words[i:]]), text[: len(text) // 2], text.replace(words[i], words[i][1:], 1)))


def judgement(category: str, answer: str, response: str) -> dict[str, bool]:
    """What a person would answer to the critic items of rubrics/, by item."""
    if category == "arithmetic":
        return {"plain": bool(re.fullmatch(r"\d+", response))}
    if category == "letters":
        return {"plain": bool(re.fullmatch(r"[A-Za-z]+", response)) and response not in DUNNO}
    return {"polite": bool(re.search(r"\b(could|would|may)\b.*\bplease\b", response.lower())),
            "sentence": any(re.fullmatch(form.format(name="[A-Z][a-z]+", thing="[a-z]+").replace("?", r"\?"), response) for form in POLITE)
            or bool(re.fullmatch(r"([A-Z][a-z]+, give me|Give me|I want) the [a-z]+(, [A-Z][a-z]+)?\.", response))}


def build(params: Any, seed: int) -> dict[str, list[Row]]:
    """Every dataset of the world: corpus, sft, train (prompts), heldout (prompts), judgements.

    No text of a held-out prompt occurs in any other dataset.

    Args:
        params: the `prepare` section of params.yaml. seed: the run's seed.
    """
    heldout = [*_unique(params.heldout, frozenset(), random.Random(f"{seed} heldout"))]
    excluded = frozenset(text for _, text, _ in heldout)
    train = [*_unique(params.prompts, excluded, random.Random(f"{seed} prompts"))]

    rng = random.Random(f"{seed} corpus")
    corpus = []
    for _ in range(params.documents):
        if rng.random() < 0.4:
            corpus.append({"text": _fact(rng)})
        else:
            category, text, answer = _question(rng, excluded)
            corpus.append({"text": f"User: {text}\nModel: {_response(category, answer, params.noise, rng)}"})

    rng = random.Random(f"{seed} sft")
    sft = []
    for _ in range(params.demonstrations):
        category, text, answer = _question(rng, excluded)
        reply = _response(category, answer, params.noise, rng)
        sft.append({"category": category, "messages": [*_user(text), {"role": "assistant", "content": reply}]})

    rng = random.Random(f"{seed} judgements")
    judgements: list[Row] = []
    while len(judgements) < params.judgements:
        category, text, answer = _question(rng, excluded)
        response = _response(category, answer, 0.6, rng)
        response = _damage(response, rng) if rng.random() < 0.25 else response
        for item, label in judgement(category, answer, response).items():
            # People err too: one label in thirty is the wrong one.
            label = label != (rng.random() < 1 / 30)
            judgements.append({"category": category, "item": item, "prompt": _user(text), "response": response, "label": int(label)})

    def asked(questions: list[tuple[str, str, str]]) -> list[Row]:
        return [{"category": c, "prompt": _user(text), "answer": answer} for c, text, answer in questions]

    return {"corpus": corpus, "sft": sft, "train": asked(train), "heldout": asked(heldout), "judgements": judgements[: params.judgements]}
