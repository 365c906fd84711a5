"""Rubric files of every odd kind, a line a case: refused with file and line, by `grape rubric check` with exit code 2."""

from __future__ import annotations

import codecs
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grape.cli import app

GOOD = """\
version: 1
category: sums
items:
  - id: right
    question: Is it right?
    weight: 3
    kind: verify
    verifier: numeric
    options: {tolerance: 0.01}
  - id: short
    question: Is it short?
    kind: verify
    verifier: length
    options: {high: 9}
"""


def swap(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


# The file's bytes -> line of the refusal (0: the file alone), words.
WRONG: list[tuple[bytes, int, str]] = [
    (b"", 1, ""),
    (GOOD.encode()[:55], 5, ""), (b"just text\n", 1, ""), (b"- a\n- b\n", 1, ""), (b"\0" * 200, 1, "YAML"),
    (b"\x89PNG\r\n\x1a\n", 0, "UTF-8"),
    (GOOD.encode("utf-16"), 0, "UTF-8"), ((GOOD + "# Größe\n").encode("latin-1"), 0, "UTF-8"),
    (swap("version: 1", "version: [1"), 2, "YAML"), (swap("  - id: short", "\t- id: short"), 10, "YAML"),
    (swap("weight: 3", "weight: 3\n    weight: 2"), 7, "duplicate"), (swap("version: 1", "version: 1\n---\na: 1"), 2, "document"),
    (swap("version: 1", "version: *nothing"), 1, "alias"), (swap("version: 1", "version: !!python/object:os.system {}"), 1, ""),
    (swap("version: 1", "version: 1\nversoin: 2"), 2, "versoin"), (swap("category: sums\n", ""), 1, "category"),
    (swap("category: sums", "category: [sums]"), 2, "category"), (swap("category: sums", 'category: ""'), 2, "category"),
    (swap("version: 1", "version: one"), 1, "version"), (swap("weight: 3", "weight: .nan"), 6, "weight"),
    (swap("weight: 3", "weight: .inf"), 6, "weight"), (swap("weight: 3", "weight: -1"), 6, "weight"),
    (swap("weight: 3", "weight: heavy"), 6, "weight"), (swap("id: right", "name: right"), 4, "id"),
    (swap("id: right", 'id: ""'), 4, "id"), (swap("question: Is it right?\n", "question: ''\n"), 5, "question"),
    (swap("kind: verify\n    verifier: numeric", "kind: check\n    verifier: numeric"), 7, "kind"),
    (swap("verifier: numeric", "verifier: numerical"), 8, "unknown verifier"),
    (swap("verifier: numeric\n", "verifier:\n"), 4, "verifier"),
    (swap("tolerance: 0.01", "tolerance: -1"), 9, "tolerance"), (swap("tolerance: 0.01", "tolerance: .inf"), 9, "tolerance"),
    (swap("tolerance: 0.01", "tolerence: 1"), 9, "tolerence"), (swap("options: {tolerance: 0.01}", "options: 3"), 9, "options"),
    (swap("high: 9", "high: -9"), 14, "high"), (swap("high: 9", "low: 9, high: 1"), 14, "low"),
    (swap("high: 9", "high: 9, unit: bytes"), 14, "unit"),
    (swap("verifier: length\n    options: {high: 9}", "verifier: matches\n    options: {pattern: '(a'}"), 14, "regular expression"),
    (swap("verifier: length\n    options: {high: 9}", "verifier: matches"), 10, "pattern"),
    (swap("verifier: length\n    options: {high: 9}", "verifier: json_schema\n    options: {schema: {type: strin}}"), 14, ""),
    (swap("verifier: length\n    options: {high: 9}", "verifier: format\n    options: {form: poem}"), 14, "form"),
    (swap("id: short", "id: right"), 10, "stands twice"), (swap("id: short", "id: short\n    parent: short"), 11, "parent"),
    (swap("id: right", "id: right\n    parent: short"), 5, "parent"),
    (swap("id: short", "id: short\n    gate: perhaps"), 11, "gate"),
    (swap("version: 1", "version: 1\nrevise_prompt: Again."), 2, "critique"),
    (swap("version: 1", "version: 1\ncritic_prompt: '{question}'").replace(
        b"verify\n    verifier: length\n    options: {high: 9}", b"critic"), 2, "{response}"),
    (GOOD.split("  - id")[0].encode() + b"  []\n", 3, ""), (swap("items:", "items: {}\nother:"), 3, ""),
]  # fmt: skip


@pytest.fixture
def rubric(project_dir: Path) -> Path:
    shutil.rmtree(project_dir / "rubrics")
    (project_dir / "rubrics").mkdir()
    return project_dir / "rubrics" / "sums.yaml"


@pytest.mark.parametrize(("data", "line", "words"), WRONG, ids=lambda x: repr(x)[:70])
def test_a_wrong_rubric(rubric: Path, data: bytes, line: int, words: str) -> None:
    rubric.write_bytes(data)
    result = CliRunner().invoke(app, ["rubric", "check"])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert f"sums.yaml:{line}" in result.stderr if line else "sums.yaml" in result.stderr, result.stderr
    assert words in result.stderr and result.stdout == "", result.stderr


def test_a_folder_that_holds_none(rubric: Path) -> None:
    for make in (lambda: None, lambda: rubric.with_suffix(".yml").write_text(GOOD)):
        make()
        result = CliRunner().invoke(app, ["rubric", "check"])
        assert result.exit_code == 2 and "rubrics" in result.stderr and " -> " in result.stderr
    rubric.with_suffix(".yml").unlink()
    rubric.mkdir()
    result = CliRunner().invoke(app, ["rubric", "check"])
    assert result.exit_code == 2 and "sums.yaml" in result.stderr


@pytest.mark.parametrize("data", [GOOD.encode(), codecs.BOM_UTF8 + GOOD.encode(), GOOD.replace("\n", "\r\n").encode()])
def test_a_right_rubric(rubric: Path, data: bytes) -> None:
    rubric.write_bytes(data)
    result = CliRunner().invoke(app, ["rubric", "check"])
    assert result.exit_code == 0 and "sums" in result.stdout
