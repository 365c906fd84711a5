"""MLflow away: the stage goes on, nothing is lost, and what is delivered later is delivered once."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grape import receipt
from grape.errors import GrapeError
from grape.project import NONCE, Project
from grape.track import StageRun, close_dead_runs, close_parent, open_parent, store, sync
from grape.track.deliver import Delivery
from grape.track.spool import Spool
from grape.track.store import Unreachable


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> str:
    """MLFLOW_TRACKING_URI of a server that is down: a port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://user:secret@127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_training_goes_on_with_one_warning_and_sync_delivers_once(
    project: Project,
    away: str,
    runs: Callable[[], list[Any]],
    client: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    save_model: Callable[..., Path],
) -> None:
    save_model(project.root / "models" / "sft")
    with caplog.at_level(logging.WARNING), StageRun(project, "sft", {"steps": 2}, 0) as run:
        run.track(0, {"loss": 2.0})
        run.track(1, {"loss": 1.0})
        run.artifact(project.params)
        run.model("models/sft", "sft")
        run.headline({"loss": 1.0})
    assert len(caplog.records) == 1 and "grape mlflow sync" in caplog.text and "secret" not in caplog.text
    written = receipt.read(project.receipt("sft"))
    assert written is not None and written["run_id"] is None and written["headline"] == {"loss": 1.0}
    assert "secret" not in "".join(path.read_text() for path in project.state.rglob("*.json"))

    with pytest.raises(GrapeError, match="cannot be reached"):
        sync(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the store is back
    assert sync(project) == ["sft"]
    assert sync(project) == []
    (logged,) = runs()
    assert logged.info.status == "FINISHED" and logged.data.tags["grape.spool"] == written["spool"]
    assert len(client().get_metric_history(logged.info.run_id, "loss")) == 3  # two steps and the headline
    assert len(logged.outputs.model_outputs) == 1


def test_a_server_that_hangs_is_found_out_before_mlflow_is_asked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with monkeypatch.context() as guard:
            guard.setattr(store, "_open", lambda *_: pytest.fail("MLflow was asked"))
            with StageRun(project, "sft", {}, 0):
                pass
    assert len(Spool.pending(project)) == 1


def test_a_kill_between_delivery_and_acknowledgement_duplicates_nothing(
    project: Project, runs: Callable[[], list[Any]], client: Callable[[], Any], save_model: Callable[..., Path]
) -> None:
    save_model(project.root / "models" / "sft")
    with StageRun(project, "sft", {}, 0, deliver=False) as run:
        run.track(0, {"loss": 2.0})
        run.model("models/sft", "sft", register="grape-policy")
    (spool,) = Spool.pending(project)
    Delivery(project, spool).pump()
    (spool.folder / "delivered.json").unlink()  # as if it had never been written
    assert sync(project) == ["sft"]
    (logged,) = runs()
    assert len(client().get_metric_history(logged.info.run_id, "loss")) == 1
    assert len(logged.outputs.model_outputs) == 1
    assert len(client().search_model_versions("name = 'grape-policy'")) == 1


def test_stages_find_their_parent_when_both_come_late(
    project: Project, away: str, runs: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_parent(project, "n-1", {"stages": ["sft"]}) is None
    monkeypatch.setenv(NONCE, "n-1")
    with StageRun(project, "sft", {}, 0):
        pass
    close_parent(project, None, "FINISHED", "one stage")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(project) == ["pipeline", "sft"]
    parent, child = runs()
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == child.info.status == "FINISHED"


def test_an_event_the_store_refuses_does_not_block_the_rest(
    project: Project, runs: Callable[[], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with StageRun(project, "sft", {}, 0, deliver=False) as run:
        run._spool.append("model", path="models/none", name="a/b:c", register=None, digest="0", bytes=1)
        run.headline({"loss": 1.0})
    assert sync(project) == ["sft"]
    (logged,) = runs()
    assert logged.info.status == "FINISHED" and logged.data.metrics == {"loss": 1.0}
    assert logged.data.tags["grape.refused"] == "model" and "refused" in caplog.text


def test_a_store_that_goes_away_half_way_is_gone_on_with(
    project: Project, runs: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with StageRun(project, "sft", {}, 0, deliver=False) as run:
        run.headline({"first": 1.0})
        run.dataset("params.yaml", "training")
        run.headline({"second": 2.0})
    (spool,) = Spool.pending(project)
    delivery = Delivery(project, spool)
    client = delivery.store.client

    def down(*_: object, **__: object) -> None:
        raise ConnectionError("down")

    with monkeypatch.context() as outage:
        outage.setattr(client, "log_inputs", down)
        outage.setattr(client, "get_experiment", down)
        with pytest.raises(Unreachable):
            delivery.pump()
    (logged,) = runs()
    assert logged.data.metrics == {"first": 1.0} and logged.info.status == "RUNNING"
    delivery.pump()
    (logged,) = runs()
    assert logged.data.metrics == {"first": 1.0, "second": 2.0} and logged.info.status == "FINISHED"


def test_a_plain_folder_as_store_is_refused_with_the_mend(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(GrapeError, match="unset MLFLOW_TRACKING_URI"):
        open_parent(project, "n", {})
    assert Spool.pending(project) == []
    with StageRun(project, "sft", {}, 0):  # a stage by itself goes on
        pass


def test_pre_flight_without_a_store_leaves_none(bare: Project) -> None:
    assert close_dead_runs(bare) == 0
    assert not (bare.state / "mlflow.db").exists()
