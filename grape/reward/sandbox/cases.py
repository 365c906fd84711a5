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


PYTHON = ("", "python", "py", "python3", "py3")
# At hand as in the places where such functions are usually asked for: `def add(numbers: List[int])` without an import.
PRELUDE = "from typing import *"
_FUTURE = re.compile(r"^from __future__ import [^\n]*$", re.MULTILINE)
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def program(text: str, function: str) -> str:
    """The Python in a response: the last fenced block that defines the function (what follows are examples of use), behind the
    blocks before it that only define something; all blocks if none defines it, the whole text if there is no fence. "" where
    nothing can be Python."""
    found = blocks(text)
    bodies = [body.replace("\ufeff", "") for language, body in found if language in PYTHON] if found else [text]
    if not "".join(bodies).strip():
        return ""
    trees = [_parsed(body) for body in bodies]
    places = [[i for i, body in enumerate(bodies) if defines(body, trees[i], function)] for defines in (_defines, _assigns)]
    last = next((place[-1] for place in places if place), None)
    if last is None:
        chosen = bodies
    else:
        before = zip(bodies[:last], trees[:last], strict=True)
        chosen = [*(body for body, tree in before if tree is not None and _only_defines(tree)), bodies[last]]
    future: list[str] = []
    parts = [_without_future(body, future) for body in chosen]
    return "\n".join([*dict.fromkeys(future), PRELUDE, *parts])


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines(body: str, tree: ast.Module | None, name: str) -> bool:
    """Whether there is a `def` or `class` of that name; of what is no Python, by its looks."""
    if tree is None:
        return re.search(rf"^(?:async\s+)?(?:def|class)\s+{name}\b", body, re.MULTILINE) is not None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and node.name == name for node in ast.walk(tree))


def _assigns(body: str, tree: ast.Module | None, name: str) -> bool:
    """Whether the name is given to what may be called: `f = lambda x: x`, not `f = 4`."""
    given = [node for node in (tree.body if tree else []) if isinstance(node, ast.Assign)]
    targets = [target for node in given if not isinstance(node.value, ast.Constant) for target in node.targets]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _only_defines(tree: ast.Module) -> bool:
    """Whether running it does nothing else than define: a shell's `ls`, a call or an assertion of an example does not."""
    said = [node for node in tree.body if not isinstance(node, _DEFINITIONS)]
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in said)


def _without_future(source: str, future: list[str]) -> str:
    """The source without its imports from the future, which must come first in the whole program and are put into `future`."""
    tree = _parsed(source)
    if tree is None:
        future += _FUTURE.findall(source)
        return _FUTURE.sub("", source)
    lines = source.split("\n")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            future.append(f"from __future__ import {', '.join(alias.name for alias in node.names)}")
            for i in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[i] = ""
    return "\n".join(lines)


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
