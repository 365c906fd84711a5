"""After SIGKILL no run stays RUNNING; a live one is left alone. A moved project finds its artifacts."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grape.project import Project
from grape.track import StageRun, close_dead_runs, sync
from grape.track.deliver import Delivery
from grape.track.spool import Spool

STAGE = """
import time
from grape.project import Project
from grape.track import StageRun
from grape.track import courier
courier.GRACE = 0.0
with StageRun(Project.find(), "rl@grpo-0", {}, 0) as run:
    run.track(0, {"reward": 0.25})
    print("up", flush=True)
    time.sleep(600)
"""


def delivered(project: Project) -> bool:
    return any((state := spool.delivered) is not None and state.offset > 0 for spool in Spool.pending(project))


def test_a_killed_stage_is_ended_failed_once(
    project: Project, python: Callable[[str], Any], until: Callable[[Callable[[], bool]], None], runs: Callable[[], list[Any]]
) -> None:
    process = python(STAGE)
    until(lambda: delivered(project))
    assert close_dead_runs(project) == 0  # it lives
    assert sync(project) == []
    assert [run.info.status for run in runs()] == ["RUNNING"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert close_dead_runs(project) == 1
    assert close_dead_runs(project) == 0
    (run,) = runs()
    assert run.info.status == "FAILED" and run.data.metrics == {"reward": 0.25}
    assert run.data.tags["grape.note"] == "the process was killed"
    assert Spool.pending(project) == []


def test_a_killed_run_without_its_spool_is_ended_by_the_next_stage(
    project: Project, python: Callable[[str], Any], until: Callable[[Callable[[], bool]], None], runs: Callable[[], list[Any]]
) -> None:
    process = python(STAGE)
    until(lambda: delivered(project))
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(project.state / "runs")
    with StageRun(project, "sft", {}, 0):
        pass
    assert {run.info.run_name: run.info.status for run in runs()} == {"rl@grpo-0": "FAILED", "sft": "FINISHED"}


def test_a_half_written_last_event_is_ignored(project: Project, runs: Callable[[], list[Any]]) -> None:
    with StageRun(project, "sft", {}, 0, deliver=False) as run:
        run.headline({"loss": 1.0})
    (spool,) = Spool.pending(project)
    with (spool.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "headline", "va')
    assert sync(project) == ["sft"]
    assert runs()[0].data.metrics == {"loss": 1.0}


@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_project_keeps_its_artifacts_and_writes_to_its_own_folder(project: Project, tmp_path: Path, copied: bool) -> None:
    (project.root / "table.md").write_text("| a |")
    with StageRun(project, "sft", {}, 0) as run:
        run.artifact(project.root / "table.md")
    old = project.state / "mlartifacts"
    moved = Project(tmp_path.parent / f"{tmp_path.name} moved%")
    shutil.copytree(tmp_path, moved.root)
    if not copied:
        shutil.rmtree(tmp_path / ".grape")
    before = sorted(old.rglob("*"))

    with StageRun(moved, "sft", {}, 0, deliver=False) as run:
        run.artifact(moved.root / "table.md")
    (spool,) = Spool.pending(moved)
    delivery = Delivery(moved, spool)
    delivery.pump()
    found = delivery.store.client.search_runs([delivery.store.experiment_id])
    assert len(found) == 2
    for item in found:
        assert str(moved.root) in item.info.artifact_uri.replace("%25", "%").replace("%20", " ")
        assert [file.path for file in delivery.store.client.list_artifacts(item.info.run_id)] == ["table.md"]
    assert sorted(old.rglob("*")) == before
