"""What must hold before a stage runs: a git repository with DVC, nobody else at work, room on the disk, no wreckage."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from grape import dvc, named, needed, slot, tuned, yamlfile
from grape.disk import free_mb, wanted_mb
from grape.errors import GrapeError
from grape.files import write_text
from grape.pipeline import mend
from grape.project import Project

Say = Callable[[str], None]


def repository(project: Project, say: Say) -> None:
    """A git repository, initialised for DVC. The first cannot be guessed, the second is done here."""
    if shutil.which("git") is None:
        raise GrapeError("git is not installed", mend="install it: DVC keeps versions with it")
    found = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=project.root, capture_output=True, text=True)
    if found.returncode:
        why = found.stderr.strip().splitlines()
        if why and "not a git repository" not in why[0]:
            raise GrapeError(f"git refuses this folder: {why[0]}", where=str(project.root), mend="see git's message")
        mend = "`git init` here (no commit and no identity is needed), then run this again"
        raise GrapeError("not a git repository", where=str(project.root), mend=mend)
    if (project.root / ".dvc" / "config").is_dir():
        raise GrapeError("a folder stands where a file should", where=".dvc/config", mend="restore the file from git")
    if not (project.root / ".dvc" / "config").is_file():
        # A project in a sub-folder of the repository is a DVC project of its own.
        sub = [] if Path(found.stdout.strip()).resolve() == project.root else ["--subdir"]
        dvc.ask(project, "init", "--quiet", *sub).answer()
        say("prepared this repository for DVC (`dvc init`); commit .dvc/ when you like")


def initialised(project: Project) -> None:
    """For commands that change nothing, not even to prepare the repository."""
    if not (project.root / ".dvc" / "config").is_file():
        mend = "`grape run` does that (in a git repository), or `git init && dvc init`"
        raise GrapeError("this project is not set up for DVC yet", where=str(project.root), mend=mend)


def inputs(project: Project, status: dvc.Status) -> None:
    """Every file a stage reads that no stage makes is there.

    Raises:
        GrapeError: one is missing; DVC would find out only when it comes to that stage.
    """
    made = [out.split("/") for stage in dvc.stages(project).values() for out in dvc.outputs(stage)]
    for stage, entries in status.items():
        for changes in (entry.get("changed deps", {}) for entry in entries if isinstance(entry, dict)):
            for path, what in changes.items():
                if what == "deleted" and not any(_overlap(path.split("/"), out) for out in made):
                    mend = "put it back, or mend the path in params.yaml or dvc.yaml"
                    raise GrapeError(f"{path} is missing", where=f"stage {stage}", mend=mend)


def _overlap(path: list[str], out: list[str]) -> bool:
    """Whether one lies within the other; a part of `out` with a `${...}` stands for any name."""
    return all("${" in b or a == b for a, b in zip(path, out, strict=False))


def version_file(project: Project) -> None:
    """Keep `grape.version` true: it stands for grape's code among what the stages of a `grape init` project read.

    A new grape then re-runs the stages, as edited code does in a checkout.
    """
    path = project.root / "grape.version"
    if path.is_file() and path.read_bytes() != version_text().encode():
        write_text(path, version_text())


def algorithm_files(project: Project) -> None:
    """`algorithms/<name>.py` of every selected algorithm: what DVC compares to see whether its code changed.

    In a checkout it is a link to grape's own file, or the user's file; for code that lies outside the project it is a card,
    kept true here.
    """
    params = yamlfile.read(project.params)
    chosen = yamlfile.at(params, "rl.algorithms")
    for name in (n for n in chosen or [] if isinstance(n, str)) if isinstance(chosen, list) else ():
        path = project.root / "algorithms" / f"{name}.py"
        if path.exists() and not slot.is_card(name, path.read_bytes().decode("utf-8", "replace")):
            continue
        with suppress(GrapeError, KeyError):  # an unknown name is refused, with its line, when params are checked
            text = slot.card(name, yamlfile.at(params, f"algorithms.{name}.{slot.USE}"), project.root)
            path.parent.mkdir(exist_ok=True)
            if not path.exists() or path.read_bytes() != text.encode():
                write_text(path, text)


def named_files(project: Project) -> None:
    """`inputs/<key>` for what params.yaml names: what DVC compares to see whether a model or a file of yours changed."""
    deps = {dep for stage in dvc.stages(project).values() for dep in stage.get("deps") or [] if isinstance(dep, str)}
    named.write(project, yamlfile.read(project.params), deps)
    if tuned.FILE in deps:
        tuned.card(project.root)


def sampler(project: Project, stages: Collection[str]) -> None:
    """
    Raises:
        GrapeError: a stage that will run samples with vLLM, whose program is not there. The stage would say so too, hours later.
    """
    if yamlfile.at(yamlfile.read(project.params), "rl.engine") != "vllm":
        return
    runs = needed.runs(project)
    reads = [runs.get(stage.removeprefix("rl@"), {}).get("rl") or {} for stage in stages if stage.startswith("rl@")]
    if any(read.get("preferences") != needed.MAKES["preferences"] for read in reads):  # who reads pairs samples nothing
        from grape.sampling.vllm_server import executable  # and with it PyTorch

        executable()


def version_text() -> str:
    return f"grape {version('grape')}\n"


def disk(project: Project) -> None:
    wanted, free = wanted_mb(), free_mb(project.root)
    if free < wanted:
        what = f"only {free:.0f} MB are free on this disk, {wanted:.0f} MB are wanted before a run"
        mend = "make room (`dvc gc --workspace` drops old versions), or set GRAPE_MIN_FREE_MB"
        raise GrapeError(what, where=str(project.root), mend=mend)


@contextmanager
def lock(project: Project, say: Say, wait: bool = True) -> Iterator[None]:
    """Hold the project: one run at a time. The kernel lets go of it when the holder ends, however it ends."""
    project.state.mkdir(parents=True, exist_ok=True)
    with (project.state / "lock").open("a+", encoding="utf-8") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
            if not wait:
                mend = "wait for its end, or leave out --no-wait to queue behind it"
                raise GrapeError(f"a run is under way here: {holder}", where=str(project.root), mend=mend)
            if not told:
                say(f"a run is under way here: {holder}; waiting for its end (Ctrl-C to give up)")
                told = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"pid {os.getpid()}, since {time.strftime('%H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def mended(project: Project, say: Say, wait: bool = True) -> None:
    """Put right what a killed run left; wait for a dvc command that somebody runs by hand."""
    for sentence in (*mend.leftovers(project), *mend.lock_file(project)):
        say(sentence)
    told = False
    while True:
        done, holders = mend.path_locks(project)
        for sentence in done:
            say(sentence)
        if not holders:
            mend.litter(project)
            return
        who = f"dvc is at work here (pid {', '.join(map(str, holders))})"
        if not wait:
            raise GrapeError(who, where=str(project.root), mend="wait for its end, or leave out --no-wait")
        if not told:
            say(f"{who}; waiting for its end")
            told = True
        time.sleep(0.3)
