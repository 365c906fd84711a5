"""`grape tune` from beginning to end: the stages before rl made ready in a copy of the project, the trials, `inputs/tuned.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grape import dvc, track, tuned
from grape.errors import GrapeError
from grape.params import load
from grape.pipeline import Hooks, Request, Screen, Threads, preflight, run
from grape.pipeline.orchestrate import signals
from grape.project import Project
from grape.tune import workspace
from grape.tune.search import Search, Tuning, log, logs
from grape.tuned import Tuned


class Untold(Hooks):
    """For what is made in a workspace: MLflow hears of the project's own runs, and of trials."""

    def refuse(self, project: Project) -> None: ...

    def open(self, project: Project, nonce: str, plan: dict[str, Any], name: str) -> str | None:
        return None

    def link(self, project: Project, parent: str | None, stage: str) -> None: ...

    def close(self, project: Project, parent: str | None, status: str, summary: str) -> None: ...

    def after_idle(self, project: Project) -> None: ...


def ready(project: Project, place: Path, cache: Path, text: str) -> Project:
    """The workspace that all trials are copies of, with everything there that rl and evaluate read.

    Raises:
        GrapeError: a stage before them failed.
    """
    here = workspace.make(project, place, cache, text)
    file = logs(project) / "before.log"
    with log(file) as quiet:
        result = run(here, Request(tuple(workspace.stages_before(here))), Threads(), quiet, Untold())
    if result.exit_code:
        bad = [stage for stage, outcome in result.outcomes.items() if outcome.status == "failed"]
        what = f"what the trials start from could not be made: {', '.join(bad)} failed"
        raise GrapeError(what, where="grape tune", mend=f"see {file.relative_to(project.root)}")
    return here


@contextmanager
def recorded(search: Search) -> Iterator[None]:
    """One parent run in MLflow around the trials."""
    plan = {"algorithms": list(search.wanted.algorithms), "trials": search.wanted.trials, "share": search.wanted.share}
    track.close_dead_runs(search.project)
    search.parent = track.open_parent(search.project, search.nonce, plan, "tune")
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        track.close_parent(search.project, search.parent, status, "\n".join(["```", *map(str, search.studies), "```"]))


def tune(project: Project, wanted: Tuning, text: str, screen: Screen) -> dict[str, Tuned]:
    """Run the trials and write `inputs/tuned.yaml`.

    Args:
        text: params.yaml with `rl.algorithms` and `rl.seeds` as they are for the trials.

    Raises:
        GrapeError: another tuning is under way, something must be mended first, or an algorithm has no score at all.
        KeyboardInterrupt: interrupted; what has ended is kept, what was running goes on the next time.
    """
    place = Project(workspace.folder(project))
    with signals(), preflight.lock(place, screen.say, wait=False):
        cache = dvc.cache_folder(project)
        base = ready(project, place.root / "base", cache, text)
        with log(logs(project) / "trials.log") as quiet:
            search = Search(project, wanted, screen, quiet, base, cache, load(base.params))
            search.open()
            with recorded(search):
                search.go()
        tuned.write(project.root, {**tuned.read(project.root), **search.found()})
        search.refuse_scoreless()
        return search.found()
