"""Which knobs of an algorithm are tried, and within what: a vetted space for each of grape's own, or a file of the user's.

SFT is tuned as well. It stands in no slot: its knobs are the section `sft` of params.yaml, and its budget are its own updates.

Every space lies within the ranges that the knobs' schema has, and always holds the present settings: they are the first trial, so
that tuning never ends worse than no tuning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from grape import yamlfile
from grape.algorithms.base import OnlineParams
from grape.errors import GrapeError, first_problem, nearest
from grape.schema import Params
from grape.slot import SFT

Value = float | int | str | bool | None
Knobs = dict[str, Value]


@dataclass(frozen=True)
class Range:
    """All numbers from low to high; whole ones where both are. log: as many between 1 and 2 as between 10 and 20."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high

    def holding(self, value: Value) -> Dimension:
        """The same, widened where `value` lies outside; a choice of its ends where that is no number."""
        if value is None or isinstance(value, (str, bool)):
            return OneOf(self.ends).holding(value)
        return replace(self, low=min(self.low, value), high=max(self.high, value))


@dataclass(frozen=True)
class OneOf:
    """One of these."""

    options: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.options

    def holding(self, value: Value) -> Dimension:
        known = any(value == option and type(value) is type(option) for option in self.options)
        return self if known else OneOf((value, *self.options))


Dimension = Range | OneOf
Space = Mapping[str, Dimension]

BUDGET = ("steps", "batch_size", "warmup_steps")  # of SFT: what all its trials have the same of
RATE = Range(5.0e-5, 2.0e-3, log=True)

# Three or four knobs each, so that eight trials say something: the step, what holds it back, and what the algorithm's paper varies.
# The ranges go as far as the sources of the knobs' defaults do (docs/tuning.md).
DEFAULTS: Mapping[str, Space] = {
    SFT: {
        "learning_rate": Range(5.0e-5, 5.0e-3, log=True),
        "weight_decay": OneOf((0.0, 0.01, 0.1)),
        "max_grad_norm": Range(0.3, 3.0, log=True),
    },
    "rejection": {"learning_rate": RATE, "keep": Range(1, 4), "epochs": Range(1, 3)},
    "reinforce": {"learning_rate": RATE, "baseline": OneOf(("leave_one_out", "group", "moving")), "beta": OneOf((0.0, 0.02, 0.1))},
    "trpo": {
        "delta": Range(0.005, 0.1, log=True),
        "damping": Range(1.0e-3, 0.1, log=True),
        "advantage": OneOf(("leave_one_out", "group")),
    },
    "ppo": {
        "learning_rate": Range(3.0e-5, 1.0e-3, log=True),
        "epochs": Range(1, 3),
        "lam": Range(0.9, 1.0),
        "beta": OneOf((0.0, 0.02, 0.1)),
    },
    "grpo": {
        "learning_rate": RATE,
        "clip_high": Range(0.1, 0.4),
        "beta": OneOf((0.0, 0.01, 0.04)),
        "advantage": OneOf(("group", "leave_one_out")),
    },
    "dpo": {"learning_rate": Range(1.0e-5, 5.0e-4, log=True), "beta": Range(0.03, 0.5, log=True), "sft": Range(0.0, 2.0)},
    "grape": {
        "learning_rate": RATE,
        "scope": OneOf(("group", "batch", "ema")),
        "exponent": Range(0.0, 2.0),
        "advantage": OneOf(("mean", "leave_one_out")),
    },
}


def section(name: str) -> str:
    """The key of params.yaml below which the knobs of `name` stand."""
    return SFT if name == SFT else f"algorithms.{name}"


def _given(params: Params, name: str) -> BaseModel:
    return params.sft if name == SFT else params.algorithm(name)


def present(params: Params, name: str, knobs: Mapping[str, object]) -> Knobs:
    """What these knobs of algorithm `name` are now. What is null and taken from elsewhere, the learning rate, is written out."""
    given = _given(params, name)
    values: Knobs = {knob: getattr(given, knob) for knob in knobs}
    elsewhere: Knobs = {"learning_rate": params.rl.learning_rate, "rounds": params.rl.steps}
    return {knob: elsewhere.get(knob) if value is None else value for knob, value in values.items()}


def of(params: Params, name: str, mine: Mapping[str, Any] | None = None, where: str = "") -> Space:
    """The space of algorithm `name`, the present settings within it.

    Args:
        mine: the user's spaces, as `read` gives them from the file `where`; an algorithm that is not among them has its default.

    Raises:
        GrapeError: a knob that the algorithm does not have, a value that it does not take, a range or choice of nothing.
    """
    given = (mine or {}).get(name)
    if given is None:
        space = DEFAULTS.get(name) or {
            "learning_rate": Range(params.rl.learning_rate / 6, min(1.0, params.rl.learning_rate * 6), True)
        }
    else:
        check = KnobCheck.of(params, name)
        space = {knob: _dimension(check, knob, told, f"{where}, {name}.{knob}") for knob, told in given.items()}
    now = present(params, name, space)
    return {knob: dimension.holding(now[knob]) for knob, dimension in space.items()}


def read(path: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Spaces of the user's, `algorithm: {knob: {low, high, log} | [values]}`; what they say is checked by `of`.

    Raises:
        GrapeError: the file cannot be read, is no such mapping, or names an algorithm that is not tuned.
    """
    found = yamlfile.read(path)
    mend = "write it as  grpo: {learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}, advantage: [group, none]}"
    if not isinstance(found, dict) or not found:
        raise GrapeError("it is not a mapping of algorithms to their knobs", where=path.name, mend=mend)
    for name, knobs in found.items():
        if name not in names:
            raise GrapeError(f"{name!r} is not tuned here", where=path.name, mend=nearest(name, names, "tuned are: %s"))
        if not isinstance(knobs, dict) or not knobs:
            raise GrapeError(f"{name} is not a mapping of knobs to what is tried", where=path.name, mend=mend)
    return found


@dataclass(frozen=True)
class KnobCheck:
    """What the knobs' schema takes.

    Attributes:
        beside: values of the knobs that have no default. budget: knobs that all trials have the same of.
    """

    schema: type[BaseModel]
    beside: Mapping[str, Any]
    budget: tuple[str, ...] = ()

    @classmethod
    def of(cls, params: Params, name: str) -> KnobCheck:
        return cls(type(params.sft), params.sft.model_dump(), BUDGET) if name == SFT else cls(params.slot(name).params, {})

    def knob(self, knob: str, where: str) -> None:
        """
        Raises:
            GrapeError: it is not there, or what all trials have the same of.
        """
        known = [one for one in self.schema.model_fields if one not in self.budget]
        if knob in self.budget:
            mend = f"leave it out; tried can be {', '.join(known)}"
            raise GrapeError("it is the budget, which is the same for all trials", where=where, mend=mend)
        if knob not in known:
            raise GrapeError("there is no such knob", where=where, mend=nearest(knob, known, "known here: %s"))

    def value(self, knob: str, value: Value, where: str) -> None:
        """
        Raises:
            GrapeError: the schema does not take it.
        """
        try:
            self.schema.model_validate({**self.beside, knob: value})
        except ValidationError as error:
            mend = f"`grape explain` shows the range of {knob}"
            raise GrapeError(f"{value!r}: {first_problem(error)[1]}", where=where, mend=mend) from error


def _dimension(check: KnobCheck, knob: str, told: Any, where: str) -> Dimension:
    check.knob(knob, where)
    mend = "write a list of values, or {low: 1, high: 3}, with `log: true` where ratios count"
    if isinstance(told, list) and told and all(isinstance(value, Value) for value in told):
        found: Dimension = OneOf(tuple(dict.fromkeys(told)))
    elif isinstance(told, dict) and {"low", "high"} <= told.keys() <= {"low", "high", "log"}:
        found = _range(told, where)
    else:
        raise GrapeError("there is nothing to choose from here", where=where, mend=mend)
    for value in found.ends:
        check.value(knob, value, where)
    return found


def _range(told: Mapping[str, Any], where: str) -> Range:
    low, high, log = told["low"], told["high"], told.get("log", False)
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not isinstance(log, bool) or not low < high or (log and low <= 0):
        mend = "low and high are numbers, low the smaller one, above 0 for log: true"
        raise GrapeError(f"{low} to {high} is no range", where=where, mend=mend)
    return Range(low, high, log)


def scaled(params: Params, name: str, knobs: Mapping[str, Value], steps: int) -> Knobs:
    """The knobs of a trial of so many steps: rounds are as large as in the whole run, and so fewer, as nearly as these steps can
    be spread evenly over them."""
    given = params.algorithm(name)
    rounds = knobs.get("rounds", given.rounds if isinstance(given, OnlineParams) else None)
    if not rounds:
        return dict(knobs)
    wanted, even = int(rounds) * steps / params.rl.steps, [count for count in range(1, steps + 1) if steps % count == 0]
    return {**knobs, "rounds": min(even, key=lambda count: abs(math.log(count / wanted)))}
