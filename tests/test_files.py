"""One writer of files and folders: whole, the old one or the new one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grape.files import replacing, write_json, write_sorted, write_text


def test_the_bytes_of_each_kind_of_file(tmp_path: Path) -> None:
    write_text(tmp_path / "new/folder/a.txt", "ä\r\n\u2028")
    assert (tmp_path / "new/folder/a.txt").read_bytes() == "ä\r\n\u2028".encode()
    write_json(tmp_path / "a.json", {"b": [1], "a": "ä"})
    assert (tmp_path / "a.json").read_text() == '{\n "b": [\n  1\n ],\n "a": "ä"\n}\n'
    write_sorted(tmp_path / "a.json", {"b": float("nan"), "a": "ä"})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "ä",\n  "b": NaN\n}\n'
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))


def test_written_is_flushed_before_it_is_renamed_and_the_entry_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda one, other: (done.append("renamed"), replace(one, other)))
    with replacing(tmp_path / "model") as beside:
        beside.mkdir()
        (beside / "weights").write_bytes(b"1")
    write_text(tmp_path / "note", "2")
    assert done == ["weights", "model.partial", "renamed", tmp_path.name, "note.partial", "renamed", tmp_path.name]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_fails_leaves_the_old_one_and_nothing_beside(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kept"

    def write(text: str, place: Path) -> None:
        if kind == "folder":
            place.mkdir()
        (place / "file" if kind == "folder" else place).write_text(text)

    with replacing(path) as beside:
        write("old", beside)
    (tmp_path / "kept.partial").write_text("left by a process that was killed")
    with pytest.raises(KeyboardInterrupt), replacing(path) as beside:
        write("half", beside)
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and (path / "file" if kind == "folder" else path).read_text() == "old"
    with replacing(path) as beside:
        write("new", beside)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and (path / "file" if kind == "folder" else path).read_text() == "new"


def test_several_may_write_one_file_at_once(tmp_path: Path) -> None:
    texts = [f"{i}" * 10_000 for i in range(10)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: write_text(tmp_path / "shared", text, shared=True), texts * 5))
    assert (tmp_path / "shared").read_text() in texts and len(list(tmp_path.iterdir())) == 1
