"""`grape doctor`: everything that can keep grape from working, looked at, each with its mend. Changes nothing."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from grape import disk, dvc, net
from grape.errors import GrapeError
from grape.params import load
from grape.pipeline import mend, preflight, schedule
from grape.pipeline.execute import session
from grape.project import Project
from grape.sandbox.tiers import tier
from grape.track import store


@dataclass(frozen=True)
class Check:
    name: str
    wrong: bool
    found: str
    mend: str = ""

    def line(self) -> str:
        text = f"{'wrong' if self.wrong else 'ok   '}  {self.name}: {self.found}"
        return f"{text}\n         -> {self.mend}" if self.mend else text


def examine(project: Project) -> list[Check]:
    project.enter()
    ours = (_python, _packages, _repository, _parameters, _disk, _lock_file, _runs, _path_locks)
    parts = (*ours, _mlflow, _spools, _prefect, _machine, _sandbox, _vllm)
    return [check for part in parts for check in _safely(part, project)]


def _safely(part: Callable[[Project], Iterator[Check]], project: Project) -> Iterator[Check]:
    try:
        yield from part(project)
    except GrapeError as error:
        what = f"{error.where}: {error.what}" if error.where else error.what
        yield Check(part.__name__.strip("_").replace("_", " "), True, what, error.mend or "")


def _python(project: Project) -> Iterator[Check]:
    now = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", sys.version_info < (3, 11), now, "" if sys.version_info >= (3, 11) else "use 3.11 or newer")


def _packages(project: Project) -> Iterator[Check]:
    """Every dependency against the range we declare."""
    wrong = []
    for text in requires("grape") or []:
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is not installed (wanted {need.specifier})")
            continue
        if not need.specifier.contains(have, prereleases=True):
            wrong.append(f"{need.name} {have} (wanted {need.specifier})")
    if wrong:
        mend = "pip install -r requirements.lock, or `make pipeline`, which keeps .venv right"
        yield Check("packages", True, "; ".join(wrong), mend)
    else:
        shown = ("torch", "transformers", "dvc", "mlflow", "prefect")
        yield Check("packages", False, ", ".join(f"{name} {version(name)}" for name in shown))


def _repository(project: Project) -> Iterator[Check]:
    git = shutil.which("git")
    if git is None:
        yield Check("git", True, "not installed", "install git")
        return
    inside = subprocess.run([git, "rev-parse", "--git-dir"], cwd=project.root, capture_output=True, text=True)
    if inside.returncode:
        yield Check("git", True, (inside.stderr.strip().splitlines() or ["not a repository"])[0], "`git init` here")
        return
    yield Check("git", False, "a repository")
    try:
        preflight.initialised(project)
        yield Check("dvc", False, f"{version('dvc')}, set up")
    except GrapeError as error:
        yield Check("dvc", True, error.what, error.mend or "")


def _parameters(project: Project) -> Iterator[Check]:
    try:
        load(project.params)
        yield Check("params.yaml", False, "valid")
    except GrapeError as error:
        yield Check("params.yaml", True, f"{error.where}: {error.what}", error.mend or "")


def _disk(project: Project) -> Iterator[Check]:
    try:
        preflight.disk(project)
        yield Check("disk", False, f"{disk.free_mb(project.root) / 1000:.1f} GB free")
    except GrapeError as error:
        yield Check("disk", True, error.what, error.mend or "")


def _lock_file(project: Project) -> Iterator[Check]:
    try:
        yield Check("dvc.lock", False, f"{len(dvc.read_lock(project.root / 'dvc.lock'))} stages known")
    except ValueError as error:
        yield Check("dvc.lock", True, f"damaged: {str(error).splitlines()[0]}", "`grape run` restores it")


def _runs(project: Project) -> Iterator[Check]:
    """A run under way, and what a killed one left."""
    path = project.state / "lock"
    holder = ""
    if path.exists():
        with path.open("r", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read().strip()
    if holder:
        yield Check("runs", False, f"one is under way: {holder}")
        return
    stale = {record.stem: session(pid, nonce) for record, pid, nonce in mend.running(project)}
    alive = [name for name, processes in stale.items() if processes]
    if alive:
        yield Check("runs", True, f"stages of a killed run still run: {', '.join(alive)}", "`grape run` ends them")
    elif stale:
        yield Check("runs", False, f"a killed run left {', '.join(stale)}; the next run tidies up")
    else:
        yield Check("runs", False, "none under way")


def _path_locks(project: Project) -> Iterator[Check]:
    state, holders = mend.read_path_locks(project)
    bad = {"stale": "held by processes that are gone", "broken": "its file is cut short"}.get(state)
    if bad:
        yield Check("dvc path locks", True, bad, "`grape run` clears them")
    else:
        yield Check("dvc path locks", False, f"held by dvc, pid {holders}" if holders else "none held")


def _mlflow(project: Project) -> Iterator[Check]:
    if project.tracking_uri == project.own_store and not (project.state / "mlflow.db").is_file():
        yield Check("mlflow", False, f"{project.tracking_uri}, made by the first run")
        return
    try:
        store.connect(project)
        yield Check("mlflow", False, f"answers at {net.public(project.tracking_uri)}")
    except store.Unreachable as error:
        yield Check("mlflow", True, str(error), "start the server, or unset MLFLOW_TRACKING_URI; runs go on without it")


def _spools(project: Project) -> Iterator[Check]:
    runs = project.state / "runs"
    waiting = sum(1 for _ in runs.iterdir()) if runs.is_dir() else 0
    if waiting:
        yield Check("mlflow records", False, f"{waiting} not delivered yet", "`grape mlflow sync`")


def _prefect(project: Project) -> Iterator[Check]:
    url = net.prefect_api()
    if not url:
        yield Check("prefect", False, f"{version('prefect')}, a server of its own for each run")
        return
    try:
        net.prefect_health(url)
        yield Check("prefect", False, f"answers at {url}")
    except OSError as error:
        mend = "start it, unset the variable, or use --engine dvc"
        yield Check("prefect", True, f"PREFECT_API_URL={url} does not answer: {error}", mend)


def _machine(project: Project) -> Iterator[Check]:
    gpu = "a GPU" if schedule.has_gpu() else "no CUDA GPU"
    yield Check("machine", False, f"{schedule.cores()} cores, {gpu}, {schedule.default_workers()} stages side by side")


def _sandbox(project: Project) -> Iterator[Check]:
    """Only rubrics with a verifier that runs model-written code need it, so a machine without one is no fault."""
    found = tier().receipt()
    weak = ": too weak for code that a model has written; python_tests is refused"
    yield Check("sandbox", False, f"{found['tier']}{', all canaries held' if found['strong'] else weak}")


def _vllm(project: Project) -> Iterator[Check]:
    """Only where `rl.engine` names it: its program is there. Whether it starts is known when it has, a minute later."""
    try:
        engine = load(project.params).rl.engine
    except GrapeError:
        return  # `_parameters` says what is wrong with them
    if engine == "vllm":
        from grape.sampling.vllm_server import VARIABLE, executable  # and with it PyTorch

        yield Check("vllm", False, f"{VARIABLE}={executable()}")
