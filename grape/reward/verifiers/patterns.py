"""Patterns are people's, texts are models': together they may take for ever, so a search has a limit of time."""

from __future__ import annotations

import re

import regex

from grape.reward.verdict import Undecidable

PATTERN_SECONDS = 2.0  # for one regular expression, or for one schema


def as_re(pattern: str) -> str:
    """The pattern as `re` reads it: `{e}` and the like are text, where the `regex` library takes them for fuzzy matching."""
    return re.sub(r"(?<!\\)(?<!\\N)\{(?!\d*,?\d*\})", r"\\{", pattern)


def found(pattern: str, text: str, whole: bool = False) -> bool:
    """Whether the pattern matches somewhere in the text, or (`whole`) all of it, `.` being a line feed too.

    Raises:
        Undecidable: the search took too long.
    """
    search, flags = (regex.fullmatch, regex.DOTALL) if whole else (regex.search, 0)
    try:
        return search(as_re(pattern), text, flags=flags, timeout=PATTERN_SECONDS) is not None
    except TimeoutError as error:
        what = f"the pattern {pattern[:60]!r} found no end on this text"
        raise Undecidable(what, "write it without nested repetitions") from error
