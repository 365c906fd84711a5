"""`python_tests`: the verifier that finds the Python in a response and runs it in the sandbox."""

from __future__ import annotations

import ast
import re
from typing import Any

from pydantic import Field, model_validator

from grape.reward.verdict import Options, Undecidable, Verdict, reference
from grape.reward.verifiers.cases import BadCases, judge, parse
from grape.reward.verifiers.reading import blocks
from grape.sandbox.box import HarnessError
from grape.sandbox.places import Limits
from grape.sandbox.run import run
from grape.sandbox.tiers import tier
from grape.types import Prompt

MEND = (
    "install bubblewrap, or allow user namespaces (Ubuntu 24.04 and later: "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`), or use a kernel with landlock (Linux 6.2); "
    "`allow_weak: true` in the item's options runs the programs with limits alone"
)
PYTHON = ("", "python", "py", "python3", "py3")
# At hand as in the places where such functions are usually asked for: `def add(numbers: List[int])` without an import.
PRELUDE = "from typing import *"
_FUTURE = re.compile(r"^from __future__ import [^\n]*$", re.MULTILINE)
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def mechanism(allow_weak: bool) -> str:
    """What holds programs on this machine. Raises Undecidable: nothing that may be used."""
    found = tier()
    if found.strong or allow_weak and found.name != "none":
        return found.name
    raise Undecidable(found.why(), MEND)


class PythonTests(Options):
    """`python_tests`: the response's Python function returns what the test cases say, run in a sandbox.

    The cases are `tests`, or the prompt's reference answer as JSON; both as `cases.parse` describes. All cases or nothing, unless
    `partial`: then the share of cases. `impossible` mixes in cases that no honest program passes, as a share of the cases; they
    earn nothing, and passing one makes the score 0. `tolerance` is for floats, relative, absolute below 1. `seconds` of processor
    time and MiB of `memory` are the whole program's; `allow_weak` runs it even where only limits hold it.
    """

    tests: dict[str, Any] | None = None
    partial: bool = False
    impossible: float = Field(0.0, ge=0, le=1)
    tolerance: float = Field(1e-9, ge=0, lt=1)
    seconds: float = Field(5.0, ge=1, le=600)
    memory: int = Field(512, ge=64, le=65536)
    allow_weak: bool = False

    @model_validator(mode="after")
    def _usable(self) -> PythonTests:
        if self.tests is not None:
            parse(self.tests)
        return self

    def score(self, prompt: Prompt, text: str) -> Verdict:
        try:
            cases = parse(self.tests if self.tests is not None else reference(prompt)).mixed(self.impossible, prompt.id)
        except BadCases as error:
            raise Undecidable(f"prompt {prompt.id}: {error}") from error
        held_by = mechanism(self.allow_weak)
        source = program(text, cases.function)
        if not source.strip():
            return Verdict(0.0, "there is no Python in the response")
        limits = Limits(seconds=self.seconds, wall=3 * self.seconds, memory=self.memory)
        try:
            done = run(source, [(cases.function, case.arguments) for case in cases.cases], held_by, limits)
        except HarnessError as error:
            raise Undecidable(str(error)) from error
        return judge(cases.cases, done, self.tolerance, self.partial)


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
    parts = [_without_future(body) for body in chosen]
    future = dict.fromkeys(line for lines, _ in parts for line in lines)
    return "\n".join([*future, PRELUDE, *(rest for _, rest in parts)])


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


def _without_future(source: str) -> tuple[list[str], str]:
    """The source's imports from the future, which must come first in the whole program, and the source without them."""
    tree = _parsed(source)
    if tree is None:
        return _FUTURE.findall(source), _FUTURE.sub("", source)
    future, lines = [], source.split("\n")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            future.append(f"from __future__ import {', '.join(alias.name for alias in node.names)}")
            for i in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[i] = ""
    return future, "\n".join(lines)
