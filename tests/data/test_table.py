"""A table on the disk is the list of records it was made of, with the same refusals; token rows are the rows they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grape import files
from grape.artifacts import Demonstration, PromptRow, Record, as_row, checked, write_rows
from grape.errors import GrapeError
from grape.files import Spilled
from grape.models.chat import Row
from grape.models.encode import TokenRows
from grape.table import Table, each_row, read_table


def prompt(text: str, **more: Any) -> dict[str, Any]:
    return {"category": "any", "prompt": [{"role": "user", "content": text}], **more}


def placed(*rows: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"a.jsonl:{number}", row) for number, row in enumerate(rows, 1)]


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, None]}}}]}
TALK = [{"role": "user", "content": "\u2028 é"}, CALL, {"role": "tool", "content": "1"}, {"role": "assistant", "content": "One."}]


@pytest.mark.parametrize("limit", [32 * 2**20, 1])
def test_it_is_the_list_of_its_records(limit: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "IN_MEMORY", limit)  # 1: all of it lies on the disk
    rows: list[tuple[type[Record], dict[str, Any]]] = [
        (Demonstration, {"category": "any", "messages": TALK}),
        (Demonstration, {"id": 12, "category": "any", "messages": TALK[2:]}),
    ]
    rows[1][1]["messages"] = [TALK[0], TALK[3]]
    records, table = (made([("a", row) for _, row in rows], Demonstration) for made in (checked, lambda r, k: Table(k, r)))
    assert list(table) == records == table[:] and len(table) == 2 and table[1] == records[1]
    assert [json.loads(line) for line in table.lines()] == [as_row(record) for record in records]
    assert [turn.message() for turn in table[0].messages] == TALK
    assert list(table.select([1])) == records[1:] and list(table.select([1, 0]).select([1])) == records[:1]
    write_rows(tmp_path / "a.jsonl", records)
    assert (tmp_path / "a.jsonl").read_bytes() == b"".join(table.lines())
    assert list(each_row(tmp_path / "a.jsonl", Demonstration)) == records == list(read_table(tmp_path / "a.jsonl", Demonstration))


def test_a_row_is_found_by_its_id() -> None:
    table = Table(PromptRow, placed(prompt("a", id="x"), prompt("b"), prompt("a", id="x")))
    assert [table.where(row) for row in table] == ["a.jsonl:3", "a.jsonl:2", "a.jsonl:3"]
    assert table.where(table[1].value()) == "a.jsonl:2" and table.where(tiny_row("none")) == "none"


def tiny_row(name: str) -> PromptRow:
    return PromptRow.model_validate(prompt("?", id=name))


@pytest.mark.parametrize(
    "rows",
    [
        [prompt("a", id="x"), prompt("b"), prompt("c", id="x"), prompt("d", id="x")],
        [prompt("a", id="x"), prompt("a", id="x"), prompt("c", id="x")],
        [prompt("a", id="x"), prompt("b", id="y"), prompt("c", id="y"), prompt("d", id="x")],
        [prompt("a", id="x"), prompt("b", id="x"), prompt("")],  # the wrong row comes later
        [prompt("a", id="x"), prompt(""), prompt("b", id="x")],  # and here first
        [prompt("a"), {"category": "any"}],
    ],
)
def test_it_refuses_what_a_list_refuses_in_the_same_words(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [(f"{tmp_path}/a.jsonl:{number}", row) for number, row in enumerate(rows, 1)]
    said = []
    for made in (
        lambda: checked(lines, PromptRow),
        lambda: Table(PromptRow, lines),
        lambda: list(each_row(tmp_path / "a.jsonl", PromptRow)),
    ):
        with pytest.raises(GrapeError) as caught:
            made()
        said.append(str(caught.value))
    assert len(set(said)) == 1 and "a.jsonl:" in said[0]


@pytest.mark.parametrize("value", ["\ud800", float("nan")])
def test_what_no_line_can_say_is_refused_with_its_place(value: Any) -> None:
    call = {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": {"x": value}}}]}
    with pytest.raises(GrapeError, match=r"a.jsonl:1: cannot be written"):
        Table(Demonstration, placed({"category": "any", "messages": [TALK[0], call]}))


@pytest.mark.parametrize("limit", [32 * 2**20, 1])
def test_what_is_added_is_read_back_whatever_is_done_between(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "IN_MEMORY", limit)
    kept, entries = Spilled(), [b"one", b"", b"three" * 5000, b"4"]
    for number, entry in enumerate(entries):
        kept.append(entry)
        assert kept[0] == b"one" and kept[number] == entry
    assert list(kept) == entries and len(kept) == 4


def test_token_rows_are_read_as_they_were_written() -> None:
    rows = [Row([1, 70000], [2]), Row([5], [6, 7, 8], (False, True, False)), Row([], [9])]
    kept = TokenRows()
    for row in rows:
        kept.append(row)
    assert list(kept) == rows == kept[:] and kept[-1] == rows[2] and kept[1:] == rows[1:] and len(kept) == 3
    with pytest.raises(IndexError):
        kept[3]
