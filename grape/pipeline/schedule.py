"""The loop every engine shares: submit what is ready, wait for one to end, look again. And how stages share the machine.

A failing stage keeps back only what needs it; everything else goes on. Facts of the machine never enter a stage's command or
parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from grape.dvc import Graph
from grape.pipeline.execute import Executor, Outcome
from grape.project import Project


class Handle(Protocol):
    """What submitting returns: `concurrent.futures.Future` and Prefect's futures both fit."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> Any: ...


@dataclass(frozen=True)
class Work:
    """What an engine is given: run the stages of `graph` with `executor`, at most `workers` at once."""

    graph: Graph
    executor: Executor
    workers: int
    root: str


class Engine(Protocol):
    def prepare(self, project: Project) -> None:
        """Called once it is known that there is work, before MLflow is made ready: begin whatever takes long."""

    def __call__(self, work: Work) -> None:
        """Run the work by `schedule`."""

    def close(self) -> None:
        """Called at the end in any case."""


Submit = Callable[[str, Sequence[Any]], Handle]  # (stage, handles of what it needs) -> handle


def schedule(work: Work, submit: Submit) -> None:
    """Run every stage of the work, at most `workers` at once; the outcomes are in `work.executor.outcomes`.

    On an interruption the running stages are ended before it goes on.
    """
    graph, outcomes = work.graph, work.executor.outcomes
    waiting = [stage for stage in graph.order() if stage not in outcomes]
    handles: dict[str, Handle] = {}
    running: set[str] = set()
    ended: SimpleQueue[str] = SimpleQueue()
    try:
        while waiting or running:
            for stage in list(waiting):
                needs = graph.needs[stage]
                bad = [need for need in needs if need in outcomes and not outcomes[need].good]
                if bad:
                    waiting.remove(stage)
                    outcomes[stage] = Outcome(stage, "blocked", because=outcomes[bad[0]].because or bad[0])
                elif len(running) < work.workers and all(need in outcomes for need in needs):
                    waiting.remove(stage)
                    running.add(stage)
                    handles[stage] = handle = submit(stage, [handles[need] for need in needs])
                    handle.add_done_callback(partial(_put, ended, stage))
            if running:
                stage = ended.get()
                running.discard(stage)
                # The engine itself failed (a lost Prefect server, say) before or after the stage ran.
                outcomes.setdefault(stage, Outcome(stage, "failed", code=1, because="the engine lost it"))
    except BaseException as error:
        work.executor.stop(interrupted=isinstance(error, KeyboardInterrupt))
        raise


def _put(ended: SimpleQueue[str], stage: str, _: object) -> None:
    ended.put(stage)


class Threads:
    """The engine without Prefect."""

    def prepare(self, project: Project) -> None: ...

    def __call__(self, work: Work) -> None:
        with ThreadPoolExecutor(max_workers=work.workers, thread_name_prefix="stage") as pool:
            schedule(work, lambda stage, _: pool.submit(work.executor.run, stage))

    def close(self) -> None: ...


def cores() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_gpu() -> bool:
    """A CUDA device, told without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/proc/driver/nvidia/version").exists()


def default_workers() -> int:
    """Two stages side by side where there are two cores; one where they would share a GPU's memory."""
    return 1 if has_gpu() else min(2, cores())


def threads(graph: Graph, workers: int) -> Mapping[str, int]:
    """How many threads each stage computes with: all cores for a stage that nothing can run beside, else its share.

    It depends on the graph alone, not on what happens to run at that moment: sums in another order give other last
    bits, and a run must be repeatable on the same machine.
    """
    return {stage: max(1, cores() // min(workers, 1 + others)) for stage, others in graph.beside().items()}
