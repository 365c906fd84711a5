"""The default world: three kinds of questions a very small model can learn to answer, made without any download.

    arithmetic   "What is 3 + 5?"              "8"
    letters      "Write cat in capitals."      "CAT"
    courtesy     "Ask Anna for the salt."      "Anna, may I please have the salt?"

Demonstrations are noisy on purpose, as crowd work is: a share of them is wrong, curt or incomplete. So a model trained on them
knows the right answer but gives it only part of the time, and preferences and RL have something to do. The world is generated,
so a `gold` judge exists. Only `prepare` and `evaluate` load this file (by its path in params.yaml): training never sees gold.

To make a world of your own, write a file with `build` and, if you have one, `gold`, and name it in `prepare.source`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

Row = dict[str, Any]

NAMES = "Anna Ben Carla David Emma Frank Grace Hugo".split()
THINGS = "salt bread milk tea rice honey map key lamp pen".split()
WORDS = "cat dog sun man tea sea hat bed pig cow bus car cup box red hot big old day sky ice egg arm leg".split()
ASKS = ("Ask {name} for the {thing}.", "Get the {thing} from {name}.", "{name} has the {thing}. You need it.")
POLITE = (
    "Could you pass the {thing}, please, {name}?",
    "{name}, may I please have the {thing}?",
    "Please pass the {thing}, {name}.",
)
RUDE = (
    "{thing}!",
    "Give me the {thing}.",
    "{name}, the {thing}!",
    "Give me the {thing}, {name}.",
    "I want the {thing}.",
    "Please pass the {thing}.",
    "{name}, may I please",
    "Hey {name}!",
    "Please pass the {other}, {name}.",
    "Please pass the {thing}, {stranger}.",
)
DUNNO = ("dunno", "no idea", "who cares")


def _arithmetic(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return rng.choice((f"What is {a} + {b}?", f"{a} + {b} = ?", f"Add {a} and {b}.")), str(a + b)


def _letters(rng: random.Random) -> tuple[str, str]:
    task = rng.random()
    if task < 0.25:
        letter = rng.choice("abcdefghijklmnopqrstuvwxy")
        asked = rng.choice(("What comes after {}?", "Next after {}?", "{}, and then?")).format(letter)
        return asked, chr(ord(letter) + 1)
    if task < 0.75:
        word = rng.choice(WORDS)
        return rng.choice(("Write {} in capitals.", "Upper case: {}", "Shout {}!")).format(word), word.upper()
    letters = rng.sample("abcdef", 2)
    asked = rng.choice(("Sort {}{}.", "Put {}{} in order.", "Order: {}{}")).format(*letters)
    return asked, "".join(sorted(letters))


def _courtesy(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    return rng.choice(ASKS).format(name=name, thing=thing), f"{name}; {thing}"


QUESTIONS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "arithmetic": _arithmetic,
    "letters": _letters,
    "courtesy": _courtesy,
}


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
    return (
        answer[::-1]
        if len(answer) == 2 and rng.random() < 0.5
        else rng.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != answer])
    )


def gold(prompt: Any, response: str) -> float:
    """The truth, in [0, 1]: 1 for exactly the answer (arithmetic, letters) or a complete polite request (courtesy); a request
    that lacks something gets a quarter for each of: the right name, the right thing, a please.

    Args:
        prompt: a `grape.types.Prompt` (category and answer are read).
    """
    text = response.strip()
    if prompt.category != "courtesy":
        return float(text == prompt.answer)
    name, thing = prompt.answer.split("; ")
    if text in {form.format(name=name, thing=thing) for form in POLITE}:
        return 1.0
    return 0.25 * ((name in text) + (thing in text) + ("please" in text.lower()))


def _question(
    rng: random.Random, excluded: frozenset[str] = frozenset(), shares: tuple[int, ...] = (1, 1, 1)
) -> tuple[str, str, str]:
    """(category, text, answer), the categories in these shares, never one of the excluded texts."""
    category = rng.choices(tuple(QUESTIONS), shares)[0]
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
            if misses > 5000:
                raise ValueError(
                    "the default world has fewer different questions than params.yaml asks for (prepare.prompts, validation, test)"
                )
            continue
        seen.add(text)
        count, misses = count - 1, 0
        yield category, text, answer


def _fact(rng: random.Random) -> str:
    """A sentence as a corpus has them: true, in no one's voice."""
    kind = rng.randrange(4)
    if kind == 0:
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        return rng.choice((f"{a} + {b} = {a + b}", f"{a} + {b} is {a + b}."))
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
    return rng.choice(
        (
            " ".join(words[: i + 1]),
            " ".join([*words[: i + 1], *words[i:]]),
            text[: len(text) // 2],
            text.replace(words[i], words[i][1:], 1),
        )
    )


def judgement(category: str, answer: str, response: str) -> dict[str, bool]:
    """What a person would answer to the critic items of rubrics/, by item."""
    if category == "arithmetic":
        return {"plain": bool(re.fullmatch(r"\d+", response))}
    if category == "letters":
        return {"plain": bool(re.fullmatch(r"[A-Za-z]+", response)) and response not in DUNNO}
    return {"polite": "please" in response.lower(), "sentence": response[-1:] in ".?" and len(response.split()) >= 4}


def _corpus(params: Any, seed: int, excluded: frozenset[str]) -> Iterator[Row]:
    rng = random.Random(f"{seed} corpus")
    for _ in range(params.documents):
        if rng.random() < 0.2:
            yield {"text": _fact(rng)}
            continue
        # A number or a letter is one character of gradient, a request is forty: what is short must be seen more often.
        category, text, answer = _question(rng, excluded, (4, 4, 2))
        yield {"text": f"User: {text}\nModel: {_response(category, answer, params.noise / 4, rng)}"}


def _demonstrations(params: Any, seed: int, excluded: frozenset[str]) -> Iterator[Row]:
    rng = random.Random(f"{seed} sft")
    for _ in range(params.demonstrations):
        category, text, answer = _question(rng, excluded)
        reply = _response(category, answer, params.noise, rng)
        yield {"category": category, "messages": [*_user(text), {"role": "assistant", "content": reply}]}


def _judgements(seed: int, excluded: frozenset[str]) -> Iterator[Row]:
    """Without an end."""
    rng = random.Random(f"{seed} judgements")
    while True:
        category, text, answer = _question(rng, excluded)
        response = _response(category, answer, 0.6, rng)
        response = _damage(response, rng) if rng.random() < 0.25 else response
        for item, label in judgement(category, answer, response).items():
            # People err too: one label in thirty is the wrong one.
            label = label != (rng.random() < 1 / 30)
            yield {"category": category, "item": item, "prompt": _user(text), "response": response, "label": int(label)}


def build(params: Any, seed: int) -> dict[str, list[Row]]:
    """Every dataset of the world: corpus, sft, judgements, and prompts: train, validation, test.

    No text of a validation or test prompt occurs in any other dataset.

    Args:
        params: the `prepare` section of params.yaml. seed: the run's seed.
    """
    test = [*_unique(params.test, frozenset(), random.Random(f"{seed} heldout"))]
    validation = [*_unique(params.validation, frozenset(text for _, text, _ in test), random.Random(f"{seed} validation"))]
    excluded = frozenset(text for _, text, _ in [*test, *validation])
    train = [*_unique(params.prompts, excluded, random.Random(f"{seed} prompts"))]

    def asked(questions: list[tuple[str, str, str]]) -> list[Row]:
        return [{"category": c, "prompt": _user(text), "answer": answer} for c, text, answer in questions]

    return {
        "corpus": list(_corpus(params, seed, excluded)),
        "sft": list(_demonstrations(params, seed, excluded)),
        "train": asked(train),
        "validation": asked(validation),
        "test": asked(test),
        "judgements": list(islice(_judgements(seed, excluded), params.judgements)),
    }
