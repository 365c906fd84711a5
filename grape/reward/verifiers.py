"""Programmatic checks of a response: (prompt, response text, options) -> score in [0, 1].

A verifier that cannot decide raises `Undecidable`; the score is then missing, with the reason, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from grape.types import Prompt


class Undecidable(Exception):
    """The check could not be made, e.g. the prompt has no reference answer."""


class Options(BaseModel):
    """Options of a verifier; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Exact(Options):
    """`exact`: the response is the reference answer, up to surrounding white space."""

    ignore_case: bool = False

    def score(self, prompt: Prompt, text: str) -> float:
        fold = str.casefold if self.ignore_case else str
        return float(fold(text.strip()) == fold(reference(prompt).strip()))


class Numeric(Options):
    """`numeric`: the last number of the response equals the reference answer within `tolerance` (absolute)."""

    tolerance: float = Field(0.0, ge=0)

    def score(self, prompt: Prompt, text: str) -> float:
        expected = number(reference(prompt))
        if expected is None:
            raise Undecidable(f"the reference answer {prompt.answer!r} is not a number")
        found = number(text)
        return float(found is not None and abs(found - expected) <= self.tolerance)


class Contains(Options):
    """`contains`: the response mentions part `part` of the reference answer, parts separated by `separator`; all parts if null."""

    part: int | None = None
    separator: str = ";"
    ignore_case: bool = True

    def score(self, prompt: Prompt, text: str) -> float:
        parts = [p.strip() for p in reference(prompt).split(self.separator)]
        if self.part is not None and self.part >= len(parts):
            raise Undecidable(f"the reference answer {prompt.answer!r} has no part {self.part}")
        wanted = parts if self.part is None else [parts[self.part]]
        fold = str.casefold if self.ignore_case else str
        return sum(fold(p) in fold(text) for p in wanted) / len(wanted)


class Matches(Options):
    """`matches`: the whole response matches the regular expression `pattern`."""

    pattern: str

    def model_post_init(self, context: Any) -> None:
        re.compile(self.pattern)

    def score(self, prompt: Prompt, text: str) -> float:
        return float(re.fullmatch(self.pattern, text.strip(), re.DOTALL) is not None)


class Length(Options):
    """`length`: the response has `low` to `high` words."""

    low: int = Field(0, ge=0)
    high: int = Field(ge=0)

    def score(self, prompt: Prompt, text: str) -> float:
        return float(self.low <= len(text.split()) <= self.high)


VERIFIERS: dict[str, type[Options]] = {
    "exact": Exact,
    "numeric": Numeric,
    "contains": Contains,
    "matches": Matches,
    "length": Length,
}
Verify = Callable[[Prompt, str], float]
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


def number(text: str) -> float | None:
    """The last number in the text (thousands separated by commas allowed), None if there is none."""
    found = NUMBER.findall(text)
    try:
        return float(found[-1].replace(",", "")) if found else None
    except ValueError:
        return None


def reference(prompt: Prompt) -> str:
    if prompt.answer is None:
        raise Undecidable(f"prompt {prompt.id} has no reference answer")
    return prompt.answer


def build(name: str, options: dict[str, Any]) -> Verify:
    """The verifier `name` with its options checked.

    Raises:
        KeyError: unknown name. ValueError (pydantic's ValidationError, re.error): bad options.
    """
    verifier: Any = VERIFIERS[name](**options)
    check: Verify = verifier.score
    return check
