"""What a stage imports against what dvc.yaml declares for it, both ways; and what an algorithm's file may import."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from grape.algorithms import NAMES
from grape.closure import INERT, files, inert, named, parsed
from tests.architecture.test_dag import DAG, PARAMS, ROOT

SHARED = {"base", "penalty", "clipped"}
ALGORITHMS = sorted(path.stem for path in (ROOT / "grape/algorithms").glob("*.py") if path.stem not in (*SHARED, "__init__"))


class Unit:
    """A function, a method, or what is left of a module without them: what it imports, and the names it mentions."""

    def __init__(self, name: str | None, nodes: Iterable[ast.AST]) -> None:
        # None: runs when the module is imported, as a decorated function may be called by what decorates it.
        self.name = name
        nodes = list(nodes)
        self.imports = [found for node in nodes for found in named(node)]
        inside = [part for node in nodes for part in ast.walk(node)]
        self.mentions = {part.attr for part in inside if isinstance(part, ast.Attribute)}
        self.mentions |= {part.id for part in inside if isinstance(part, ast.Name)}
        self.mentions |= {alias.name for part in inside if isinstance(part, ast.ImportFrom) for alias in part.names}


@cache
def units(path: Path) -> list[Unit]:
    found, rest = [], []
    for node in parsed(path).body:
        for part in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(part, ast.FunctionDef) and not part.decorator_list and not part.name.startswith("__"):
                found.append(Unit(part.name, [part]))
            else:
                rest.append(part)
        if isinstance(node, ast.ClassDef):
            rest += [*node.bases, *node.decorator_list]
    return [Unit(None, rest), *found]


@cache
def reached(*starts: str) -> frozenset[str]:
    """The files of grape that the code of `starts` may run, relative to the project.

    An import inside a function counts when any code that is reached mentions the function's name. Inert files are not followed.
    """
    names, done = {"run"}, set()
    found = {ROOT / start for start in starts}
    while True:
        todo = [(path, unit) for path in found for unit in units(path) if unit not in done]
        todo = [(path, unit) for path, unit in todo if unit.name is None or unit.name in names]
        if not todo:
            return frozenset(path.relative_to(ROOT).as_posix() for path in found)
        for _, unit in todo:
            done.add(unit)
            names |= unit.mentions
            for level, parts in unit.imports:
                assert level == 0
                for file in files(ROOT, parts) if parts[0] == "grape" else ():
                    if not inert(file.relative_to(ROOT).as_posix()):
                        found.add(file)


def code(stage: str) -> list[str]:
    """The code that dvc.yaml declares for a stage; an algorithm's own file is looked at by the tests below."""
    return [dep for dep in DAG[stage]["deps"] if dep.startswith("grape/")]


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", DAG)
def test_all_that_a_stage_imports_is_declared(stage: str) -> None:
    missing = {file for file in reached(f"grape/stages/{stage}.py") if not any(covers(dep, file) for dep in code(stage))}
    assert not missing, f"add to stages.{stage}.deps of dvc.yaml, or say in grape.closure.INERT why not: {sorted(missing)}"


@pytest.mark.parametrize("stage", DAG)
def test_all_that_is_declared_is_imported(stage: str) -> None:
    starts = [f"grape/stages/{stage}.py"]
    if "algorithms/${item.algorithm}.py" in DAG[stage]["deps"]:
        starts += [f"grape/algorithms/{name}.py" for name in NAMES]
    # What is inert for others may be declared by the stage that shows it.
    shown = {"report": {"grape/track/registry.py"}}.get(stage, set())
    unused = {dep for dep in code(stage) if not any(covers(dep, file) for file in reached(*starts))} - shown
    assert not unused, f"stages.{stage}.deps of dvc.yaml: nothing here is imported: {sorted(unused)}"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_imports_what_all_share_and_nothing_of_another(name: str) -> None:
    """Else editing one would change another without running it again."""
    path = ROOT / f"grape/algorithms/{name}.py"
    imported = {file.stem for _, parts in named(parsed(path)) for file in files(ROOT, parts) if file.parent == path.parent}
    assert imported - {"__init__"} <= SHARED | ({"sft"} if name == "rejection" else set())
    rl = [dep for dep in code("rl") if dep.startswith("grape/algorithms/")]
    if name in NAMES:
        own = {file for file in reached(f"grape/algorithms/{name}.py") if file != f"grape/algorithms/{name}.py"}
        assert all(any(covers(dep, file) for dep in code("rl")) for file in own), name
        assert f"grape/algorithms/{name}.py" not in rl, "its link in algorithms/ stands for it"


def test_the_world_of_the_project_imports_nothing_of_it() -> None:
    assert reached(PARAMS["prepare"]["source"]) == {PARAMS["prepare"]["source"]}


def test_every_file_called_inert_is_there() -> None:
    assert all((ROOT / path).exists() for path in INERT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import a.b as c", {(0, "a.b")}),
        ("from a import b, c", {(0, "a"), (0, "a.b"), (0, "a.c")}),
        ("from . import x", {(1, ""), (1, "x")}),
        ("from ..a import x", {(2, "a"), (2, "a.x")}),
        ("def f():\n    import lazy", {(0, "lazy")}),
        ("if TYPE_CHECKING:\n    import never\nelse:\n    import always", {(0, "always")}),
        ("import typing\nif typing.TYPE_CHECKING:\n    import never", {(0, "typing")}),
        ("if not TYPE_CHECKING:\n    import always", {(0, "always")}),
        ("import importlib\nimportlib.import_module('a.b')", {(0, "importlib"), (0, "a.b")}),
        ("__import__('a')", {(0, "a")}),
        ("try:\n    import a\nexcept ImportError:\n    import b", {(0, "a"), (0, "b")}),
    ],
)
def test_imports_are_read_from_the_text(text: str, expected: set[tuple[int, str]]) -> None:
    assert {(level, ".".join(parts)) for level, parts in named(ast.parse(text))} == expected
