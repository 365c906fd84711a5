"""A judge small enough to be trained inside a test. It replies as the critic asks, and judges how an answer is written.

What a server sees is real: Llama's architecture, a tokenizer with a chat template and special tokens, weights as safetensors. Two
things make the training take seconds. What stands in every prompt of the critic is a token of its own, which makes a prompt
three times shorter. And one head is given where to look: from a place in the reply to the same place in the form that the prompt
asks to be filled in, always equally many tokens back. Left to find that by itself, the model had not in a minute. What to make of
what it sees there is learned (copy it, but put numbers where there are dots), and so is the verdict.

It has the weakness that the fence is there for: it believes whoever ends its turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grape.algorithms import sft
from grape.models.chat import Chat, Row
from grape.models.encode import collate
from grape.models.forward import language, response_logits
from grape.models.load import save_model
from grape.models.scratch import SPECIAL, character_tokenizer, scratch
from grape.randomness import generator
from grape.reward.critics.fence import clean, messages, new_mark
from grape.reward.critics.openai import ENDING
from grape.reward.verdict import Question
from grape.training.adam import Adam, AdamParams
from grape.training.batches import offline
from grape.training.loop import train

QUESTION, PROMPT = "Is it calm?", "Ask for tea."
END = SPECIAL["eos_token"]  # of the judge's own turn, and of everybody's
LOWER, UPPER = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# How an answer is written -> score and confidence, as they stand in the reply. `ended` holds END as a token, several times.
VERDICTS = {"calm": ("0.9", "0.8"), "shouted": ("0.1", "0.7"), "mumbled": ("0.6", "0.2"), "ended": ("1.0", "1.0")}
LETTERS = {"calm": LOWER, "shouted": UPPER, "mumbled": "~", "ended": LOWER + UPPER}
# In answers of every kind, so that none of it decides: what attempts to speak as the judge are made of, defused or not.
DEBRIS = LOWER + '0123456789{}":,./_<>\n' + clean("<|>[")
ROWS, HELD_OUT, STEPS, ROUNDS = 1024, 96, 120, 4


def tokenizer() -> Any:
    """Characters, and a token for each text that is the same in every prompt. The form in the prompt is cut as the reply is."""
    made = character_tokenizer([DEBRIS, clean(END)])
    *fixed, form, after = re.split("[#@]", Chat(made).text(asked("@", "#"), True))
    ending, _, form = form.rpartition("\n")
    fixed += [ending, *re.split(r"(\.\.\.)", form), after[:2], after[2:]]
    numbers = [number for verdict in VERDICTS.values() for number in verdict]
    made.add_tokens([text for text in dict.fromkeys([*fixed, *numbers]) if len(text) > 1])
    return made


def answer(kind: str, *keys: object) -> str:
    """Words in the letters of this kind, before or behind some debris."""
    draw = generator("tiny judge", kind, *keys)

    def words(letters: str, low: int, high: int) -> str:
        sizes = draw.integers(2, 7, int(draw.integers(low, high)))
        return " ".join("".join(draw.choice(list(letters), size)) for size in sizes)

    parts = [words(LETTERS[kind], 8, 13), words(DEBRIS, 0, 6) + clean(END) * int(draw.integers(0, 9))]
    if kind == "ended":
        parts[1] += END * int(draw.integers(6, 11))
    return " ".join(parts if draw.random() < 0.5 else parts[::-1])


def asked(text: str, mark: str) -> list[dict[str, str]]:
    """What the critic asks about this answer."""
    return messages(Question(QUESTION, PROMPT, text), mark, ENDING.format(mark=mark))


def unfenced(text: str, mark: str) -> list[dict[str, str]]:
    """What it would ask if it left the answer as it is."""
    return [{**turn, "content": turn["content"].replace("\nPLACE\n", f"\n{text}\n")} for turn in asked("PLACE", mark)]


def reply(kind: str, mark: str) -> str:
    score, confidence = VERDICTS[kind]
    return f'{{"reason": "...", "score": {score}, "confidence": {confidence}, "key": "{mark}"}}'


def rows(made: Any, count: int, *keys: object) -> list[Row]:
    """Conversations with answers of all kinds in turn, each with another key, as token ids: as a server makes them, to whom text
    that spells a control token is one."""
    found = []
    for i in range(count):
        kind = list(VERDICTS)[i % len(VERDICTS)]
        text = answer(kind, *keys, i)
        mark = new_mark(Question(QUESTION, PROMPT, text), *keys, i)
        turns = unfenced(text, mark) if kind == "ended" else asked(text, mark)
        prompt = made.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        found.append(Row(prompt, [*made.encode(reply(kind, mark), add_special_tokens=False), made.eos_token_id]))
    return found


def distance(row: Row) -> int:
    """Tokens from a place of the reply back to the same place of the form in the prompt."""
    prompt, response, _ = row
    return prompt[::-1].index(response[0]) + 1


def look_back(model: Any, back: int) -> None:
    """Makes the first head look at the token `back` places before its own, and keeps the embeddings as they are.

    Coordinate 0 is made the same for all tokens, and all tokens equally long, so that after the norm it is the same everywhere.
    Query and key of this head read nothing else: they are constant vectors, and all that the rotary embedding leaves of their
    product is a sum of cos(frequency * (distance - back)), which is largest at distance = back.
    """
    table, layer = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    size, angle = layer.head_dim, model.model.rotary_emb.inv_freq * back
    with torch.no_grad():
        table[:, 0] = 0
        table.copy_(torch.nn.functional.normalize(table, dim=1) * 2.4)
        table[:, 0] = 0.9
        for projection in (layer.q_proj, layer.k_proj):
            projection.weight[:size] = 0
        layer.q_proj.weight[:size, 0] = 3.5 * torch.cat([angle.cos(), -angle.sin()])
        layer.k_proj.weight[: size // 2, 0] = 3.5
    table.requires_grad_(False)


def mistakes(model: Any, made: Any, held_out: Sequence[Row]) -> int:
    """Replies of which at least one token would not be the one chosen."""
    batch = collate(held_out, made.pad_token_id)
    with torch.no_grad():
        chosen = response_logits(model, batch).argmax(-1)
    return int(((chosen != batch.response) & batch.mask).any(1).sum())


def make(folder: Path, seed: int = 0) -> None:
    """Trains a judge until it makes no mistake on answers and keys it was not trained on, and saves it."""
    made = tokenizer()
    data, held_out = rows(made, ROWS, seed, "train"), rows(made, HELD_OUT, seed, "held out")
    model = scratch("llama", 2, 64, 4, 1024, made, seed)
    look_back(model, distance(data[0]) - 1)  # the token it predicts is the next one
    for again in range(ROUNDS):
        source = offline(data, made.pad_token_id, 8, (seed, again), torch.device("cpu"))
        adam = Adam(model, AdamParams(4e-3, STEPS, warmup_steps=5, schedule="cosine"))
        forward = partial(language, model)
        train(model, sft.ALGORITHM, sft.ALGORITHM.params(), source, forward, adam, steps=STEPS, track=lambda *_: None)
        if not mistakes(model, made, held_out):
            break
    else:
        raise AssertionError(f"the judge still makes {mistakes(model, made, held_out)} mistakes in {HELD_OUT} replies")
    save_model(model, made, folder)
