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
    named = {word.strip("();,.*") for word in table.split() if word[:1].isupper() and word.isascii()} - {"PPO", "SFT", "DVC", "MLflow"}
    assert {"ValuedPolicy", "AlgorithmParams", "Params", "Section", "Verdict"} <= named & classes().keys()
    assert "critic" not in " ".join(name.lower() for name, places in classes().items() if not any("reward" in p or "schema" in p for p in places))
