"""Test cases of a function, and what a program's answers to them are worth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grape.randomness import permutation
from grape.reward.verdict import Verdict
from grape.sandbox.protocol import NotJson, read
from grape.sandbox.run import Run

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class BadCases(ValueError):
    """The test cases cannot be used; says why."""


@dataclass(frozen=True)
class Case:
    """One call and what it must return; an impossible one expects what no honest program returns."""

    arguments: tuple[object, ...]
    expected: object
    impossible: bool = False


@dataclass(frozen=True)
class Cases:
    """The cases of one function, in the order in which it is called."""

    function: str
    cases: tuple[Case, ...]

    def mixed(self, share: float, key: str) -> Cases:
        """With impossible cases added, `share` of the possible ones (rounded up): the same arguments, another expectation.

        `key` decides which. They come last, so a function that counts its calls still returns what it would. A program that
        computes its answers passes no such twin; only one that found out what is expected can.
        """
        possible = [case for case in self.cases if not case.impossible]
        count = min(math.ceil(share * len(possible)), len(possible))
        chosen = [possible[int(i)] for i in permutation(len(possible), "impossible", key)[:count]] if count else []
        return Cases(self.function, (*self.cases, *(Case(case.arguments, wrong(case.expected), True) for case in chosen)))


def parse(value: Any) -> Cases:
    """`{"function": NAME, "cases": [[ARGUMENTS, EXPECTED], ...], "impossible": [[ARGUMENTS, WRONG], ...]}`, as text or read.

    `impossible` may be left out; ARGUMENTS is the list of the call's positional arguments.

    Raises:
        BadCases: it is not that, or there is no case.
    """
    try:  # by way of text in any case: what a YAML reader makes only derives from the built-in types
        value = read(value if isinstance(value, str) else json.dumps(value))
    except (NotJson, TypeError, ValueError, RecursionError) as error:
        raise BadCases(f"the test cases are no strict JSON: {error}") from error
    if not isinstance(value, dict) or not {"function", "cases"} <= value.keys() <= {"function", "cases", "impossible"}:
        raise BadCases('test cases are an object with "function", "cases" and, where wanted, "impossible"')
    if not isinstance(value["function"], str) or not NAME.fullmatch(value["function"]):
        raise BadCases(f"{value['function']!r} is not the name of a function")
    made = []
    for key in ("cases", "impossible"):
        listed = value.get(key, [])
        if not isinstance(listed, list):
            raise BadCases(f'"{key}" is a list of [arguments, expected]')
        for i, pair in enumerate(listed):
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], list):
                raise BadCases(f"{key}[{i}] is not [list of arguments, expected value]")
            made.append(Case(tuple(pair[0]), pair[1], key == "impossible"))
    if not made:
        raise BadCases("there is no test case")
    return Cases(value["function"], tuple(made))


def judge(cases: Sequence[Case], done: Run, tolerance: float, partial: bool) -> Verdict:
    """Share of the possible cases that passed; 1 or 0 unless `partial`; 0 if an impossible case passed, whatever else did.

    The reason names neither arguments nor expected values: it may be shown to the policy when it revises.
    """
    answered = zip(cases, done.answers, strict=True)
    passed = [(case, answer.error is None and equal(answer.value, case.expected, tolerance)) for case, answer in answered]
    possible, impossible = ([ok for case, ok in passed if case.impossible is twin] for twin in (False, True))
    metrics = {"impossible": float(len(impossible)), "impossible_passed": float(sum(impossible))}
    if any(impossible):
        reason = f"passed {sum(impossible)} of {len(impossible)} impossible cases: it did not compute its answers"
        return Verdict(0.0, reason, metrics)
    share = sum(possible) / len(possible) if possible else 0.0
    reason = f"passed {sum(possible)} of {len(possible)} cases" if possible else "only impossible cases, which earn nothing"
    failed = next((i for i, (case, ok) in enumerate(passed) if not ok and not case.impossible), None)
    if failed is not None:
        reason += f"; first failure: {done.ended or done.answers[failed].error or 'another value than expected'}"
    return Verdict(share if partial else float(share == 1), reason, metrics)


def equal(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether two JSON values are the same; the types count, so true is not 1 and "1" is not 1.

    A set comes as `{"$set": [elements]}` and is equal to a set with these elements, and to a list that holds each of them once:
    test cases are JSON, where a list is all that a set can be written as. A list is not equal to a set.

    Numbers: where an integer is expected, exactly it (2.0 is the integer 2); where a float is expected, within `tolerance`,
    relative, and absolute below 1.
    """
    if type(expected) is int:
        return type(found) in (int, float) and bool(found == expected)
    if type(expected) is float:
        try:
            return type(found) in (int, float) and abs(found - expected) <= tolerance * max(1.0, abs(expected))
        except OverflowError:  # an integer beyond every float
            return False
    if type(found) is not type(expected) and not (_is_set(found) and isinstance(expected, list)):
        return False
    if _is_set(found) and (_is_set(expected) or isinstance(expected, list)):
        return _same_elements(found["$set"], expected["$set"] if isinstance(expected, dict) else expected, tolerance)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(equal(f, e, tolerance) for f, e in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[k], e, tolerance) for k, e in expected.items())
    return bool(found == expected)


MOST = 1000  # elements of a set that are compared: each with each


def _is_set(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"$set"} and isinstance(value["$set"], list)


def _same_elements(found: list[Any], expected: list[Any], tolerance: float) -> bool:
    """Whether each expected element stands once in `found`, in any order."""
    if len(found) != len(expected) or len(found) > MOST:
        return False
    left = list(found)
    for element in expected:
        place = next((i for i, other in enumerate(left) if equal(other, element, tolerance)), None)
        if place is None:
            return False
        left.pop(place)
    return True


def wrong(value: object) -> object:
    """What an impossible test case expects instead of `value`: nothing that an honest program would return, not even one that
    returns something else each time it is called."""
    if type(value) is int:
        return value + 1_000_003
    if type(value) is float:
        return 3.0 * value + 1_000_003.0
    if isinstance(value, str):
        return value + "~"
    if isinstance(value, list):
        return [*value[:-1], wrong(value[-1])] if value else ["~"]
    if isinstance(value, dict):
        return {**value, "~": None}
    return "~"
