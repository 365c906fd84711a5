"""A stage's run: what MLflow and the receipt have of it, and how it ends."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grape import receipt
from grape.project import NONCE, PARENT_RUN, Project
from grape.track import StageRun
from grape.track.spool import Spool

LOCK = """
schema: '2.0'
stages:
  prepare:
    cmd: x
    outs:
    - path: data/prompts
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
"""


def test_a_stage_is_a_finished_run_with_everything_in_it(
    project: Project, client: Callable[[], Any], runs: Callable[[], list[Any]]
) -> None:
    (project.root / "dvc.lock").write_text(LOCK)
    plot = project.root / "plot.txt"
    plot.write_text("a plot")
    with StageRun(project, "rl@grpo-0", {"rl": {"steps": 3, "algorithms": ["grpo"]}, "seed": 1}, 1) as run:
        for step in range(1500):  # more than one batch
            run.track(step, {"reward": step / 10, "rewards/a/b c!/mean": 1})
        run.track(1500, {"reward": math.nan, "kl": math.inf})
        run.dataset("data/prompts/train.jsonl", "training")
        run.artifact(plot, "plots")
        plot.write_text("overwritten before it was delivered")
        run.headline({"gold": 0.5})

    (logged,) = runs()
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "rl@grpo-0"
    assert logged.data.params == {"rl.steps": "3", "rl.algorithms": '["grpo"]', "seed": "1"}
    assert logged.data.tags["grape.trigger"] == "dvc" and "mlflow.parentRunId" not in logged.data.tags
    history = client().get_metric_history(logged.info.run_id, "reward")
    assert len(history) == 1501 and math.isnan(max(history, key=lambda metric: metric.step).value)
    assert logged.data.metrics["rewards/a/b c_/mean"] == 1 and logged.data.metrics["gold"] == 0.5
    (used,) = logged.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("data/prompts/train.jsonl", "0123456789abcdef0123456789abcdef.dir")
    local = client().download_artifacts(logged.info.run_id, "plots/plot.txt", str(project.root))
    assert Path(local).read_text() == "a plot"
    assert Spool.pending(project) == []

    written = receipt.read(project.receipt("rl@grpo-0"))
    assert written is not None and written["run_id"] == logged.info.run_id
    assert written["headline"] == {"gold": 0.5} and written["nonce"] is None and written["seed"] == 1
    assert written["datasets"] == {"data/prompts/train.jsonl": "0123456789abcdef0123456789abcdef.dir"}
    assert written["versions"]["torch"] and written["peak_memory_mb"] > 1


def test_a_stage_that_raises_ends_failed_without_a_receipt(
    project: Project, client: Callable[[], Any], runs: Callable[[], list[Any]]
) -> None:
    with pytest.raises(ZeroDivisionError), StageRun(project, "sft", {}, 0) as run:
        run.track(0, {"loss": 1.0})
        1 / 0  # noqa: B018
    (logged,) = runs()
    assert logged.info.status == "FAILED" and logged.data.metrics == {"loss": 1.0}
    local = client().download_artifacts(logged.info.run_id, "error.txt", str(project.root))
    assert "ZeroDivisionError" in Path(local).read_text()
    assert receipt.read(project.receipt("sft")) is None


def test_a_terminated_stage_ends_killed_and_cleans_up(
    project: Project, python: Callable[[str], Any], runs: Callable[[], list[Any]]
) -> None:
    process = python("""
import time
from pathlib import Path
from grape.project import Project
from grape.track import StageRun
with StageRun(Project.find(), "rl@grpo-0", {}, 0) as run:
    try:
        print("up", flush=True)
        time.sleep(600)
    finally:
        Path("cleaned").touch()
""")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert (project.root / "cleaned").exists()
    assert [run.info.status for run in runs()] == ["KILLED"]


def test_the_orchestrator_is_the_parent(project: Project, runs: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT_RUN, "feed")
    monkeypatch.setenv(NONCE, "n-1")
    with StageRun(project, "sft", {}, 0):
        pass
    (logged,) = runs()
    assert logged.data.tags["mlflow.parentRunId"] == "feed" and "grape.trigger" not in logged.data.tags
    written = receipt.read(project.receipt("sft"))
    assert written is not None and written["nonce"] == "n-1"


def test_two_first_stages_at_once_share_the_new_store(
    bare: Project, python: Callable[[str], Any], runs: Callable[[], list[Any]]
) -> None:
    code = """
import sys
from grape.project import Project
from grape.track import StageRun
with StageRun(Project.find(), "rl@grpo-{seed}", {{}}, {seed}) as run:
    for step in range(300):
        run.track(step, {{"reward": step}})
"""
    processes = [python(code.format(seed=seed)) for seed in (0, 1)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(run.info.run_name for run in runs()) == ["rl@grpo-0", "rl@grpo-1"]
    assert [run.data.metrics for run in runs()] == [{"reward": 299.0}] * 2
    assert Spool.pending(bare) == []


def test_a_peak_of_memory_is_that_of_the_process_and_not_of_who_started_it() -> None:
    held = b"x" * (300 * 2**20)
    code = "from grape.track.identity import peak_memory_mb; held = b'x' * (60 * 2**20); print(peak_memory_mb())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 60 < float(found) < 250 < len(held) / 2**20
