"""What the orchestrator asks of the rest of grape. What imports torch, as params do, is imported at the first call.

Tests of the orchestrator put in `Hooks` of their own and drive any DVC project.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from grape import needed, track
from grape.dvc import Graph
from grape.files import write_text
from grape.project import Project
from grape.rehearsal import record
from grape.rehearsal.record import Rehearsal
from grape.track.store import checked_uri


def _identity(params: Path) -> str:
    """Of the file, of dvc.yaml, and of the code that checks them."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256(params.read_bytes() + params.with_name("dvc.yaml").read_bytes())
    mine = sorted((params.parent / "algorithms").glob("*.py"))
    code = [package / name for name in ("closure.py", "params.py", "schema.py", "slot.py", "stages/watched.py")]
    for path in (*code, *sorted((package / "algorithms").glob("*.py")), *mine):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Hooks:
    """Parameters and tracking, as grape's own stages need them."""

    def check(self, params: Path) -> None:
        """Raises GrapeError when params.yaml is not valid, or the user's code reads what dvc.yaml does not declare.

        Checking imports the algorithms and with them torch, which takes longer than all else a run with nothing to do
        does; so a file once found valid, by the same code, is not checked again.
        """
        note = params.parent / ".grape" / "params.valid"
        key = _identity(params)
        if note.is_file() and note.read_bytes() == key.encode():
            return
        from grape.params import load
        from grape.stages.watched import refuse_imports

        values = load(params)
        runs = [f"{algorithm}-{values.rl.seeds[0]}" for algorithm in values.rl.algorithms]
        for stage in ("prepare", *(f"{kind}@{run}" for run in runs for kind in ("rl", "evaluate", "test"))):
            refuse_imports(Project(params.parent.resolve()), values, stage)
        write_text(note, key)

    def unneeded(self, project: Project) -> dict[str, str]:
        """Stage -> why it is left out. Raises GrapeError: what `needed.answered` refuses."""
        return needed.unneeded(project)

    def notes(self, project: Project, todo: Collection[str]) -> tuple[str, ...]:
        """What is to be known of the stages that may run."""
        if not any(stage.startswith("test@") for stage in todo):
            return ()
        from grape import looks

        return (looks.sentence(project),)

    def edit(self, params: Path, assignments: list[str]) -> None:
        from grape.params import set_values

        set_values(params, assignments)

    def refuse(self, project: Project) -> None:
        """Raises GrapeError when MLFLOW_TRACKING_URI names no store; asks nobody."""
        checked_uri(project)

    def open(self, project: Project, nonce: str, plan: dict[str, Any], name: str) -> str | None:
        """End what a killed run left open in MLflow, then begin this run's parent."""
        track.close_dead_runs(project)
        return track.open_parent(project, nonce, plan, name)

    def link(self, project: Project, parent: str | None, stage: str) -> None:
        receipt = self.receipt(project, stage)
        if receipt is not None:
            track.link_cached(project, parent, stage, receipt)

    def rehearsed(self, project: Project, rehearsal: Rehearsal) -> None:
        tags = {f"grape.rehearsal.{run}": rehearsal.summary() for run in rehearsal.runs}
        track.note(project, tags, record.place(project, rehearsal.key), "rehearsal")

    def close(self, project: Project, parent: str | None, status: str, summary: str) -> None:
        track.close_parent(project, parent, status, summary)

    def after_idle(self, project: Project) -> None:
        """Nothing to run; but a run killed at its very end may still be open in MLflow."""
        runs = project.state / "runs"
        if runs.is_dir() and any(runs.iterdir()):
            track.close_dead_runs(project)

    def receipt(self, project: Project, stage: str) -> dict[str, Any] | None:
        try:
            value = json.loads(project.receipt(stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def receipts(self, project: Project, graph: Graph) -> dict[str, dict[str, Any]]:
        found = {stage: self.receipt(project, stage) for stage in graph.needs}
        return {stage: receipt for stage, receipt in found.items() if receipt is not None}
