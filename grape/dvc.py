"""DVC as a program: what it is asked, its graph, its lock file.

`dvc.repo` is undocumented and changes between releases, so everything here goes through the command line and what it
prints for machines (`status --json`, `dag --dot`), and through `dvc.lock`, whose schema is public.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from grape import disk, yamlfile
from grape.errors import GrapeError
from grape.project import Project

Status = dict[str, list[Any]]  # stage -> what changed, as `dvc status --json` prints it; {} when all is up to date

_EDGE = re.compile(r'"([^"]+)" -> "([^"]+)";')
_NODE = re.compile(r'^"([^"]+)";$', re.MULTILINE)
_HASH = re.compile(r"^[0-9a-f]{32}(\.dir)?$")


@dataclass(frozen=True)
class Graph:
    """`needs[stage]` = the stages that make what it reads; keys stand in the order of dvc.yaml, matrices expanded."""

    needs: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_dot(cls, text: str) -> Graph:
        needs: dict[str, list[str]] = {name: [] for name in _NODE.findall(text)}
        for before, after in _EDGE.findall(text):
            needs.setdefault(before, [])
            needs.setdefault(after, []).append(before)
        return cls({name: tuple(before) for name, before in needs.items()})

    def select(self, targets: Iterable[str]) -> Graph:
        """The part of the graph that makes `targets`: they and all they need. `rl` stands for every `rl@...`."""
        chosen: list[str] = []
        for target in targets:
            found = [name for name in self.needs if name == target or name.split("@")[0] == target]
            if not found:
                raise GrapeError(f"no stage {target!r}", where="dvc.yaml", mend=f"one of: {', '.join(self.needs)}")
            chosen += found
        keep: set[str] = set()
        while chosen:
            name = chosen.pop()
            if name not in keep:
                keep.add(name)
                chosen += self.needs[name]
        return self.only(keep)

    def only(self, keep: set[str]) -> Graph:
        return Graph({name: tuple(n for n in needs if n in keep) for name, needs in self.needs.items() if name in keep})

    def order(self) -> list[str]:
        """A topological order that otherwise keeps the order of dvc.yaml."""
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in done:
                for before in self.needs[name]:
                    visit(before)
                done[name] = None

        for name in self.needs:
            visit(name)
        return list(done)

    def beside(self) -> dict[str, int]:
        """For every stage, how many others may run at the same time: neither needs the other."""
        before: dict[str, set[str]] = {}
        for name in self.order():
            before[name] = {name}.union(*(before[need] for need in self.needs[name]))
        return {name: sum(1 for other in before if other not in before[name] and name not in before[other]) for name in before}


@dataclass
class Inquiry:
    """A dvc command that is running; `answer()` waits for what it prints."""

    process: subprocess.Popen[str]
    args: tuple[str, ...]
    root: Path

    def answer(self) -> str:
        """What dvc printed; GrapeError where it failed, with its own last words."""
        out, err = self.process.communicate()
        if self.process.returncode and disk.says_full(err):
            raise disk.full(f"`dvc {' '.join(self.args)}`", self.root)
        if self.process.returncode:
            raise GrapeError(f"`dvc {' '.join(self.args)}` failed: {_last_error(err)}", mend="`grape doctor` looks for the cause")
        return out

    def drop(self) -> None:
        """The answer is not wanted any more."""
        self.process.kill()
        self.process.communicate()


def _last_error(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1]


def environment(project: Project, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a dvc process gets: the project's variables, and this very Python first on the PATH (`cmd: python3 ...`)."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # The terminal's encoding is ours to care for; between the processes it is UTF-8.
    ours = {"PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:replace"}
    return {**os.environ, **project.environment(), **ours, **(extra or {})}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "dvc", "--wait-for-lock", *args]


def ask(project: Project, *args: str) -> Inquiry:
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    process = subprocess.Popen(command(*args), cwd=project.root, env=environment(project), errors="replace", **pipes)
    return Inquiry(process, args, project.root)


def ask_status(project: Project) -> Inquiry:
    return ask(project, "status", "--json")


def read_status(text: str) -> Status:
    status: Status = json.loads(text or "{}")
    return status


def stages(project: Project) -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml as they are written, templates not filled in; of a `foreach`, what it does for each.

    Raises:
        GrapeError: the file cannot be read, or is none of DVC's.
    """
    path = project.root / "dvc.yaml"
    data = yamlfile.read(path)
    found = (data.get("stages") or {}) if isinstance(data, dict) else None
    if not isinstance(found, dict) or not all(isinstance(stage, dict) for stage in found.values()):
        what = "this is no pipeline of DVC: `stages` must be a mapping of stages"
        raise GrapeError(what, where=path.name, mend="restore it from git or from `grape init`")
    return {name: stage["do"] if isinstance(stage.get("do"), dict) else stage for name, stage in found.items()}


def outputs(entry: Mapping[str, Any]) -> list[str]:
    """The paths a stage of dvc.yaml makes."""
    outs = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind) or []]
    return [out if isinstance(out, str) else str(next(iter(out))) for out in outs]


def graph(project: Project) -> Graph:
    return Graph.from_dot(ask(project, "dag", "--dot").answer())


def read_lock(path: Path) -> dict[str, Any]:
    """The stages of a dvc.lock; {} when there is no file.

    Raises:
        ValueError: the file is cut short or otherwise not a whole lock file. DVC rewrites it in place, so a kill in
            that moment leaves a part of it, which need not be invalid YAML: hashes and endings are looked at too.
    """
    if not path.exists():
        return {}
    try:
        return dict(_whole_lock(yamlfile.text_of(path), path.name))
    except GrapeError as error:
        raise ValueError(error.what) from error


@lru_cache(maxsize=2)  # one look at a project reads it three times, and a league's takes half a second each
def _whole_lock(text: str, name: str) -> dict[str, Any]:
    data = yamlfile.parse(text, name)
    if not isinstance(data, dict) or "schema" not in data or not text.endswith("\n"):
        raise ValueError("it is cut short")
    stages = data.get("stages") or {}
    if not isinstance(stages, dict):
        raise ValueError("it is damaged")
    for name, stage in stages.items():
        if not isinstance(stage, dict) or not stage.get("cmd"):
            raise ValueError(f"the entry of {name} is cut short")
        lists = [stage.get("deps") or [], stage.get("outs") or []]
        if not all(isinstance(items, list) and all(isinstance(item, dict) for item in items) for items in lists):
            raise ValueError(f"the entry of {name} is damaged")
        for item in chain(*lists):
            if not item.get("path") or ("md5" in item and not _HASH.match(str(item["md5"]))):
                raise ValueError(f"the entry of {name} is cut short")
            if not item.keys() - {"path", "hash", "size", "nfiles", "isexec"}:
                raise ValueError(f"the entry of {name} has no hash for {item['path']}")
    return stages


def locked(project: Project) -> dict[str, str]:
    """Every output in dvc.lock: project-relative path -> md5 (a folder's ends in `.dir`); {} where the file is damaged."""
    path = project.root / "dvc.lock"
    return _locked(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=1)
def _locked(path: Path, changed: int) -> dict[str, str]:
    try:
        stages = read_lock(path)
    except ValueError:
        return {}  # cut off by a kill: the next run mends it; digests can be computed
    return {out["path"]: str(out["md5"]) for stage in stages.values() for out in stage.get("outs") or [] if "md5" in out}


def cached(cache: Path, md5: str) -> bool:
    """Whether DVC's cache holds the bytes of this hash (of a folder: its list of files)."""
    return (cache / "files" / "md5" / md5[:2] / md5[2:]).exists()


def cache_folder(project: Project) -> Path:
    return Path(ask(project, "cache", "dir").answer().strip())
