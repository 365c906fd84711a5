"""Programmatic checks of a response: (prompt, response text, options) -> score in [0, 1].

A verifier that cannot decide raises `Undecidable`; the score is then missing, with the reason, never 0. A `Verdict` is a score
with its reason. Those that run or evaluate what the model wrote stand in `grape.reward.sandbox`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import regex
from pydantic import Field, field_validator, model_validator

from grape.reward.choosing import chosen
from grape.reward.limit import time_limit
from grape.reward.reading import blocks, boxed, last_number, one_number, text_of
from grape.reward.sandbox.library import Maths, ReasoningGym
from grape.reward.sandbox.protocol import NotJson, read
from grape.reward.sandbox.verify import PythonTests
from grape.reward.verdict import Options, Undecidable, Verdict, reference
from grape.types import Prompt

__all__ = ["VERIFIERS", "Options", "Undecidable", "Verdict", "Verify", "build", "reference"]


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
        return {"share": there / len(wanted), "all": float(there == len(wanted)), "any": float(there > 0),
                "none": float(there == 0)}[self.need]


class Matches(Options):
    """`matches`: the whole response matches the regular expression `pattern`. One that takes too long gives no score."""

    pattern: str

    def model_post_init(self, context: Any) -> None:
        re.compile(self.pattern)
        regex.compile(_as_re(self.pattern))

    def score(self, prompt: Prompt, text: str) -> float:
        return float(_in_time(regex.fullmatch, text_of(self.pattern), text_of(text).strip()) is not None)


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


class JsonSchema(Options):
    """`json_schema`: the response, or the one fenced block in it, is JSON (strict: no NaN, no key twice) that fits `schema`."""

    schema_: dict[str, Any] | bool = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _valid(cls, schema: dict[str, Any] | bool) -> dict[str, Any] | bool:
        from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]
        from jsonschema.validators import validator_for  # type: ignore[import-untyped]

        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from error
        return schema

    def score(self, prompt: Prompt, text: str) -> Verdict:
        from jsonschema.validators import validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable

        try:
            value = read(fenced(text, ("", "json")))
        except NotJson as error:
            return Verdict(0.0, f"no JSON: {error}")
        try:  # an empty registry: by default a reference to another schema would be fetched over the network
            validator = _timed(validator_for(self.schema_))
            with time_limit(PATTERN_SECONDS):  # a schema can ask for more than its patterns: that all of a thousand differ
                problem = next(validator(self.schema_, registry=Registry()).iter_errors(value), None)
        except TimeoutError as error:
            raise Undecidable("the schema found no end on this text", "write it simpler") from error
        except Unresolvable as error:
            raise Undecidable(f"the schema refers to what is not in it: {error}") from error
        return Verdict(float(problem is None), "" if problem is None else f"{problem.json_path}: {problem.message}"[:200])


class Format(Options):
    """`format`: the response has the form `form`, whatever it says.

    json: strict JSON. line: one line. list: every line begins with a bullet or a number. fence: one fenced block, of `language` if
    named, and nothing else. boxed: exactly one \\boxed{}. tags: the elements `tags` once each, in order, nothing outside them.
    """

    form: Literal["json", "line", "list", "fence", "boxed", "tags"]
    language: str = ""
    tags: tuple[str, ...] = ("think", "answer")

    def score(self, prompt: Prompt, text: str) -> float:
        body = text_of(text).strip()
        if self.form == "json":
            try:
                read(body)
            except NotJson:
                return 0.0
            return 1.0
        if self.form == "boxed":
            return float(len(boxed(body)) == body.count("\\boxed") == 1)
        if self.form == "tags":
            named = [re.escape(tag) for tag in self.tags]
            once = all(body.count(f"<{tag}>") == body.count(f"</{tag}>") == 1 for tag in self.tags)
            return float(once and re.fullmatch(r"\s*".join(rf"<{n}>.*?</{n}>" for n in named), body, re.DOTALL) is not None)
        if self.form == "fence":
            found = blocks(body)
            whole = re.fullmatch(r"(`{3,}|~{3,})[^\n]*\n(?:.*\n)?[ \t]*\1", body, re.DOTALL)
            return float(whole is not None and len(found) == 1 and self.language.lower() in ("", found[0][0]))
        pattern = {"line": r"[^\n]+", "list": r"(?:[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S[^\n]*(?:\n+|\Z))+"}[self.form]
        return float(re.fullmatch(pattern, body, re.DOTALL) is not None)


VERIFIERS: dict[str, type[Options]] = {
    "exact": Exact,
    "numeric": Numeric,
    "math": Maths,
    "choice": Choice,
    "contains": Contains,
    "matches": Matches,
    "length": Length,
    "format": Format,
    "json_schema": JsonSchema,
    "python_tests": PythonTests,
    "reasoning_gym": ReasoningGym,
}
Verify = Callable[[Prompt, str], float]
# Patterns are people's, texts are models': together they may take for ever. A regular expression gets this long, seconds.
PATTERN_SECONDS = 2.0


def _as_re(pattern: str) -> str:
    """The pattern as `re` reads it: `{e}` and the like are text, where the `regex` library takes them for fuzzy matching."""
    return re.sub(r"(?<!\\)(?<!\\N)\{(?!\d*,?\d*\})", r"\\{", pattern)


def _in_time(search: Any, pattern: str, text: str) -> Any:
    """
    Raises:
        Undecidable: the search took too long.
    """
    try:
        return search(_as_re(pattern), text, flags=regex.DOTALL if search is regex.fullmatch else 0, timeout=PATTERN_SECONDS)
    except TimeoutError as error:
        what = f"the pattern {pattern[:60]!r} found no end on this text"
        raise Undecidable(what, "write it without nested repetitions") from error


@lru_cache(maxsize=8)
def _timed(validator: Any) -> Any:
    """A JSON-schema validator whose patterns have a limit of time."""
    from jsonschema.validators import extend

    def finds(pattern: str, text: str) -> bool:
        return _in_time(regex.search, pattern, text) is not None

    def pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Any:
        if validator.is_type(instance, "string") and not finds(wanted, instance):
            yield jsonschema_error(f"{instance!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        if validator.is_type(instance, "object"):
            for each, subschema in wanted.items():
                for key, value in instance.items():
                    if finds(each, key):
                        yield from validator.descend(value, subschema, path=key, schema_path=each)

    def additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        if not validator.is_type(instance, "object"):
            return
        patterns, named = list(schema.get("patternProperties", {})), schema.get("properties", {})
        for key in instance:
            if key in named or any(finds(each, key) for each in patterns):
                continue
            if validator.is_type(wanted, "object"):
                yield from validator.descend(instance[key], wanted, path=key)
            elif not wanted:
                yield jsonschema_error(f"Additional properties are not allowed ({key!r} was unexpected)")

    timed = {"pattern": pattern, "patternProperties": pattern_properties, "additionalProperties": additional_properties}
    return extend(validator, timed)


def jsonschema_error(message: str) -> Any:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)


def _shown(value: Fraction) -> str:
    try:
        return f"{float(value):g}"
    except OverflowError:
        return "beyond measure"


def fenced(text: str, languages: tuple[str, ...]) -> str:
    """The only fenced block of one of these languages, else the whole text."""
    bodies = [body for language, body in blocks(text) if language in languages]
    return bodies[0] if len(bodies) == 1 else text


def build(name: str, options: dict[str, Any]) -> Verify:
    """The verifier `name` with its options checked.

    Raises:
        KeyError: unknown name. ValueError (pydantic's ValidationError), re.error: bad options.
        GrapeError: the verifier's extra is not installed.
    """
    verifier: Any = VERIFIERS[name](**options)
    check: Verify = verifier.score
    return check
