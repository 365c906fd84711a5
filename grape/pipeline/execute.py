"""One stage as a process: `dvc repro --single-item STAGE` under the guard, its output on the screen and in a log."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from grape import dvc
from grape.files import write_text
from grape.pipeline import guard
from grape.pipeline.screen import Screen
from grape.project import NONCE, PARENT_RUN, Project

GRACE = 10.0  # seconds a stage gets to end itself, before each harder signal
TAIL = 25  # lines of a failed stage's log that are shown again at the end

Status = Literal["ran", "cached", "failed", "blocked", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one stage; `code` is its exit code, `because` the stage or reason that kept it from running."""

    stage: str
    status: Status
    seconds: float = 0.0
    code: int = 0
    because: str = ""
    log: Path | None = None
    tail: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return self.status in ("ran", "cached")


class Exited(NamedTuple):
    """How a process ended; `complaint`: its last line that begins with ERROR."""

    code: int
    seconds: float
    log: Path
    tail: tuple[str, ...]
    complaint: str


@dataclass
class Executor:
    """Runs stages, from several threads if wanted, and can stop them all.

    Args:
        threads: how many threads each stage computes with.
        nonce: a stage whose receipt holds it ran now; any other came from the cache.
        parent: MLflow's parent run, None without one.
        after: called with each outcome, in the thread of its stage.
        before: asked before a stage begins, in its thread; an outcome keeps it from beginning.
    """

    project: Project
    screen: Screen
    threads: Mapping[str, int]
    nonce: str
    parent: str | None = None
    after: Callable[[Outcome], None] | None = None
    before: Callable[[Executor, str], Outcome | None] | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _guards: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    _early: dict[str, Future[Outcome]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    interrupted: bool = False  # by the user; then no engine may go on
    _stopping: bool = False

    def begin(self, stages: Iterable[str]) -> None:
        """Start these stages now, before the engine is ready to; its `run` then waits for them."""
        names = list(stages)
        pool = ThreadPoolExecutor(max_workers=max(len(names), 1), thread_name_prefix="early")
        self._early |= {name: pool.submit(self._observed, name) for name in names}
        pool.shutdown(wait=False)

    def run(self, stage: str) -> Outcome:
        """Run `stage`, wait for it, and remember and return what became of it."""
        early = self._early.pop(stage, None)
        self.outcomes[stage] = outcome = early.result() if early else self._observed(stage)
        return outcome

    def _observed(self, stage: str) -> Outcome:
        try:
            outcome = self._run(stage)
            if self.after is not None:
                self.after(outcome)
        except Exception as error:  # boundary: the scheduler must hear of every stage, whatever went wrong here
            outcome = Outcome(stage, "failed", code=1, because=f"{type(error).__name__}: {error}")
        if outcome.status == "failed":
            self.screen.line(stage, f"failed after {outcome.seconds:.1f} s {outcome.because}".rstrip())
        return outcome

    def _run(self, stage: str) -> Outcome:
        if self.before is not None and (kept := self.before(self, stage)) is not None:
            return kept
        exited = self.watch(stage, dvc.command("repro", "--single-item", stage), self.threads.get(stage, 1))
        if exited is None:
            return Outcome(stage, "stopped")
        code, seconds, log, tail, complaint = exited
        if code == 0:
            return Outcome(stage, "ran" if self.ran_now(stage) else "cached", seconds, log=log)
        if self._stopping:
            return Outcome(stage, "stopped", seconds, code, log=log)
        # DVC ends with 255 whatever the command ended with; only its message tells that code.
        if complaint.rstrip().endswith("exited with 2"):
            code = 2
        return Outcome(stage, "failed", seconds, code, log=log, tail=tail)

    def watch(self, name: str, words: list[str], threads: int) -> Exited | None:
        """Run a process of the project to its end, its output on the screen and in the log `name`; None: all has been stopped."""
        log = self.project.state / "logs" / f"{_file_name(name)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        process = self._start(name, words, threads)
        if process is None:
            return None
        tail: deque[str] = deque(maxlen=TAIL)
        complaint = ""
        try:
            assert process.stdout is not None
            with log.open("w", encoding="utf-8") as file:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    tail.append(line.rstrip("\n"))
                    if line.startswith("ERROR:"):
                        complaint = line
                    self.screen.line(name, line)
            code = process.wait()
        finally:
            self._finish(name)
        return Exited(code, time.monotonic() - started, log, tuple(tail), complaint)

    def ran_now(self, stage: str) -> bool:
        try:
            receipt = json.loads(self.project.receipt(stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return True  # a stage without a receipt is not one of ours; it was executed
        return bool(receipt.get("nonce") == self.nonce)

    def _start(self, stage: str, words: list[str], threads: int) -> subprocess.Popen[str] | None:
        extra = {NONCE: self.nonce, "OMP_NUM_THREADS": str(threads), "SHELL": "/bin/sh"}
        if self.parent:
            extra[PARENT_RUN] = self.parent
        how = {"cwd": self.project.root, "env": dvc.environment(self.project, extra), "text": True, "errors": "replace"}
        with self._lock:
            if self._stopping:
                return None
            self._guards[stage] = process = start(words, GRACE, stdout=subprocess.PIPE, **how)
        write_text(self._record(stage), json.dumps({"pid": process.pid, "nonce": self.nonce, "stage": stage}))
        return process

    def _finish(self, stage: str) -> None:
        with self._lock:
            process = self._guards.pop(stage)
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        process.wait()
        self._record(stage).unlink(missing_ok=True)

    def _record(self, stage: str) -> Path:
        return self.project.state / "running" / f"{_file_name(stage)}.json"

    @property
    def stopping(self) -> bool:
        return self._stopping

    def resume(self) -> None:
        """Allow stages again after a stop that was not the user's."""
        self._stopping = False
        for stage in [name for name, outcome in self.outcomes.items() if outcome.status == "stopped"]:
            del self.outcomes[stage]

    def stop(self, interrupted: bool) -> None:
        """End every stage; called from the thread that was interrupted while others wait for their stages."""
        with self._lock:
            self._stopping = True
            self.interrupted = self.interrupted or interrupted
            running = list(self._guards.values())
        for process in running:
            if process.stdin and not process.stdin.closed:
                process.stdin.close()
        try:
            for process in running:
                process.wait(timeout=4 * GRACE)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):  # asked twice, or a process that cannot be ended
            for process in running:
                kill_session(process.pid, self.nonce)


def start(words: list[str], grace: float, **how: Any) -> subprocess.Popen[Any]:
    """`words` under the guard, both outputs in one stream; `how` as Popen takes it."""
    command = guard.command(words, grace)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **how)


def stop(process: subprocess.Popen[Any]) -> None:
    """Wait for the guard to end what `start` began, and all that this began."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def _file_name(stage: str) -> str:
    return stage.replace("/", "-")  # a stage of a sub-folder is called sub/dvc.yaml:name


def session(sid: int, nonce: str) -> list[psutil.Process]:
    """The live processes of a stage: of that session, and started by that run (a session's number may be reused)."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == sid:
                process = psutil.Process(pid)
                if process.environ().get(NONCE) == nonce and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def kill_session(sid: int, nonce: str) -> None:
    for process in session(sid, nonce):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
