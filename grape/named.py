"""Files that params.yaml names by a key whose value may also be no file (`scratch`, a hub id).

DVC's graph cannot depend on such a value, so it depends on a card: `inputs/KEY` holds the md5 of what the key names. Before each
run or plan grape writes the cards anew; a stage that finds its card untrue refuses.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from grape import yamlfile
from grape.files import write_json, write_text
from grape.project import Project
from grape.track import digest

FOLDER = "inputs"
KEYS = ("model.base", "critic.judge.model", "evaluate.benchmarks.folder")


def write(project: Project, params: Any, paths: Collection[str]) -> None:
    """Make every card true that is among `paths`, the dependencies of dvc.yaml.

    Args:
        params: what params.yaml holds, not yet checked.
    """
    for key in untrue(project, params, paths):
        write_text(project.root / FOLDER / key, card(project, params, key))


def untrue(project: Project, params: Any, paths: Collection[str]) -> list[str]:
    """The keys among these dependencies whose card does not say what the key names now."""
    keys = [key for key in KEYS if f"{FOLDER}/{key}" in paths]
    return [key for key in keys if _said(project.root / FOLDER / key) != card(project, params, key).encode()]


def card(project: Project, params: Any, key: str) -> str:
    """A line on what the key names; on critic.judge.model one more for every judge of critic.panel, which the same stages read."""
    lines = [_line(project, yamlfile.at(params, key), key)]
    panel = yamlfile.at(params, "critic.panel") if key == "critic.judge.model" else None
    for number, judge in enumerate(panel if isinstance(panel, list) else ()):
        lines.append(_line(project, yamlfile.at(judge, "model"), f"critic.panel.{number}.model"))
    return "".join(lines)


def _line(project: Project, value: Any, key: str) -> str:
    try:
        path = project.root / Path(value).expanduser() if isinstance(value, str) and value else None
        there = path is not None and path.exists()
    except (OSError, RuntimeError):  # a name that is too long, the home of nobody
        there = False
    if path is None or not there:
        return f"# {key} names no file.\n"
    return f"# What {key} names has the md5 {_md5(project, path)}. grape keeps this true.\n"


def _said(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _md5(project: Project, path: Path) -> str:
    """Of a file or folder; read again only where a time, a size or an inode is another than it was."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    marks = [[str(file), s.st_mtime_ns, s.st_size, s.st_ino] for file in files for s in (file.stat(),)]
    note, known = project.state / "named.json", {}
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text(encoding="utf-8"))
    known = known if isinstance(known, dict) else {}
    found = known.get(str(path))
    if isinstance(found, dict) and found.get("marks") == marks and isinstance(found.get("md5"), str):
        return str(found["md5"])
    md5 = digest.computed(path)
    with suppress(OSError):  # it only spares time
        write_json(note, {**known, str(path): {"marks": marks, "md5": md5}})
    return md5
