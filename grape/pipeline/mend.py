"""What a killed run leaves behind, found and put right: processes, DVC's lock on paths, a half-written dvc.lock.

Only the holder of the project's lock may mend. Each function returns what it did, one sentence each, for the user.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from grape import dvc
from grape.files import write_text
from grape.pipeline.execute import GRACE, kill_session, session
from grape.project import Project


def leftovers(project: Project) -> list[str]:
    """End the stages of a run that is gone. Their guards do so by themselves; this waits for them, or helps."""
    done = []
    for record, pid, nonce in running(project):
        until = time.monotonic() + 3 * GRACE
        waited = False
        while session(pid, nonce) and time.monotonic() < until:
            waited = True
            time.sleep(0.1)
        kill_session(pid, nonce)
        record.unlink(missing_ok=True)
        if nonce:
            done.append(f"{record.stem}: the run it belonged to was killed" + ("; its processes have ended now" if waited else ""))
    return done


def running(project: Project) -> Iterator[tuple[Path, int, str]]:
    """The record of every stage that was begun and not ended, with its session and its run; -1 and "" where it is damaged."""
    for record in sorted((project.state / "running").glob("*.json")):
        try:
            data = json.loads(record.read_text(encoding="utf-8"))
            yield record, int(data["pid"]), str(data["nonce"])
        except (OSError, ValueError, KeyError, TypeError):
            yield record, -1, ""


def read_path_locks(project: Project) -> tuple[Literal["none", "whole", "stale", "broken"], list[int]]:
    """How `.dvc/tmp/rwlock` is, and the pids of live dvc processes that hold paths.

    DVC itself drops an entry whose pid is gone, but neither a file cut short nor a pid given to another program since.
    """
    with _guard(project):
        state, holders, _ = _path_locks(project)
    return state, holders


def path_locks(project: Project) -> tuple[list[str], list[int]]:
    """Clear DVC's lock on paths of the dead. Returns what was done and the pids of the living that hold some."""
    path = project.root / ".dvc" / "tmp" / "rwlock"
    with _guard(project):
        state, holders, kept = _path_locks(project)
        if state == "broken":
            path.unlink(missing_ok=True)
            return ["DVC's lock on paths (.dvc/tmp/rwlock) was cut short: removed"], []
        if state == "stale":
            write_text(path, json.dumps(kept))
            return ["DVC's lock on paths (.dvc/tmp/rwlock) held entries of a process that is gone: removed"], holders
    return [], holders


@contextmanager
def _guard(project: Project) -> Iterator[None]:
    """Hold the lock under which dvc rewrites the file, so that a write under way is not taken for a broken one."""
    path = project.root / ".dvc" / "tmp" / "rwlock.lock"
    if not path.parent.is_dir():
        yield
        return
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # dvc holds it for the time of a small write; the kernel frees a dead one's
        yield


def _path_locks(project: Project) -> tuple[Literal["none", "whole", "stale", "broken"], list[int], dict[str, Any]]:
    path = project.root / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return "none", [], {}
    try:
        locks = json.loads(path.read_text(encoding="utf-8"))
        write = {p: info for p, info in locks.get("write", {}).items() if _is_dvc(info)}
        read = {p: left for p, infos in locks.get("read", {}).items() if (left := [i for i in infos if _is_dvc(i)])}
    except (ValueError, AttributeError, KeyError, TypeError):
        return "broken", [], {}
    holders = sorted({int(i["pid"]) for i in [*write.values(), *(i for infos in read.values() for i in infos)]})
    kept = {key: value for key, value in (("write", write), ("read", read)) if value}
    whole = kept == {key: value for key, value in locks.items() if value}
    return "whole" if whole else "stale", holders, kept


def _is_dvc(info: Any) -> bool:
    """Whether the process of a lock entry lives and is a dvc one."""
    try:
        line = psutil.Process(int(info["pid"])).cmdline()
    except psutil.Error:
        return False
    return any(Path(word).name == "dvc" for word in line)  # `dvc repro` or `python -m dvc repro`


# As DVC names what it is about to rename into place.
_HALF = re.compile(r".*\.[A-Za-z0-9_-]{22}\.tmp")
DAY = 86400.0


def litter(project: Project) -> None:
    """Remove what dead processes left half made: files that DVC was about to rename, temporary folders, records of runs that never
    began. To be called when no dvc process holds a path; says nothing, since nothing of it was anybody's."""
    for place in {project.root / out.split("/")[0] for stage in dvc.stages(project).values() for out in dvc.outputs(stage)}:
        _half_made(place, age=0.0)
    _half_made(project.root / ".dvc" / "cache", age=0.0)
    if any(path.is_file() and b"[cache]" in path.read_bytes() for path in (project.root / ".dvc").glob("config*")):
        _half_made(dvc.cache_folder(project), age=DAY)  # elsewhere, where other projects may be filling it
    for folder in (project.state / "tmp").glob("*"):
        if not (folder.name.isdecimal() and _alive(int(folder.name), folder.stat().st_mtime)):
            shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink(missing_ok=True)
    for record in (project.state / "runs").glob("*"):
        if not any(path.is_file() and path.stat().st_size for path in record.rglob("*")):
            shutil.rmtree(record, ignore_errors=True)


def _half_made(place: Path, age: float) -> None:
    for folder, _, names in os.walk(place):
        for name in filter(_HALF.fullmatch, names):
            path = Path(folder, name)
            if path.lstat().st_mtime <= time.time() - age:
                path.unlink(missing_ok=True)


def _alive(pid: int, since: float) -> bool:
    """Whether the process lives that made something at the time `since`, and not another of its number."""
    try:
        return psutil.Process(pid).create_time() <= since + 1
    except psutil.Error:
        return False


def lock_file(project: Project) -> list[str]:
    """Bring back dvc.lock from its verified copy when it is cut short; without a copy, set the part aside.

    Either way nothing is lost: what was trained stays in DVC's cache and is found again by what went in.
    """
    path = project.root / "dvc.lock"
    try:
        dvc.read_lock(path)
        return []
    except ValueError as error:
        why = str(error).splitlines()[0]
    copy = _copy(project)
    try:
        whole = copy.exists() and bool(dvc.read_lock(copy))
    except ValueError:
        whole = False
    if whole:
        write_text(path, copy.read_text(encoding="utf-8"))
        return [f"dvc.lock was damaged ({why}): restored from its last good copy"]
    aside = project.state / f"dvc.lock.damaged-{int(time.time())}"
    shutil.move(path, aside)
    place = f"set aside as {aside.relative_to(project.root)}; results already made are found in DVC's cache"
    return [f"dvc.lock was damaged ({why}) and there is no good copy: {place}"]


def keep_lock_file(project: Project) -> None:
    """Keep a copy of dvc.lock, if it is whole."""
    path = project.root / "dvc.lock"
    try:
        if dvc.read_lock(path):
            write_text(_copy(project), path.read_text(encoding="utf-8"))
    except ValueError:
        return  # the next start mends it


def _copy(project: Project) -> Path:
    return project.state / "dvc.lock"
