"""What a response says: numbers, letters, words, against the reference answer; and how much of it there is."""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from typing import Literal

from pydantic import Field, field_validator, model_validator

from grape.reward.verdict import Options, Undecidable, Verdict, reference
from grape.reward.verifiers.reading import chosen, last_number, one_number, text_of
from grape.types import Prompt


class Exact(Options):
    """`exact`: the response is the reference answer, up to surrounding white space."""

    ignore_case: bool = False

    def score(self, prompt: Prompt, text: str) -> float:
        fold = str.casefold if self.ignore_case else str
        return float(fold(text_of(text).strip()) == fold(text_of(reference(prompt)).strip()))


class Numeric(Options):
    """`numeric`: the last number of the response is the reference answer within `tolerance` (absolute) or `relative` (of it).

    Both are read exactly, as fractions. The reference must be one number and nothing else: 72, -0.5, 1,000, 1/2, 1e-3.
    """

    tolerance: float = Field(0.0, ge=0)
    relative: float = Field(0.0, ge=0, lt=1)

    def score(self, prompt: Prompt, text: str) -> Verdict:
        expected = one_number(reference(prompt))
        found = last_number(text)
        if found is None:
            return Verdict(0.0, "there is no number in the response")
        right = abs(found - expected) <= max(Fraction(self.tolerance), Fraction(self.relative) * abs(expected))
        return Verdict(float(right), f"its last number is {_shown(found)}" + ("" if right else ", which is not the answer"))


def _shown(value: Fraction) -> str:
    try:
        return f"{float(value):g}"
    except OverflowError:
        return "beyond measure"


class Contains(Options):
    """`contains`: share of the wanted texts that the response mentions.

    Wanted are `texts`, or else the reference answer's parts, separated by `separator`; of them part number `part`, or all if null.
    `need`: share | all | any | none of them must be there (the last three score 0 or 1).
    """

    part: int | None = Field(None, ge=0)
    separator: str = Field(";", min_length=1)
    ignore_case: bool = True
    texts: tuple[str, ...] | None = Field(None, min_length=1)
    need: Literal["share", "all", "any", "none"] = "share"

    @field_validator("texts")
    @classmethod
    def _says_something(cls, texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if texts is not None and not all(text.strip() for text in texts):
            raise ValueError("an empty text stands in every response")
        return texts

    def score(self, prompt: Prompt, text: str) -> float:
        parts = self.texts or tuple(p.strip() for p in reference(prompt).split(self.separator) if p.strip())
        if not parts:
            raise Undecidable(f"the reference answer {prompt.answer!r} names nothing that could be mentioned")
        if self.part is not None and self.part >= len(parts):
            raise Undecidable(f"the reference answer {prompt.answer!r} has no part {self.part}")
        wanted = parts if self.part is None else (parts[self.part],)
        fold = str.casefold if self.ignore_case else str
        said = fold(text_of(text))
        there = sum(fold(text_of(p)) in said for p in wanted)
        if self.need == "share":
            return there / len(wanted)
        return float({"all": there == len(wanted), "any": there > 0, "none": there == 0}[self.need])


class Length(Options):
    """`length`: the response has `low` to `high` of `unit`.

    words: split at white space, which Chinese or Thai do not use. characters: what a reader counts as one, in any script: letters,
    digits, signs, without white space and with accents on their letter. lines: those that are not empty.
    """

    low: int = Field(0, ge=0)
    high: int = Field(ge=0)
    unit: Literal["words", "characters", "lines"] = "words"

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self

    def score(self, prompt: Prompt, text: str) -> Verdict:
        if self.unit == "words":
            count = len(text.split())
        elif self.unit == "lines":
            count = sum(bool(line.strip()) for line in text.splitlines())
        else:  # M: marks that combine with what stands before, C: control and invisible characters
            count = sum(not c.isspace() and unicodedata.category(c)[0] not in "MC" for c in unicodedata.normalize("NFC", text))
        return Verdict(float(self.low <= count <= self.high), f"{count} {self.unit}")


class Choice(Options):
    """`choice`: the response chooses the reference answer's letter. Two letters are no choice."""

    letters: str = Field("ABCD", pattern=r"^[A-Z]{2,26}$")

    def score(self, prompt: Prompt, text: str) -> Verdict:
        expected = text_of(reference(prompt)).strip(" ().:[]").upper()
        if len(expected) != 1 or expected not in self.letters:
            raise Undecidable(f"the reference answer {prompt.answer!r} is none of the letters {self.letters}")
        found = chosen(text, self.letters)
        return Verdict(float(found == expected), f"chooses {found}" if found else "makes no single choice")
