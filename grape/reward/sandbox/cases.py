"""Test cases of a function, the program in a response, and what the answers of the one to the other are worth."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grape.randomness import permutation
from grape.reward.reading import blocks
from grape.reward.sandbox.protocol import NotJson, equal, read, wrong
from grape.reward.sandbox.run import Run
from grape.reward.verdict import Verdict

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class BadCases(ValueError):
    """The test cases cannot be used; says why."""


@dataclass(frozen=True)
class Case:
    """One call and what it must return; an impossible one expects what no honest program returns."""

    arguments: tuple[Any, ...]
    expected: Any
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
                raise BadCases(f'{key}[{i}] is not [list of arguments, expected value]')
            made.append(Case(tuple(pair[0]), pair[1], key == "impossible"))
    if not made:
        raise BadCases("there is no test case")
    return Cases(value["function"], tuple(made))


PYTHON = ("", "python", "py", "python3")
# At hand as in the places where such functions are usually asked for: `def add(numbers: List[int])` without an import.
PRELUDE = "from typing import *"
_FUTURE = re.compile(r"^from __future__ import [^\n]*$", re.MULTILINE)


def program(text: str, function: str) -> str:
    """The Python in a response: the last fenced block that defines the function (what follows are examples of use), behind the
    blocks before it that are Python; all blocks if none defines it, the whole text if there is no fence. "" where nothing can be
    Python."""
    found = blocks(text)
    bodies = [body for language, body in found if language in PYTHON] if found else [text]
    if not "".join(bodies).strip():
        return ""
    defines = re.compile(rf"^(?:async\s+)?(?:def|class)\s+{function}\b|^{function}\s*[:=]", re.MULTILINE)
    last = max((i for i, body in enumerate(bodies) if defines.search(body)), default=None)
    chosen = bodies if last is None else [*(body for body in bodies[:last] if _parses(body)), bodies[last]]
    source = "\n".join(chosen)
    return "\n".join([*dict.fromkeys(_FUTURE.findall(source)), PRELUDE, _FUTURE.sub("", source)])


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def judge(cases: Sequence[Case], done: Run, tolerance: float, partial: bool) -> Verdict:
    """Share of the possible cases that passed; 1 or 0 unless `partial`; 0 if an impossible case passed, whatever else did.

    The reason names neither arguments nor expected values: it may be shown to the policy when it revises.
    """
    passed = [answer.error is None and equal(answer.value, case.expected, tolerance)
              for case, answer in zip(cases, done.answers, strict=True)]
    possible = [ok for case, ok in zip(cases, passed, strict=True) if not case.impossible]
    impossible = [ok for case, ok in zip(cases, passed, strict=True) if case.impossible]
    metrics = {"cases": float(len(possible)), "passed": float(sum(possible)), "impossible": float(len(impossible)),
               "impossible_passed": float(sum(impossible)), "clean": float(done.clean)}
    if any(impossible):
        reason = f"passed {sum(impossible)} of {len(impossible)} impossible cases: it did not compute its answers"
        return Verdict(0.0, reason, metrics)
    share = sum(possible) / len(possible) if possible else 0.0
    reason = f"passed {sum(possible)} of {len(possible)} cases" if possible else "only impossible cases, which earn nothing"
    failed = next((i for i, (case, ok) in enumerate(zip(cases, passed, strict=True)) if not ok and not case.impossible), None)
    if failed is not None:
        reason += f"; first failure: {done.ended or done.answers[failed].error or 'another value than expected'}"
    return Verdict(share if partial else float(share == 1), reason, metrics)
