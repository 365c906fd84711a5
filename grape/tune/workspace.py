"""Copies of the project to tune in: its params.yaml, its dvc.lock and its files never change while trials run.

A workspace below `.grape/tune/` is a DVC project of its own with the same stages, and with the project's DVC cache, run cache
included. Its files are hard links, so that neither weights nor data are there twice. `Project` is all that the stages, DVC and the
orchestrator need to know of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from grape import dvc, named, needed, yamlfile
from grape.errors import GrapeError
from grape.files import write_text
from grape.pipeline.preflight import algorithm_files, named_files
from grape.project import Project

# What is kept by content below .grape, so that no trial samples or measures again what another has.
SHARED = ("answers", "critic-cache", "micro_batches", "reference")
ALWAYS = ("dvc.yaml", ".dvcignore")
OWN = ("params.yaml", "dvc.lock", ".dvc", ".grape")  # DVC writes dvc.lock in place: a link would be written through
CONFIG = """[core]
    no_scm = True
    analytics = False
[cache]
    dir = "{cache}"
    type = "hardlink,symlink,copy"
"""


def folder(project: Project) -> Path:
    return project.state / "tune"


def make(project: Project, place: Path, cache: Path, text: str, source: Project | None = None) -> Project:
    """A workspace at `place` with `text` as its params.yaml; one that is there is made anew, but goes on from its checkpoints.

    Args:
        project: whose cache and caches it shares. cache: of DVC. source: the workspace it is a copy of; None: the project, without
            what stages make.

    Raises:
        GrapeError: params.yaml or dvc.yaml names a file that no copy would find.
    """
    origin = source or project
    entries = _entries(project) if source is None else sorted(path.name for path in origin.root.iterdir())
    clear(place)
    for name in (name for name in entries if name not in OWN and (origin.root / name).exists()):
        link(origin.root, place, Path(name))
    if (origin.root / "dvc.lock").is_file():
        write_text(place / "dvc.lock", (origin.root / "dvc.lock").read_text(encoding="utf-8"))
    write_text(place / ".dvc" / "config", CONFIG.format(cache=cache))
    write_text(place / "params.yaml", text)
    here = Project(place)
    for name in SHARED:
        (project.state / name).mkdir(parents=True, exist_ok=True)
        here.state.mkdir(exist_ok=True)
        if not (here.state / name).is_symlink():
            (here.state / name).symlink_to(project.state / name, target_is_directory=True)
    algorithm_files(here)
    named_files(here)
    needed.write(here, needed.unneeded(here))
    return here


def clear(place: Path) -> None:
    """Remove a workspace but for its state."""
    for path in place.iterdir() if place.is_dir() else ():
        if path.name != ".grape":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


def _entries(project: Project) -> list[str]:
    """What stands in the project's folder and is read by a stage, but made by none."""
    params, stages = yamlfile.read(project.params), dvc.stages(project)
    made = {out.split("/")[0] for stage in stages.values() for out in dvc.outputs(stage)}
    source = str(yamlfile.at(params, "prepare.source", ""))
    read = [source if dep == "${prepare.source}" else dep for stage in stages.values() for dep in stage.get("deps") or []]
    paths = [*read, *_named(params), named.FOLDER, "algorithms", *ALWAYS]
    return sorted({top for path in paths if (top := _top(project, path)) and top not in made and "${" not in top})


def _named(params: object) -> Iterator[str]:
    """The values of params.yaml that may name a file of the project."""
    panel = yamlfile.at(params, "critic.panel")
    values = [yamlfile.at(params, key) for key in named.KEYS] + [yamlfile.at(judge, "model") for judge in panel or ()]
    yield from (value for value in values if isinstance(value, str) and value)


def _top(project: Project, path: str) -> str:
    """The entry of the project's folder that a path of it lies in; "" where it lies elsewhere."""
    if Path(path).is_absolute() or path.startswith("~"):
        return ""
    if os.path.normpath(path).startswith("..") and (project.root / path).exists():
        mend = "write it as an absolute path, or put it into the project's folder"
        raise GrapeError(f"{path} lies outside the project, where a copy of it would not find it", where="params.yaml", mend=mend)
    return os.path.normpath(path).split("/")[0]


def link(source: Path, target: Path, inner: Path) -> None:
    """`inner` of the folder `source` in the folder `target` as well, file by file, as hard links where the disk has them."""
    path = source / inner
    if path.is_dir() and not path.is_symlink():
        (target / inner).mkdir(parents=True, exist_ok=True)
        for child in path.iterdir():
            link(source, target, inner / child.name)
        return
    place = target / inner
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and not _inside(path, source):
        place.symlink_to(path.resolve())
        return
    try:
        os.link(path, place, follow_symlinks=False)
    except OSError:  # another disk, or somebody else's file
        place.symlink_to(os.readlink(path) if path.is_symlink() else path)


def _inside(path: Path, folder: Path) -> bool:
    """Whether a link means the same in a copy of the folder."""
    return not Path(os.readlink(path)).is_absolute() and path.resolve().is_relative_to(folder.resolve())


def stages_before(here: Project) -> list[str]:
    """The stages that those of rl and evaluate need beside these."""
    graph = dvc.graph(here).select(("rl", "evaluate"))
    return [stage for stage in graph.order() if stage.split("@")[0] not in ("rl", "evaluate")]


def sweep(project: Project, keep: Iterable[Path]) -> None:
    """Remove workspaces of trials that nobody will go on with."""
    kept = set(keep)
    for place in (folder(project) / "trials").glob("*"):
        if place not in kept:
            with suppress(OSError):
                remove(place)
