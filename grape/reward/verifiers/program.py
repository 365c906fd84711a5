"""The Python in a response."""

from __future__ import annotations

import ast
import re

from grape.reward.verifiers.reading import blocks

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
