"""Whether a response is JSON of a given schema, within a limit of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydantic import Field, field_validator

import grape.reward.verifiers.patterns as patterns
from grape.reward.limit import time_limit
from grape.reward.verdict import Options, Undecidable, Verdict
from grape.reward.verifiers.reading import blocks
from grape.sandbox.protocol import NotJson, read
from grape.types import Prompt


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
            validator = timed(validator_for(self.schema_))
            with time_limit(patterns.PATTERN_SECONDS):  # a schema can ask for more than its patterns: that all of a thousand differ
                problem = next(validator(self.schema_, registry=Registry()).iter_errors(value), None)
        except TimeoutError as error:
            raise Undecidable("the schema found no end on this text", "write it simpler") from error
        except Unresolvable as error:
            raise Undecidable(f"the schema refers to what is not in it: {error}") from error
        return Verdict(float(problem is None), "" if problem is None else f"{problem.json_path}: {problem.message}"[:200])


@lru_cache(maxsize=8)
def timed(validator: Any) -> Any:
    """A JSON-schema validator whose patterns have a limit of time."""
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, instance: Any, schema: Mapping[str, Any]) -> Iterator[Exception]:
        if validator.is_type(instance, "string") and not patterns.found(wanted, instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Exception]:
        if validator.is_type(instance, "object"):
            for each, subschema in wanted.items():
                for key, value in instance.items():
                    if patterns.found(each, key):
                        yield from validator.descend(value, subschema, path=key, schema_path=each)

    def additional_properties(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Exception]:
        if not validator.is_type(instance, "object"):
            return
        others, named = list(schema.get("patternProperties", {})), schema.get("properties", {})
        for key in instance:
            if key in named or any(patterns.found(each, key) for each in others):
                continue
            if validator.is_type(wanted, "object"):
                yield from validator.descend(instance[key], wanted, path=key)
            elif not wanted:
                yield ValidationError(f"Additional properties are not allowed ({key!r} was unexpected)")

    limited = {"pattern": pattern, "patternProperties": pattern_properties, "additionalProperties": additional_properties}
    return extend(validator, limited)
