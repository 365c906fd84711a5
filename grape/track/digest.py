"""DVC's md5 of a tracked path: from dvc.lock, else computed the way DVC does it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from grape import dvc
from grape.project import Project


def tracked(project: Project, path: str) -> str:
    """The md5 of `path` as dvc.lock has it; for a path inside a tracked folder, the folder's.

    A path that dvc.lock does not know yet (a stage started by hand, an output of the running stage) is hashed.
    """
    outs = dvc.locked(project)
    wanted = PurePosixPath(path)
    for candidate in (wanted, *wanted.parents):
        if str(candidate) in outs:
            return outs[str(candidate)]
    return computed(project.root / path, project)


def files(project: Project | None, folder: Path) -> list[Path]:
    """The files below a folder that DVC looks at: byte code and half-written files are none of them, as .dvcignore says."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    if project is None or not folder.is_relative_to(project.root):
        return found
    patterns = project.root / ".dvcignore"
    lines = patterns.read_text(encoding="utf-8", errors="replace").splitlines() if patterns.is_file() else []
    ignored = GitIgnoreSpec.from_lines(lines)
    return [file for file in found if not ignored.match_file(file.relative_to(project.root).as_posix())]


def computed(path: Path, project: Project | None = None) -> str:
    """The md5 of a file, or of a folder as DVC computes it: over the JSON list of its files' md5 and relative paths.

    Args:
        project: whose .dvcignore says which files of a folder do not count; None: all do.
    """
    if not path.is_dir():
        return _md5(path)
    entries = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files(project, path)]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def size(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
