"""What form a response has, whatever it says: a pattern, JSON of a schema, a list, tags.

Patterns are people's, texts are models': together they may take for ever, so a search has a limit of time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import regex
from pydantic import Field, field_validator

from grape.reward.limit import time_limit
from grape.reward.verdict import Options, Undecidable, Verdict
from grape.reward.verifiers.reading import blocks, boxed, text_of
from grape.sandbox.protocol import NotJson, read
from grape.types import Prompt

PATTERN_SECONDS = 2.0  # for one regular expression, or for one schema


class Matches(Options):
    """`matches`: the whole response matches the regular expression `pattern`. One that takes too long gives no score."""

    pattern: str

    def model_post_init(self, context: object) -> None:
        re.compile(self.pattern)
        regex.compile(_as_re(self.pattern))

    def score(self, prompt: Prompt, text: str) -> float:
        return float(_found(text_of(self.pattern), text_of(text).strip(), whole=True))


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
            fenced = blocks(body)
            whole = re.fullmatch(r"(`{3,}|~{3,})[^\n]*\n(?:.*\n)?[ \t]*\1", body, re.DOTALL)
            return float(whole is not None and len(fenced) == 1 and self.language.lower() in ("", fenced[0][0]))
        pattern = {"line": r"[^\n]+", "list": r"(?:[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S[^\n]*(?:\n+|\Z))+"}[self.form]
        return float(re.fullmatch(pattern, body, re.DOTALL) is not None)


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

        bodies = [body for language, body in blocks(text) if language in ("", "json")]
        try:
            value = read(bodies[0] if len(bodies) == 1 else text)
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


@lru_cache(maxsize=8)
def _timed(validator: Any) -> Any:
    """A JSON-schema validator whose patterns have a limit of time."""
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, instance: Any, schema: Mapping[str, Any]) -> Iterator[Exception]:
        if validator.is_type(instance, "string") and not _found(wanted, instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Exception]:
        if validator.is_type(instance, "object"):
            for each, subschema in wanted.items():
                for key, value in instance.items():
                    if _found(each, key):
                        yield from validator.descend(value, subschema, path=key, schema_path=each)

    def additional_properties(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Exception]:
        if not validator.is_type(instance, "object"):
            return
        others, named = list(schema.get("patternProperties", {})), schema.get("properties", {})
        for key in instance:
            if key in named or any(_found(each, key) for each in others):
                continue
            if validator.is_type(wanted, "object"):
                yield from validator.descend(instance[key], wanted, path=key)
            elif not wanted:
                yield ValidationError(f"Additional properties are not allowed ({key!r} was unexpected)")

    limited = {"pattern": pattern, "patternProperties": pattern_properties, "additionalProperties": additional_properties}
    return extend(validator, limited)


def _as_re(pattern: str) -> str:
    """The pattern as `re` reads it: `{e}` and the like are text, where the `regex` library takes them for fuzzy matching."""
    return re.sub(r"(?<!\\)(?<!\\N)\{(?!\d*,?\d*\})", r"\\{", pattern)


def _found(pattern: str, text: str, whole: bool = False) -> bool:
    """Whether the pattern matches somewhere in the text, or (`whole`) all of it, `.` being a line feed too.
    Raises Undecidable: the search took too long."""
    search, flags = (regex.fullmatch, regex.DOTALL) if whole else (regex.search, 0)
    try:
        return search(_as_re(pattern), text, flags=flags, timeout=PATTERN_SECONDS) is not None
    except TimeoutError as error:
        what = f"the pattern {pattern[:60]!r} found no end on this text"
        raise Undecidable(what, "write it without nested repetitions") from error
