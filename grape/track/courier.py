"""Who delivers spools, and when: the courier, a thread, while runs go on; `sync` what an outage or a crash left behind.

Importing MLflow and opening its store takes a process several seconds of computing. A stage that the orchestrator started
leaves that to the orchestrator's courier, which does it once for all; a stage started by `dvc repro` has one of its own, whose
import of MLflow overlaps with the stage's work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from grape.errors import GrapeError
from grape.net import scrub
from grape.project import Project
from grape.track.deliver import Delivery
from grape.track.identity import is_dead
from grape.track.spool import Spool
from grape.track.store import AWAY, Store, Unreachable, connect

logger = logging.getLogger("grape.track")
GRACE = 4.0  # seconds before the first delivery for one stage, whose own imports go first
TICK = 2.0  # seconds between deliveries
RETRY = 30.0  # seconds before a store that did not answer is asked again
LAST = 300.0  # longest wait at the end, for the upload of models


class Courier(threading.Thread):
    """Delivers until `finish`, and removes what it has delivered to the end. Warns once when the store does not answer.

    Args:
        spool: the one to deliver, locked from now on; None: every spool of the project that no other process delivers.
    """

    def __init__(self, project: Project, spool: Spool | None = None) -> None:
        super().__init__(name="grape-courier", daemon=True)
        self.project, self._one = project, spool is not None
        self.runs: dict[str, str] = {}  # spool -> MLflow run
        self._open: dict[str, Delivery] = {}
        self._stop_event = threading.Event()
        self._warned = False
        self._swept = spool is None  # the orchestrator has ended dead runs before it began
        if spool is not None:
            spool.lock()
            self._open[spool.name] = Delivery(project, spool)

    def run(self) -> None:
        wait = GRACE if self._one else TICK
        while not self._stop_event.wait(wait):
            wait = TICK if self._round() else RETRY
        self._round()
        for delivery in self._open.values():
            delivery.spool.unlock()

    def finish(self) -> None:
        """Deliver what is left; returns when that is done, or cannot be done now."""
        self._stop_event.set()
        self.join(LAST)

    def _round(self) -> bool:
        """Deliver once; False when the store does not answer."""
        try:
            for delivery in list(self._deliveries()):
                self._deliver(delivery)
        except (Unreachable, GrapeError, OSError) as error:  # OSError: of a spool on a disk that is full
            if not self._warned:
                logger.warning(AWAY, "stage" if self._one else "pipeline", error)
            self._warned = True
            return False
        return True

    def _deliveries(self) -> Iterator[Delivery]:
        if self._one:
            yield from self._open.values()
            return
        for spool in Spool.pending(self.project):
            if spool.name not in self._open and spool.lock():
                self._open[spool.name] = Delivery(self.project, spool)
            if spool.name in self._open:
                yield self._open[spool.name]

    def _deliver(self, delivery: Delivery) -> None:
        spool = delivery.spool
        ended = spool.ended
        try:
            delivery.pump()
        finally:
            if delivery.run_id:
                self.runs[spool.name] = delivery.run_id
        if not self._swept:
            self._swept = True
            close_dead_in(self.project, delivery.store)
        if ended:
            spool.remove()
            del self._open[spool.name]
            spool.unlock()


def sync(project: Project) -> list[str]:
    """Deliver every spool that no live process is delivering; the names of the stages delivered, oldest first.

    Doing it again does nothing: a delivered spool is gone, and a half-delivered one goes on where it stopped.

    Raises:
        GrapeError: the store does not answer.
    """
    _end_dead_spools(project)
    try:
        return [stage for spool in Spool.pending(project) if (stage := _delivered(project, spool))]
    except Unreachable as error:
        mend = "start the server, or check MLFLOW_TRACKING_URI, then run `grape mlflow sync` again; nothing is lost"
        raise GrapeError(f"MLflow cannot be reached: {error}", mend=mend) from error


def _delivered(project: Project, spool: Spool) -> str | None:
    """The stage whose spool is delivered to its end now; None where another process does so, or its run has not ended."""
    if not spool.lock():
        return None
    try:
        if not spool.ended:
            return None  # its process is between making the folder and taking the lock
        stage = str(spool.meta["stage"])
        Delivery(project, spool).pump()
        spool.remove()
        return stage
    finally:
        spool.unlock()


def close_dead_runs(project: Project) -> int:
    """End as FAILED every run of this host whose process is gone, e.g. after SIGKILL; how many.

    Whatever an earlier run could not deliver any more is delivered too. Does not import MLflow when this project has
    neither a database nor a server, nor fail when it does not answer.
    """
    ended = len(_end_dead_spools(project))
    left = [spool for spool in Spool.pending(project) if spool.ended]
    if not left and project.tracking_uri == project.own_store and not (project.state / "mlflow.db").is_file():
        return 0
    try:
        store = connect(project)
        for spool in left:
            _delivered(project, spool)
        return ended + close_dead_in(project, store)
    except Unreachable:
        return ended


def close_dead_in(project: Project, store: Store) -> int:
    """The runs MLflow still shows as RUNNING whose process is gone and which have no spool here."""
    closed = 0
    spools = {spool.name for spool in Spool.pending(project)}
    try:
        runs = store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'", max_results=1000)
        for run in runs:
            if run.data.tags.get("grape.spool") not in spools and is_dead(run.data.tags):
                store.client.set_tag(run.info.run_id, "grape.note", "the process was killed")
                store.client.set_terminated(run.info.run_id, "FAILED")
                closed += 1
    except Exception as error:  # boundary: whatever MLflow raises here is a store that went away
        raise Unreachable(scrub(str(error))) from error
    return closed


def _end_dead_spools(project: Project) -> list[Spool]:
    """Give each spool whose process died without ending it its last event."""
    ended = []
    for spool in Spool.pending(project):
        if not is_dead(spool.meta["tags"]) or spool.ended:
            continue
        spool.append("tags", values={"grape.note": "the process was killed"})
        spool.append("end", status="FAILED")
        ended.append(spool)
    return ended
