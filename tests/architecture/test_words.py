"""One word means one thing: no two classes of grape share a name, and the table of words in grape/__init__.py is true."""

from __future__ import annotations

import ast
from collections import defaultdict

import grape
from tests.architecture.test_imports import MODULES


def classes() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return found


def test_no_two_classes_share_a_name() -> None:
    assert {name: places for name, places in classes().items() if len(places) > 1} == {}


def test_the_table_of_words_names_what_is_there() -> None:
    table = (grape.__doc__ or "").partition("One word means one thing")[2]
    for name in ("ValuedPolicy", "AlgorithmParams", "Params", "Section", "Verdict", "Verdicts"):
        assert name in table and name in classes()


def test_the_critic_is_the_judge_and_nothing_else() -> None:
    """The value model was called so too."""
    elsewhere = [name for name, places in classes().items() if not all("reward" in place or "schema" in place for place in places)]
    assert not [name for name in elsewhere if "critic" in name.lower()]
