"""`grape rehearse`, and the process that the pipeline starts before its runs of rl: `python -m grape.commands.rehearse RUN`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from grape import memory
from grape.commands import fit
from grape.errors import GrapeError
from grape.models.load import device
from grape.params import Params, load
from grape.project import Project
from grape.rehearsal import findings
from grape.rehearsal.alike import Alike, alike, key
from grape.rehearsal.record import Reading, Rehearsal, Seen, keep
from grape.rehearsal.times import seconds
from grape.stages.inputs import resolved
from grape.stages.rehearsal import rehearse
from grape.stages.stage import Stage
from grape.track import Unrecorded


def examine(project: Project) -> list[Rehearsal]:
    """A rehearsal of every kind of runs that params.yaml asks for; [] where all learn from pairs.

    Raises:
        GrapeError: what the runs read is not made, or not up to date.
    """
    if kinds := alike(project):
        _refuse_unready(project, [kind.runs[0] for kind in kinds])
    return [of_kind(project, kind, kind.runs[0]) for kind in kinds]


def _refuse_unready(project: Project, runs: Sequence[str]) -> None:
    from grape.pipeline import Hooks, Request, look, preflight

    preflight.initialised(project)
    drawn = look(project, Request(), Hooks())
    read = drawn.graph.select(f"rl@{run}" for run in runs).order() if drawn else []
    for stage in read:
        if drawn and stage in drawn.todo and not stage.startswith("rl@"):
            mend = f"`grape run {stage}`, or `grape run --rehearsal`, which rehearses when it comes to rl"
            raise GrapeError("it is not up to date, and rl reads what it makes", where=f"stage {stage}", mend=mend)


def of_kind(project: Project, kind: Alike, run: str) -> Rehearsal:
    """Rehearse `run`, for all of its kind; it is kept.

    Raises:
        GrapeError: params.yaml or what it names cannot be read.
    """
    params, began = load(project.params), time.monotonic()
    seen, found = _seen(project, params, run)
    estimated = {name: seconds(params, name.rpartition("-")[0], seen) for name in kind.runs} if seen else {}
    if seen:
        found += findings.readings(seen, params, _compares(params, kind))
    peaks = {need.stage: need.peak for need in fit.estimate(project, params) if need.stage.removeprefix("rl@") in kind.algorithms}
    found += [findings.of_memory(peaks, memory.total_bytes(device())), *findings.of_time(estimated)]
    made = Rehearsal(key(project, kind, run), kind.runs, tuple(found), estimated, seen, time.monotonic() - began)
    keep(project, made)
    return made


def _compares(params: Params, kind: Alike) -> bool:
    return any("group" in params.slot(name).wants(params.algorithm(name)) for name in kind.algorithms)


def _seen(project: Project, params: Params, run: str) -> tuple[Seen | None, list[Reading]]:
    """What the rounds showed, or why the run would end before its first one does."""
    name, (algorithm, _, seed) = f"rl@{run}", run.rpartition("-")
    unrecorded = Unrecorded(project, name, resolved(project, params, name), int(seed))
    stage = Stage(name, "rl", params, project, unrecorded, algorithm, int(seed))
    try:
        return rehearse(stage), []
    except GrapeError as error:
        refused = error
    except Exception as error:  # of whatever library asked for more memory than there is
        if (short := memory.refusal(error, name)) is None:
            raise
        refused = short
    sentence = f"The run would end before its first round does: {f'{refused.where}: ' if refused.where else ''}{refused.what}."
    return None, [Reading("two rounds", "stop", sentence=sentence, mend=refused.mend or "mend that")]


def rows(found: Sequence[Rehearsal]) -> list[dict[str, Any]]:
    return [asdict(one) | {"passed": one.passed} for one in found]


def lines(found: Sequence[Rehearsal]) -> list[str]:
    none = ["nothing to rehearse: no algorithm of rl.algorithms samples, all learn from pairs"]
    return [line for one in found for line in one.lines()] or none


def main(run: str) -> int:
    """Rehearse for the run, e.g. `grpo-0`, and say what was seen; 2: it says stop."""
    project = Project.find()
    project.enter()
    kind = next(kind for kind in alike(project) if run in kind.runs)
    made = of_kind(project, kind, run)
    for line in made.lines():
        print(line, flush=True)
    return 0 if made.passed else 2


if __name__ == "__main__":
    from grape.progress import any_terminal

    any_terminal()
    try:
        sys.exit(main(sys.argv[1]))
    except GrapeError as refusal:
        print(f"grape: error: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
