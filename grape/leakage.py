"""Held-out questions must not be trained on: whether a conversation holds one, wherever within it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from grape.artifacts import Demonstration, Preference, Question, Turn

Said = tuple[str, str]  # (role, what was said) with white space folded


def said(turns: Iterable[Turn]) -> tuple[Said, ...]:
    """A conversation as what was said in it, whatever the white space; system turns are instructions, no part of a question."""
    return tuple((t.role, " ".join(t.content.split())) for t in turns if t.role != "system")


def holds(heldout: Iterable[Question]) -> Callable[[Iterable[Turn]], bool]:
    """Whether a conversation holds a held-out question: all that was said in a held-out prompt, turn by turn, anywhere within
    it."""
    asked = {said(row.prompt) for row in heldout}
    lengths = {len(turns) for turns in asked}

    def found(turns: Iterable[Turn]) -> bool:
        whole = said(turns)
        return any(whole[i : i + n] in asked for n in lengths for i in range(len(whole) - n + 1))

    return found


def turns_of(record: Any) -> list[Turn]:
    """Everything that was said in a row."""
    if isinstance(record, Demonstration):
        return record.messages
    if isinstance(record, Preference):
        return [*record.prompt, *record.chosen, *record.prompt, *record.rejected]
    turns: list[Turn] = record.prompt
    return turns
