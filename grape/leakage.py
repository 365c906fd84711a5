"""Held-out questions must not be trained on: whether a conversation holds one, wherever within it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from grape.artifacts import Demonstration, Preference, PromptRow, Turn

Said = tuple[str, ...]  # who spoke, and what was said
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))


def spoken(turn: Turn) -> Said:
    """A turn as it is compared: letters however they are composed, without invisible characters, white space folded; with its tool
    calls."""
    text = " ".join(unicodedata.normalize("NFC", turn.content).translate(_INVISIBLE).split())
    return (turn.role, text, *([json.dumps(turn.tool_calls, sort_keys=True)] if turn.tool_calls else []))


def said(turns: Iterable[Turn], system: bool = False) -> tuple[Said, ...]:
    """A conversation as what was said in it. System turns are instructions, no part of a question, unless `system`."""
    return tuple(spoken(turn) for turn in turns if system or turn.role != "system")


def holds(heldout: Iterable[PromptRow], known: Iterable[PromptRow] = ()) -> Callable[[Iterable[Turn]], bool]:
    """Whether a conversation holds a held-out question: all that was said in a held-out prompt, turn by turn, anywhere within it.

    Args:
        known: more prompts. Where the same words have two right answers among all of these ("Answer.", behind system turns that ask
            different things), the system turn is part of the question.
    """
    rows = list(heldout)
    answers: dict[tuple[Said, ...], set[str]] = {said(row.prompt): set() for row in rows}
    for row in chain(rows, known):
        if row.answer is not None and (words := said(row.prompt)) in answers:
            answers[words].add(row.answer)
    whole = [len(answers[said(row.prompt)]) > 1 and row.prompt[0].role == "system" for row in rows]
    asked = {said(row.prompt, full) for row, full in zip(rows, whole, strict=True)}
    lengths = {len(turns) for turns in asked}

    def found(turns: Iterable[Turn]) -> bool:
        everything = said(turns, system=True)
        ways = {everything, tuple(turn for turn in everything if turn[0] != "system")}
        return any(way[i : i + n] in asked for way in ways for n in lengths for i in range(len(way) - n + 1))

    return found


def turns_of(record: Any) -> list[Turn]:
    """Everything that was said in a row."""
    if isinstance(record, Demonstration):
        return record.messages
    if isinstance(record, Preference):
        return [*record.prompt, *record.chosen, *record.prompt, *record.rejected]
    turns: list[Turn] = record.prompt
    return turns
