"""One stage's run. The stage only ever appends to the spool on disk, so no call of a stage waits for MLflow and a server that
is down costs nothing.

Who delivers (courier.py): the orchestrator that started the stage, or, for a stage started by `dvc repro`, a thread of the stage's
own process, which is joined at the end.
"""

from __future__ import annotations

import datetime
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from grape.files import write_sorted
from grape.net import scrub
from grape.project import NONCE, PARENT_RUN, Project
from grape.receipt import Receipt
from grape.track import digest, identity, registry
from grape.track.courier import Courier
from grape.track.registry import Candidate
from grape.track.spool import Spool


class Terminated(SystemExit):
    """SIGTERM, raised where the stage is, so that its `finally` blocks run and its run ends."""


class StageRun:
    """Context manager around a stage.

    Leaving it normally ends the MLflow run FINISHED and writes the receipt; an exception ends it FAILED, a signal
    KILLED, both without a receipt.

    Args:
        stage: name with its variant, e.g. ``rl@grpo-0``.
        params: the resolved parameters the stage reads, JSON-able.
        deliver: False leaves the spool to whoever watches it: the orchestrator's courier, or `grape mlflow sync`.
    """

    def __init__(self, project: Project, stage: str, params: dict[str, Any], seed: int, *, deliver: bool = True) -> None:
        self.project, self.stage, self.params, self.seed = project, stage, params, seed
        self._deliver = deliver
        self._headline: dict[str, float] = {}
        self._datasets: dict[str, str] = {}
        self._facts: dict[str, str] = {}
        self._handler: Any = None

    def __enter__(self) -> StageRun:
        self._started = time.time()
        self._nonce = os.environ.get(NONCE)
        parent = os.environ.get(PARENT_RUN)
        self._revision, self._dirty = identity.revision(self.project)
        meta = {"kind": "stage", "params": self.params, "nonce": self._nonce, "parent_run": parent, "tags": self._tags(parent)}
        self._spool = Spool.create(self.project, self.stage, meta)
        self._courier = Courier(self.project, self._spool) if self._deliver else None
        if self._courier:
            self._courier.start()
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, _terminate)
        return self

    def _tags(self, parent: str | None) -> dict[str, str]:
        tags = identity.tags("stage", f"python -m grape.stages {self.stage}", self._nonce, self._revision, self._dirty)
        tags |= {"grape.stage": self.stage, "grape.seed": str(self.seed), "grape.params_hash": identity.params_hash(self.params)}
        return tags if parent or self._nonce else {**tags, "grape.trigger": "dvc"}

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step. NaN and infinities are kept as they are."""
        self._spool.append("metrics", step=int(step), values={name: float(value) for name, value in metrics.items()})

    def dataset(self, path: str, context: str) -> None:
        """An input of the stage, by project-relative path; context is e.g. ``training`` or ``evaluation``."""
        self._datasets[path] = digest.tracked(self.project, path)
        self._spool.append("dataset", path=path, context=context, digest=self._datasets[path])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A plot or table; copied now, so the file may change afterwards."""
        if name := self._spool.keep(path):
            self._spool.append("artifact", file=name, folder=folder)

    def model(self, path: str, name: str, register: str | None = None) -> None:
        """A saved model folder, project-relative; it must stay as it is until the stage ends."""
        self._spool.append("model", **registry.model_event(self.project, path, name, register))

    def headline(self, metrics: Mapping[str, float], model: str | None = None, dataset: str | None = None) -> None:
        """The few numbers the stage is judged by: metrics without a step, also in the receipt.

        Args:
            model: the folder of the model whose numbers they are, project-relative: MLflow's page of it shows them, too.
            dataset: what they were measured on, project-relative.
        """
        values = {name: float(value) for name, value in metrics.items()}
        self._headline.update(values)
        paths = {"model": model, "dataset": dataset}
        of = {name: {"path": path, "digest": digest.tracked(self.project, path)} for name, path in paths.items() if path}
        self._spool.append("headline", values=values, **of)

    def tag(self, values: Mapping[str, str]) -> None:
        """Facts about how the stage ran, e.g. the sandbox's tier: tags of the MLflow run, and in the receipt."""
        self._facts.update(values)
        self._spool.append("tags", values=dict(values))

    def champion(self, candidates: list[Candidate]) -> None:
        """Move the champion alias to the best candidate that beats SFT, if there is one."""
        event = registry.champion_event(self.project, candidates)
        if event is not None:
            self._spool.append("champion", **event)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        ended = time.time()
        succeeded = error is None or (isinstance(error, SystemExit) and not error.code)
        if succeeded:
            self._spool.append("end", status="FINISHED")
        else:
            killed = isinstance(error, (KeyboardInterrupt, SystemExit))
            text = None if killed else scrub("".join(traceback.format_exception(error)))
            self._spool.append("end", status="KILLED" if killed else "FAILED", text=text)
        if self._courier:
            self._courier.finish()  # what is still being uploaded after LAST is `grape mlflow sync`'s
        if succeeded:
            write_sorted(self.project.receipt(self.stage), self._receipt(ended))

    def _receipt(self, ended: float) -> Receipt:
        delivered = self._spool.delivered  # None too where all is delivered and the spool gone
        known = self._courier.runs.get(self._spool.name) if self._courier else None
        return Receipt(
            stage=self.stage,
            run_id=delivered.run_id if delivered else known,
            spool=self._spool.name,
            nonce=self._nonce,
            started=_utc(self._started),
            ended=_utc(ended),
            seconds=round(ended - self._started, 2),
            peak_memory_mb=identity.peak_memory_mb(),
            git_revision=self._revision,
            git_dirty=self._dirty,
            params=self.params,
            params_hash=identity.params_hash(self.params),
            seed=self.seed,
            datasets=self._datasets,
            versions=identity.versions(),
            python=platform.python_version(),
            platform=platform.platform(),
            headline=self._headline,
            facts=self._facts,
        )


class Unrecorded(StageRun):
    """A run that nobody hears of: for the parts of a stage outside that stage, in a rehearsal."""

    def track(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def dataset(self, path: str, context: str) -> None: ...

    def headline(self, metrics: Mapping[str, float], model: str | None = None, dataset: str | None = None) -> None: ...

    def tag(self, values: Mapping[str, str]) -> None: ...


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
