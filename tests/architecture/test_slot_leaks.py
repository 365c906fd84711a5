"""The trainer, the stages and the samplers know no algorithm: what they read of its knobs is declared in algorithms/base.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from grape.algorithms import ALGORITHMS, NAMES, base
from grape.closure import files, named, parsed
from tests.architecture.test_dag import PARAMS, ROOT

MIXINS = (base.SlotParams, base.OnlineParams, base.RevisionParams, base.ValueParams, base.TrustRegionParams)
DECLARED = {name for mixin in MIXINS for name in mixin.model_fields}
OWN = {knob for algorithm in ALGORITHMS.values() for knob in algorithm.params.model_fields} - DECLARED
OUTSIDE = [
    *sorted((ROOT / "grape/training").glob("*.py")),
    *sorted((ROOT / "grape/sampling").glob("*.py")),
    *(ROOT / f"grape/stages/{name}.py" for name in ("fit", "rl", "slot_checks")),
]


def of_knobs(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What is read of an algorithm's knobs, as attributes or by getattr; and algorithms that are named."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".", 1)[-1] in HOLDERS:
            yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            yield ast.unparse(node.args[1]).strip("'"), node.lineno
        elif isinstance(node, ast.Constant) and node.value in NAMES:
            yield str(node.value), node.lineno


# What holds an algorithm's knobs there: `params` is never params.yaml in training/, and always is it in stages/.
HOLDERS = {"params", "knobs", "region", "online"}


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_knob_of_an_algorithm_is_named_outside_its_file(path: Path) -> None:
    sections = set(PARAMS) if path.parent.name == "stages" else set()
    found = [(name, line) for name, line in of_knobs(ast.parse(path.read_text(encoding="utf-8"))) if name in OWN or name in NAMES]
    assert not [(name, line) for name, line in found if name not in sections]


def test_leaks_are_found() -> None:
    leaks = "params.clip_low; self.params.scope; getattr(knobs, 'lam', 1); name == 'grpo'; learner.params.baseline"
    assert {name for name, _ in of_knobs(ast.parse(leaks))} >= {"clip_low", "scope", "lam", "grpo", "baseline"}
    assert {"clip_low", "scope", "lam", "truncated", "baseline"} <= OWN and {"epochs", "revise", "value", "delta"} <= DECLARED


def test_the_trainer_imports_what_all_algorithms_share() -> None:
    for path in OUTSIDE:
        modules = {file.stem for _, parts in named(parsed(path)) for file in files(ROOT, parts) if file.parent.name == "algorithms"}
        assert modules <= {"base", "__init__"}, path
