"""The courier: a thread that delivers what stages put into their spools.

Importing MLflow and opening its store takes a process several seconds of computing. A stage that the orchestrator started
leaves that to the orchestrator's courier, which does it once for all; a stage started by `dvc repro` has one of its own, whose
import of MLflow overlaps with the stage's work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from grape.errors import GrapeError
from grape.project import Project
from grape.track import recover
from grape.track.deliver import Delivery
from grape.track.spool import Spool
from grape.track.store import AWAY, Unreachable

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
            recover.close_dead_in(self.project, delivery.store)
        if ended:
            spool.remove()
            del self._open[spool.name]
            spool.unlock()
