"""Proof that an exported folder is the model it was made from: greedy answers to validation prompts, token by token.

On one side grape's own sampling, one prompt at a time, so that no padding takes part in any sum; on the other plain transformers,
which loads the folder in a process of its own (plain.py). In float32 they are the policy's answers. In another dtype they are
those of the rounded weights, and how many of the policy's they equal is counted apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from grape.errors import GrapeError
from grape.export import plain
from grape.models.chat import Chat
from grape.models.load import device
from grape.models.protocols import LanguageModel
from grape.models.template import MARK
from grape.net import scrub
from grape.sampling import sample
from grape.types import Prompt, Response

USUAL = 8  # answers, where nobody says how many


@dataclass(frozen=True)
class Replay:
    """How many of `asked` answers are equal: plain transformers' to grape's with the same weights; grape's with these weights to
    the policy's in float32. `difference`: the first one, in words."""

    asked: int
    equal: int
    equal_to_policy: int
    dtype: str
    difference: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """The result for the card and the screen."""
        said = f"{self.equal} of {self.asked} greedy answers to validation prompts equal those of grape, token by token"
        if self.dtype != "float32":
            said += f" (with the weights in {self.dtype}; {self.equal_to_policy} equal those of the float32 weights)"
        return f"{said}. First difference: {self.difference}" if self.difference else said


def usable(chat: Chat, prompts: Sequence[Prompt], room: int, wanted: int | None) -> list[Prompt]:
    """The first prompts of at most `room` tokens in which no control token stands as text: transformers alone would obey it.

    Args:
        wanted: how many; None: USUAL, or as many as there are.

    Raises:
        GrapeError: there are fewer, or none.
    """
    count = USUAL if wanted is None else wanted
    found: list[Prompt] = []
    for prompt in prompts:
        if len(found) == count:
            break
        if len(chat.prompt(prompt.messages, prompt.id)) <= room and MARK not in chat.text(prompt.messages, True, prompt.id):
            found.append(prompt)
    if len(found) < count and (wanted is not None or not found):
        what = f"{count} answers are to be replayed, and {len(found)} validation prompts can be"
        raise GrapeError(what, where="--replay", mend=f"use --replay {len(found)}" + " (no replay)" * (not found))
    return found


def greedy(model: LanguageModel, chat: Chat, prompts: Sequence[Prompt], max_new_tokens: int, positions: int) -> list[Response]:
    """The most likely answer to each prompt."""
    how = {"max_new_tokens": max_new_tokens, "positions": positions, "keys": ("replay",)}
    return sample(model, chat, prompts, 1, temperature=0.0, rows_at_once=1, **how)  # type: ignore[arg-type]


def plainly(folder: Path, questions: Sequence[Any], limits: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of plain transformers, in a process of its own.

    Raises:
        GrapeError: it cannot load the folder, or cannot answer.
    """
    words = [sys.executable, "-P", plain.__file__, str(folder), str(device()), str(torch.get_num_threads())]
    given = json.dumps({"questions": list(questions), "limits": list(limits)})
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(words, input=given, capture_output=True, text=True, env=env, cwd=folder)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise GrapeError(f"plain transformers cannot use what was written: {scrub(last)}", where="--replay", mend="see the message")
    return [(list(prompt), list(answer)) for prompt, answer in json.loads(done.stdout.strip().splitlines()[-1])]


def compare(
    chat: Chat, dtype: str, policy: Sequence[Response], own: Sequence[Response], found: Sequence[tuple[list[int], list[int]]]
) -> Replay:
    """
    Args:
        dtype: of the weights as they were written. policy: answers in float32. own: of these weights. found: those of `plainly`.
    """
    equal, difference = 0, ""
    for response, (prompt, answer) in zip(own, found, strict=True):
        asked = chat.prompt(response.prompt.messages, response.prompt.id)
        if prompt == asked and answer == list(response.ids):
            equal += 1
        elif not difference and prompt != asked:
            difference = f"the prompt {response.prompt.id} has other tokens: {_apart(chat, asked, prompt)}"
        elif not difference:
            difference = f"prompt {response.prompt.id}: {_apart(chat, list(response.ids), answer)}"
    same = sum(a.ids == b.ids for a, b in zip(policy, own, strict=True))
    return Replay(len(own), equal, same, dtype, difference)


def _apart(chat: Chat, ours: list[int], theirs: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    mine, other = (chat.tokenizer.decode(ids[at : at + 8]) if at < len(ids) else "(its end)" for ids in (ours, theirs))
    return f"at token {at + 1} grape has {mine!r}, transformers {other!r}"
