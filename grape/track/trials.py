"""The run of one trial of `grape tune`: a child of the tune's parent run, with its knobs, its curves and its score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from grape.project import Project
from grape.track import identity
from grape.track.spool import Spool

STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class TrialRun:
    """Only ever written to the spool; the courier of the parent delivers it."""

    def __init__(self, project: Project, parent: str | None, nonce: str, name: str, params: Mapping[str, Any]) -> None:
        tags = identity.tags("trial", "grape tune", nonce, *identity.revision(project)) | {"grape.trial": name}
        self._spool = Spool.create(
            project, name, {"kind": "trial", "params": dict(params), "nonce": nonce, "parent_run": parent, "tags": tags}
        )

    def end(self, state: str, values: Mapping[str, float], history: Iterable[Mapping[str, Any]], reason: str = "") -> None:
        """
        Args:
            state: complete, pruned, failed or stopped. values: the score and what else is one number.
            history: the rounds' metrics, each with its `step`.
        """
        for row in history:
            numbers = {name: float(value) for name, value in row.items() if name != "step" and isinstance(value, (int, float))}
            self._spool.append("metrics", step=int(row["step"]), values=numbers)
        self._spool.append("headline", values=dict(values))
        self._spool.append("tags", values={"grape.state": state, **({"grape.reason": reason} if reason else {})})
        self._spool.append("end", status=STATUS[state])
