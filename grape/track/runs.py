"""MLflow's ids of the runs that receipts only know by their spool: read from the project's own database, without MLflow."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from grape.project import Project


def known_runs(project: Project) -> dict[str, str]:
    """Spool -> run, as the project's own store has it; {} where the store is a server or cannot be read."""
    database = project.state / "mlflow.db"
    if project.tracking_uri != project.own_store or not database.is_file():
        return {}
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            return dict(connection.execute("SELECT value, run_uuid FROM tags WHERE key = 'grape.spool'").fetchall())
    except sqlite3.Error:
        return {}  # ids are a help to find a run by; what it did stands in its receipt
