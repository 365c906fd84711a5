"""Programmatic checks of a response: (prompt, response text, options) -> score in [0, 1].

A verifier that cannot decide raises `Undecidable`; the score is then missing, with the reason, never 0. A `Verdict` is a score
with its reason. `content` and `form` read the response; `python_tests` and `libraries` have it run or evaluated in `grape.sandbox`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from grape.reward.verdict import Options
from grape.reward.verifiers.content import Choice, Contains, Exact, Length, Numeric
from grape.reward.verifiers.form import Format, JsonSchema, Matches
from grape.reward.verifiers.libraries import Maths, ReasoningGym
from grape.reward.verifiers.python_tests import PythonTests
from grape.types import Prompt

VERIFIERS: dict[str, type[Options]] = {
    "exact": Exact, "numeric": Numeric, "math": Maths, "choice": Choice, "contains": Contains, "matches": Matches,
    "length": Length, "format": Format, "json_schema": JsonSchema, "python_tests": PythonTests, "reasoning_gym": ReasoningGym,
}  # fmt: skip
Verify = Callable[[Prompt, str], float]


def build(name: str, options: Mapping[str, object]) -> Verify:
    """The verifier `name` with its options checked. Raises KeyError: unknown name. ValueError (pydantic's ValidationError),
    re.error: bad options. GrapeError: the verifier's extra is not installed."""
    return VERIFIERS[name](**options).score
