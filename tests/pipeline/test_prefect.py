"""The same project under Prefect: one boot of its server for everything that is looked at."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import psutil

from tests.pipeline.harness import Toy


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


def _home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("PREFECT_HOME")
    except psutil.Error:
        return None
