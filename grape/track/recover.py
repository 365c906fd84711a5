"""After a crash or an outage: end the runs whose process is gone, deliver what MLflow has not got."""

from __future__ import annotations

from grape.errors import GrapeError
from grape.net import scrub
from grape.project import Project
from grape.track.deliver import Delivery
from grape.track.identity import is_dead
from grape.track.spool import Spool
from grape.track.store import Store, Unreachable, connect


def sync(project: Project) -> list[str]:
    """Deliver every spool that no live process is delivering; the names of the stages delivered, oldest first.

    Doing it again does nothing: a delivered spool is gone, and a half-delivered one goes on where it stopped.

    Raises:
        GrapeError: the store does not answer.
    """
    _end_dead_spools(project)
    try:
        return [stage for spool in Spool.pending(project) if (stage := _delivered(project, spool))]
    except Unreachable as error:
        raise GrapeError(
            f"MLflow cannot be reached: {error}",
            mend="start the server, or check MLFLOW_TRACKING_URI, then run `grape mlflow sync` again; nothing is lost",
        ) from error


def _delivered(project: Project, spool: Spool) -> str | None:
    """The stage whose spool is delivered to its end now; None where another process does so, or its run has not ended."""
    if not spool.lock():
        return None
    try:
        if not spool.ended:
            return None  # its process is between making the folder and taking the lock
        stage = str(spool.meta["stage"])
        Delivery(project, spool).pump()
        spool.remove()
        return stage
    finally:
        spool.unlock()


def close_dead_runs(project: Project) -> int:
    """End as FAILED every run of this host whose process is gone, e.g. after SIGKILL; how many.

    Whatever an earlier run could not deliver any more is delivered too. Does not import MLflow when this project has
    neither a database nor a server, nor fail when it does not answer.
    """
    ended = len(_end_dead_spools(project))
    left = [spool for spool in Spool.pending(project) if spool.ended]
    if not (left or _store_exists(project)):
        return 0
    try:
        store = connect(project)
        for spool in left:
            _delivered(project, spool)
        return ended + close_dead_in(project, store)
    except Unreachable:
        return ended


def close_dead_in(project: Project, store: Store) -> int:
    """The runs MLflow still shows as RUNNING whose process is gone and which have no spool here."""
    closed = 0
    spools = {spool.name for spool in Spool.pending(project)}
    try:
        runs = store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'", max_results=1000)
        for run in runs:
            if run.data.tags.get("grape.spool") not in spools and is_dead(run.data.tags):
                store.client.set_tag(run.info.run_id, "grape.note", "the process was killed")
                store.client.set_terminated(run.info.run_id, "FAILED")
                closed += 1
    except Exception as error:  # boundary: whatever MLflow raises here is a store that went away
        raise Unreachable(scrub(str(error))) from error
    return closed


def _end_dead_spools(project: Project) -> list[Spool]:
    """Give each spool whose process died without ending it its last event."""
    ended = []
    for spool in Spool.pending(project):
        if not is_dead(spool.meta["tags"]) or spool.ended:
            continue
        spool.append("tags", values={"grape.note": "the process was killed"})
        spool.append("end", status="FAILED")
        ended.append(spool)
    return ended


def _store_exists(project: Project) -> bool:
    return project.tracking_uri != project.own_store or (project.state / "mlflow.db").is_file()
