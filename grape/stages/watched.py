"""The Python files that a stage of the project runs, the user's own, are among what DVC compares for it; so is all they import."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from grape import slot
from grape.closure import closure, inert
from grape.errors import GrapeError
from grape.params import Params
from grape.project import Project
from grape.stages.inputs import entry


def refuse_imports(project: Project, params: Params, name: str) -> None:
    """What the user's Python files among the dependencies of stage `name` import must be among them too. Runs none of it.

    Raises:
        GrapeError: one imports a file of the project that dvc.yaml does not declare.
    """
    _refuse(project, params, name, closure(_own(project, params, name), lambda _: [project.root]).items())


def refuse_loaded(project: Project, params: Params, name: str) -> None:
    """The same of what this process has loaded, however it was named: for the end of a stage.

    Raises:
        GrapeError: as above.
    """
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = [Path(file) for file in loaded if file]
    mine = [path for path in paths if path.is_relative_to(project.root) and not slot.library(path)]
    # What grape's own code imports is proved by its tests; only what stands in the slot may import any algorithm's file.
    proved = [project.root / part for part in ("grape", "flows")]
    slotted = project.root / "grape" / "algorithms" if name.startswith("rl@") else None
    _refuse(
        project,
        params,
        name,
        ((path, path) for path in mine if path.parent == slotted or not any(path.is_relative_to(part) for part in proved)),
    )


def _own(project: Project, params: Params, name: str) -> Iterator[Path]:
    """The Python files of the user among a stage's dependencies."""
    for dep in entry(project, params.prepare.source, name)["deps"]:
        path = project.root / dep
        if not dep.startswith("grape/") or dep == params.prepare.source:
            yield from path.rglob("*.py") if path.is_dir() else [path] if path.suffix == ".py" and path.is_file() else []


def _refuse(project: Project, params: Params, name: str, found: Iterable[tuple[Path, Path]]) -> None:
    """Refuse the first of `found` (file, who imports it) that no dependency of the stage covers."""
    kind, _, item = name.partition("@")
    covered = [(project.root / dep).resolve() for dep in entry(project, params.prepare.source, name)["deps"]]
    if kind == "rl":
        covered += _behind_a_card(project, params, item.rpartition("-")[0])
    for file, importer in found:
        path, shown = file.resolve(), file.relative_to(project.root).as_posix()
        if inert(shown) or any(path == dep or dep in path.parents for dep in covered):
            continue
        by = f"{importer.relative_to(project.root).as_posix()} imports" if importer != file else f"the stage {name} loads"
        raise GrapeError(
            f"{by} {shown}, which DVC does not watch for the stage {kind}: an edit of it would re-run nothing",
            where=f"dvc.yaml, stages.{kind}.deps",
            mend=f"add `- {shown}` there",
        )


def _behind_a_card(project: Project, params: Params, algorithm: str) -> list[Path]:
    """The files whose hash stands in algorithms/NAME.py, where that is a card."""
    path = project.root / "algorithms" / f"{algorithm}.py"
    if not path.is_file() or not slot.is_card(algorithm, path.read_text(encoding="utf-8")):
        return []
    use = (params.algorithms.get(algorithm) or {}).get(slot.USE)
    return [file.resolve() for file in slot.code(algorithm, use, project.root)]
