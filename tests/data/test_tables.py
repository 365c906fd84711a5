"""Files of every format give the same rows, each with its place; what cannot be read is refused with the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from pydantic import ValidationError

from grape.data import tables
from grape.data.tables import Source, find, from_hub, read
from grape.errors import GrapeError

COMMIT = "0123456789abcdef" * 2 + "01234567"
ROWS = [{"prompt": "1 + 1?", "answer": "2"}, {"prompt": 'Say "é, ü"\nand U+2028: \u2028.'}]


def write(folder: Path, kind: str) -> Path:
    import csv

    import pyarrow
    import pyarrow.parquet

    path = folder / f"prompts{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == ".json":
        path.write_text(json.dumps(ROWS))
    elif kind == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["prompt", "answer"])
            table.writeheader()
            table.writerows(ROWS)
    elif kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet", ""])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert find(tmp_path, "prompts") == path and find(tmp_path, "sft") is None
    found = list(read(path))
    assert [row for _, row in found] == ROWS
    assert all(str(path) in where for where, _ in found) and len({where for where, _ in found}) == 2


def test_nulls_of_tables_are_columns_that_are_not_there(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a", "name": None}], "x": None}, {"messages": [], "x": 1}]
    path = tmp_path / "sft.json"
    path.write_text(json.dumps(rows))
    assert [row for _, row in read(path)] == [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [], "x": 1}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"rows": 3}', r"a.json: a dict, not a list of rows"),
        ("a.json", b'[{"a": 1},\n {"a": NaN}]', r"a.json:1: not JSON: NaN is no JSON"),
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a.json:2: not JSON: Expecting value"),
        ("a.json", b'[{"a": 1}, 3]', r"a.json, row 2: a int, not a row of columns"),
        ("a.json", b"[{}]\n\xff", r"a.json:2: not UTF-8"),
        ("a.csv", b"a,b\n1\n", r"a.csv:2: the row has not as many cells"),
        ("a.csv", b"a,b\n1,2,3\n", r"a.csv:2: the row has not as many cells"),
        ("a.csv", b'a,b\n1,"2\n', r"a.csv:1: not CSV"),
        ("a.csv", b"a\n\xe9\n", r"a.csv:2: not UTF-8"),
        ("a.parquet", b"PAR1 and nothing", r"a.parquet: cannot be read as Parquet"),
        ("a.xlsx", b"PK", r"no such format: a.xlsx"),
        ("a.jsonl", b"PAR1 and nothing", r"a.jsonl: this is a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GrapeError, match=message):
        list(read(tmp_path / name))


def test_two_files_of_one_table_are_refused(tmp_path: Path) -> None:
    for kind in (".csv", ".json"):
        write(tmp_path, kind)
    with pytest.raises(GrapeError, match=r"two files of one table: prompts.json, prompts.csv"):
        find(tmp_path, "prompts")


def test_a_folder_that_datasets_did_not_save_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    with pytest.raises(GrapeError, match="datasets did not save this"):
        list(read(tmp_path / "sft"))


def test_the_hub_is_asked_for_the_very_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*names: Any, **how: Any) -> Any:
        asked.append((names, how))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(tables, "unreachable", lambda source: False)
    rows = list(from_hub(Source(hub="org/name", config="main", split="train[:2]", revision=COMMIT)))
    assert asked == [(("org/name", "main"), {"split": "train[:2]", "revision": COMMIT})]
    assert rows[0] == ("org/name, row 1", ROWS[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(({"hub": "org/name", "revision": branch}, "revision") for branch in (None, "main", "v1.0", COMMIT[:12], COMMIT.upper())),
        ({"hub": "org/name"}, "revision"),
        ({"hub": "org/name", "revision": COMMIT, "splits": "test"}, "splits"),
        ({"hub": "org/name", "revision": COMMIT, "file": "a.csv"}, "name a file"),
        ({"file": "a.csv", "split": "test"}, "those of a data set of the hub"),
        ("", "name a file"),
        ({}, "name a file"),
        (3, "dictionary"),
    ],
)
def test_a_source_is_one_place_that_stays_the_same(given: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Source.model_validate(given)


def test_a_file_needs_no_key() -> None:
    assert Source.model_validate("a.csv") == Source(file="a.csv")


def test_a_hub_that_does_not_answer_is_one_message_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` alone would try five times, and wait 1, 2, 4, 8 and 8 s between."""
    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    with pytest.raises(GrapeError, match=r"params.yaml, prepare.files, org/name: .*ConnectionError.*org/name"):
        list(from_hub(Source(hub="org/name", revision=COMMIT)))
    assert waited == []
    assert not any(place.HF_HUB_OFFLINE for place in (datasets.config, huggingface_hub.constants))


def test_a_repository_of_the_hub_is_read_by_its_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `datasets` itself reads one: a folder laid out like it."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        path = tmp_path / f"repository/main/{split}-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{"question": f"{split} {n}?", "answer": "1"} for n in range(3)]), path
        )
    told = "".join(f"  - split: {split}\n    path: main/{split}-*\n" for split in ("train", "test"))
    (tmp_path / "repository/README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{told}---\n# Mine\n")
    source = Source(hub="org/mine", config="main", split="test[:2]", revision=COMMIT)
    rows = list(tables.loaded(str(tmp_path / "repository"), source, "here"))
    assert rows == [(f"org/mine, row {n + 1}", {"question": f"test {n}?", "answer": "1"}) for n in range(2)]
    for wrong in ({"config": "other"}, {"split": "dev"}):
        with pytest.raises(GrapeError, match="here: the data set cannot be had"):
            list(tables.loaded(str(tmp_path / "repository"), source.model_copy(update=wrong), "here"))


def test_a_folder_called_like_a_data_set_is_not_read_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GrapeError, match="would be read in place"):
        list(from_hub(Source(hub="org/name", revision=COMMIT)))
