"""The parent run of one pipeline run: a child per stage, and every headline metric, of cached stages as well.

The orchestrator is one process with one parent at a time, called from several threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.project import Project
from grape.track import identity
from grape.track.courier import Courier
from grape.track.deliver import Delivery
from grape.track.spool import Spool
from grape.track.store import AWAY, Unreachable

logger = logging.getLogger("grape.track")


class _Parent:
    """A spool and its delivery in this thread, which gives up at the first failure until the end."""

    def __init__(self, project: Project, nonce: str, plan: Mapping[str, Any], name: str) -> None:
        tags = identity.tags("pipeline", f"grape run {name}", nonce, *identity.revision(project))
        meta = {"kind": "pipeline", "params": {"plan": plan}, "nonce": nonce, "parent_run": None, "tags": tags}
        self.nonce, self.spool = nonce, Spool.create(project, name, meta)
        self.spool.lock()
        self.delivery = Delivery(project, self.spool)
        self.courier = Courier(project)
        self.stages: list[dict[str, Any]] = []
        self._away = False

    def pump(self, last: bool = False) -> bool:
        if self._away and not last:
            return False
        try:
            self.delivery.pump()
        except Unreachable as error:
            if not self._away:
                logger.warning(AWAY, "pipeline", error)
            self._away = True
            return False
        return True


_lock = threading.Lock()
_current: _Parent | None = None


def open_parent(project: Project, nonce: str, plan: Mapping[str, Any], name: str = "pipeline") -> str | None:
    """Make the store if need be and a run for this pipeline run; its id, or None when MLflow does not answer.

    Raises:
        GrapeError: MLFLOW_TRACKING_URI names a kind of store MLflow no longer writes to.
    """
    global _current
    with _lock:
        _current = _Parent(project, nonce, plan, name)
        try:
            _current.pump()
        except BaseException:
            _current.spool.remove()  # nothing has run yet: leave nothing behind
            _current = None
            raise
        _current.courier.start()
        return _current.delivery.run_id


def link_cached(project: Project, parent_id: str | None, stage: str, receipt: Mapping[str, Any]) -> None:
    """Copy a stage's headline metrics from its receipt into the parent as `<stage>/<metric>`, and name its run.

    For every stage: one that did not run now is tagged `cached`. Needs no MLflow run to exist but the parent.
    """
    with _lock:
        if _current is None:
            return  # no parent was opened: a stage run alone
        ran = receipt.get("nonce") == _current.nonce
        run_id = receipt.get("run_id") or _current.courier.runs.get(str(receipt.get("spool")))
        values = {f"{stage}/{name}": float(value) for name, value in receipt.get("headline", {}).items()}
        if values:
            _current.spool.append("headline", values=values)
        tags = {f"grape.stage.{stage}": f"{'ran' if ran else 'cached'} {run_id or receipt.get('spool')}"}
        _current.spool.append("tags", values=tags)
        _current.stages.append({"stage": stage, "ran": ran, "run_id": run_id, "seconds": receipt.get("seconds")})
        _current.pump()


def note(project: Project, tags: Mapping[str, str], file: Path, folder: str) -> None:
    """Facts about the pipeline run as tags of the parent, and the file that they come from among its artifacts."""
    with _lock:
        if _current is None:
            return
        _current.spool.append("tags", values=dict(tags))
        if name := _current.spool.keep(file):
            _current.spool.append("artifact", file=name, folder=folder)
        _current.pump()


def close_parent(project: Project, parent_id: str | None, status: str, summary: str) -> None:
    """End the parent: status FINISHED, FAILED or KILLED; the summary becomes the run's description (Markdown)."""
    global _current
    with _lock:
        parent, _current = _current, None
        if parent is None:
            return
        parent.courier.finish()
        parent.spool.append("tags", values={"mlflow.note.content": _note(summary, parent)})
        parent.spool.append("end", status=status)
        delivered = parent.pump(last=True)
        parent.spool.unlock()
        if delivered:
            parent.spool.remove()


def _note(summary: str, parent: _Parent) -> str:
    lines = [summary, "", *(["| stage | | seconds | run |", "|---|---|---|---|"] if parent.stages else [])]
    for row in parent.stages:
        lines.append(f"| {row['stage']} | {'ran' if row['ran'] else 'cached'} | {row['seconds']} | {_link(row, parent)} |")
    return "\n".join(lines)


def _link(row: Mapping[str, Any], parent: _Parent) -> str:
    run_id = row["run_id"]
    if run_id is None or parent.delivery.run_id is None:
        return ""
    return f"[{run_id[:8]}](#/experiments/{parent.delivery.store.experiment_id}/runs/{run_id})"
