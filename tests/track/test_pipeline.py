"""The parent run has a headline for every stage, whether it ran now or came from the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from grape import receipt
from grape.pipeline import Hooks
from grape.project import NONCE, PARENT_RUN, Project
from grape.rehearsal.record import Reading, Rehearsal, keep
from grape.track import StageRun, close_parent, link_cached, open_parent
from grape.track.spool import Spool
from grape.track.store import connect


def test_every_stage_is_in_the_parent(project: Project, runs: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with StageRun(project, "sft", {}, 0) as run:  # earlier, by `dvc repro`
        run.headline({"loss": 0.5})
    parent_id = open_parent(project, "n-1", {"sft": "cached", "rl@grpo-0": "params changed"})
    assert parent_id is not None
    with monkeypatch.context() as stage:
        stage.setenv(PARENT_RUN, parent_id)
        stage.setenv(NONCE, "n-1")
        with StageRun(project, "rl@grpo-0", {}, 0) as run:
            run.headline({"reward": 0.75})
    for name in ("sft", "rl@grpo-0"):
        written = receipt.read(project.receipt(name))
        assert written is not None
        link_cached(project, parent_id, name, written)
    close_parent(project, parent_id, "FINISHED", "2 stages")

    cached, parent, child = runs()
    assert parent.info.run_id == parent_id and parent.info.status == "FINISHED"
    assert parent.data.metrics == {"sft/loss": 0.5, "rl/grpo-0/reward": 0.75}
    assert parent.data.tags["grape.stage.sft"] == f"cached {cached.info.run_id}"
    assert parent.data.tags["grape.stage.rl/grpo-0"] == f"ran {child.info.run_id}"
    assert "| sft | cached |" in parent.data.tags["mlflow.note.content"]
    assert child.data.tags["mlflow.parentRunId"] == parent_id
    assert Spool.pending(project) == []


def test_the_parent_has_what_its_rehearsal_said(project: Project, runs: Callable[[], list[Any]]) -> None:
    look = Reading("answers cut", "look", 0.3, 0.1, "share", "30% of the answers were cut.", "raise rl.max_new_tokens")
    found = Rehearsal("abc", ("grpo-0", "grape-0"), (look,), {"grpo-0": 60.0}, None, 1.0)
    keep(project, found)
    parent_id = open_parent(project, "n-1", {"rl@grpo-0": "new"})
    Hooks().rehearsed(project, found)
    close_parent(project, parent_id, "FINISHED", "1 stage")
    (parent,) = runs()
    for run in found.runs:
        assert parent.data.tags[f"grape.rehearsal.{run}"] == "passed in 1.0 s. look: 30% of the answers were cut."
    assert [file.path for file in connect(project).client.list_artifacts(parent_id, "rehearsal")] == ["rehearsal/abc.json"]


def test_the_orchestrator_delivers_for_its_stages(
    project: Project, runs: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent_id = open_parent(project, "n-1", {"sft": "new"})
    with monkeypatch.context() as stage:
        stage.setenv(NONCE, "n-1")  # the parent is found by it where it could not be named
        with StageRun(project, "sft", {}, 0, deliver=False) as run:
            run.headline({"loss": 0.5})
    close_parent(project, parent_id, "FINISHED", "1 stage")
    parent, child = runs()
    assert child.info.status == "FINISHED" and child.data.metrics == {"loss": 0.5}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id == parent_id
    assert Spool.pending(project) == []
