"""The courier: one thread of the orchestrator that delivers what the stages put into their spools.

Importing MLflow and opening its store takes a process several seconds of computing. A stage that the orchestrator started
leaves that to the orchestrator, which has it done once; a stage started by `dvc repro` delivers for itself (run.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from grape.errors import GrapeError
from grape.project import Project
from grape.track.deliver import Delivery
from grape.track.spool import Spool
from grape.track.store import AWAY, Unreachable

logger = logging.getLogger("grape.track")
TICK = 2.0  # seconds between deliveries
RETRY = 30.0  # seconds before a store that did not answer is asked again
LAST = 300.0  # longest wait at the end, for the upload of models


class Courier(threading.Thread):
    """Delivers every spool of the project that no other process delivers, until `finish`."""

    def __init__(self, project: Project) -> None:
        super().__init__(name="grape-courier", daemon=True)
        self.project = project
        self.runs: dict[str, str] = {}  # spool -> MLflow run
        self._open: dict[str, Delivery] = {}
        self._stop_event = threading.Event()
        self._warned = False

    def run(self) -> None:
        wait = TICK
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
                ended = delivery.spool.ended
                delivery.pump()
                if delivery.run_id:
                    self.runs[delivery.spool.name] = delivery.run_id
                if ended:
                    delivery.spool.remove()
                    del self._open[delivery.spool.name]
                    delivery.spool.unlock()
        except (Unreachable, GrapeError, OSError) as error:  # OSError: of a spool on a disk that is full
            if not self._warned:
                logger.warning(AWAY, "pipeline", error)
            self._warned = True
            return False
        return True

    def _deliveries(self) -> Iterator[Delivery]:
        for spool in Spool.pending(self.project):
            if spool.name not in self._open and spool.lock():
                self._open[spool.name] = Delivery(self.project, spool)
            if spool.name in self._open:
                yield self._open[spool.name]
