"""The same project under Prefect: one boot of its server for everything that is looked at there."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing

import psutil
import pytest

from flows.server import PrefectEngine
from grape.errors import GrapeError
from tests.pipeline.harness import Toy, until


def test_a_flow_with_a_failing_branch(toy: Toy) -> None:
    toy.edit("  value: 1\nknobs", "  value: 2\nknobs")
    toy.order("branch@left", "fail")
    run = toy.start("--engine=prefect")
    out, _ = run.communicate()
    assert run.returncode == 1, out
    assert "    the toy broke" in out and "after branch@left failed" in out
    assert "[branch@right] made out/branch/right" in out

    home = toy.project.state / "prefect"
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        tasks = dict(database.execute("select name, state_name from task_run").fetchall())
        flows = database.execute("select state_name from flow_run").fetchall()
    assert tasks == {"branch@left": "Failed", "branch@right": "Completed"}
    assert flows == [("Failed",)]
    # Its server went with it, whatever the ending.
    assert not [p for p in psutil.process_iter() if _home_of(p) == str(home)]

    toy.release()
    assert toy.statuses(toy.run()) == {"first": "cached", "branch@left": "ran", "branch@right": "cached", "last": "ran"}
    assert toy.dvc_status() == {}


def test_losing_the_server_in_the_middle_costs_nothing(toy: Toy) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    toy.order("branch@left", "wait")
    run = toy.start("--engine=prefect")
    toy.waiting_pid("branch@left")
    home = str(toy.project.state / "prefect")
    until(lambda: tasks_running(toy))  # the stage itself begins before the server is up
    servers = [p for p in psutil.process_iter() if _home_of(p) == home and {"prefect", "start"} <= set(p.cmdline())]
    for server in servers:
        server.kill()
    toy.release()
    out, _ = run.communicate()
    assert servers and run.returncode == 0, out
    assert "Prefect" not in out and "httpx" not in out  # it is not the user's business
    assert "[last] made out/last" in out


def test_a_server_of_the_users_that_is_away_is_told_before_anything_runs(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    lock = (toy.root / "dvc.lock").read_bytes()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take it, and nobody answers
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/api")
        with pytest.raises(GrapeError, match="Prefect's server does not answer"):
            toy.run(engine=PrefectEngine())
    assert (toy.root / "dvc.lock").read_bytes() == lock


def test_when_its_own_server_cannot_start_the_stages_run_without(toy: Toy) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    (toy.project.state / "prefect").write_text("not a folder")
    assert toy.statuses(toy.run(engine=PrefectEngine()))["branch@left"] == "ran"
    assert "Prefect's server did not start" in toy.said and "running the stages without Prefect" in toy.said


def tasks_running(toy: Toy) -> bool:
    path = toy.project.state / "prefect" / "prefect.db"
    if not path.is_file():
        return False
    with closing(sqlite3.connect(path)) as database:
        try:
            return bool(database.execute("select 1 from task_run where state_name = 'Running'").fetchall())
        except sqlite3.OperationalError:  # its tables are still being made
            return False


def _home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("PREFECT_HOME")
    except psutil.Error:
        return None
