"""The pipeline as a Prefect flow: one task per DVC stage, with the order and the parallel branches of dvc.yaml.

Prefect shows and steers, DVC knows: a task calls `dvc repro --single-item STAGE` in a process of its own and passes on
one word. So nothing is retried (DVC resumes), nothing is cached twice, no result is stored, only strings travel.

`grape run` starts a server for the time of the run (server.py) unless PREFECT_API_URL names one of yours; there the
flow can also be deployed, with a schedule and workers: `flows/pipeline.py:pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from grape.pipeline import Hooks, Request, run
from grape.pipeline.schedule import Threads, Work, schedule
from grape.pipeline.screen import Screen
from grape.project import Project

_work: ContextVar[Work] = ContextVar("work")  # Prefect copies the context into the threads of its tasks


@task(name="stage", task_run_name="{stage}", retries=0, cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str) -> Any:
    """One stage; the state says whether it ran, came from DVC's cache or failed."""
    outcome = _work.get().executor.run(stage)
    if not outcome.good:
        return Failed(message=f"{outcome.status} with exit code {outcome.code}, log: {outcome.log}")
    return Completed(name="Cached" if outcome.status == "cached" else "Completed", data=outcome.status)


@flow(name="grape", persist_result=False, validate_parameters=False)
def pipeline(root: str = ".", targets: Sequence[str] = (), workers: int | None = None) -> Any:
    """Bring the project at `root` up to date. Started by `grape run`, or by a deployment on a Prefect server."""
    work = _work.get(None)
    if work is not None:
        _submit_all(work)
        outcomes = work.executor.outcomes
    else:
        request = Request(targets=tuple(targets), workers=workers)
        outcomes = run(Project.find(Path(root)), request, InFlow(), Screen(), Hooks()).outcomes
    if failed := [name for name, outcome in outcomes.items() if not outcome.good]:
        return Failed(message=f"not done: {', '.join(failed)}")
    return Completed(message="all stages are up to date")


class InFlow(Threads):
    """The engine of a flow that a deployment started: its tasks in place of threads."""

    def __call__(self, work: Work) -> None:
        _submit_all(work)


def _submit_all(work: Work) -> None:
    def submit(stage: str, needs: Sequence[PrefectFuture[Any]]) -> PrefectFuture[Any]:
        return run_stage.submit(stage, wait_for=[future for future in needs if future is not None])

    token = _work.set(work)
    try:
        schedule(work, submit)
    finally:
        _work.reset(token)


def run_prefect(work: Work, url: str, own: bool = False) -> None:
    """Run the work as a flow, with the Prefect server at `url`. own: it is of this run and on this machine, so that who does not
    answer is gone: each of some calls would try it for ten seconds."""
    token, settings = _work.set(work), {PREFECT_API_URL: url} | ({PREFECT_CLIENT_MAX_RETRIES: 1} if own else {})
    try:
        with temporary_settings(settings):
            runner, name = ThreadPoolTaskRunner(max_workers=work.workers), f"grape-{work.executor.nonce[:8]}"
            pipeline.with_options(flow_run_name=name, task_runner=runner)(work.root, return_state=True)
    finally:
        _work.reset(token)
