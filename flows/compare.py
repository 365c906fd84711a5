"""`grape run compare` as a Prefect flow of its own, for a deployment on a server: the pipeline with algorithms and seeds set.

The command itself starts the same work by `flows/pipeline.py`; here a schedule or a worker does. One run after the other by
default, all under one MLflow parent, the league table in reports/ (grape/commands/league.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from flows.pipeline import InFlow
from grape.commands import league
from grape.pipeline import Hooks, Request, Screen, run
from grape.project import Project


@flow(name="grape-compare", persist_result=False, validate_parameters=False)
def compare(root: str = ".", algorithms: str = "all", seeds: str = "0,1,2", workers: int = 1) -> Any:
    """Train `algorithms` with `seeds` from one SFT policy at one budget; the state's message is the league table."""
    project = Project.find(Path(root))
    sets = tuple(league.assignments(project, algorithms, seeds))
    result = run(project, Request(sets=sets, workers=workers, name="compare"), InFlow(), Screen(), Hooks())
    if failed := [name for name, outcome in result.outcomes.items() if not outcome.good]:
        return Failed(message=f"not done: {', '.join(failed)}")
    return Completed(message="\n".join(league.lines(league.read(project))))
