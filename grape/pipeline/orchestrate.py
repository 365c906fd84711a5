"""One run of the pipeline from beginning to end.

DVC decides what is up to date, the engine (Prefect or plain threads) in which order things run, MLflow keeps the runs.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from grape import dvc, needed
from grape.errors import GrapeError
from grape.pipeline import closing, mend, plan, preflight, schedule
from grape.pipeline.execute import Executor, Outcome
from grape.pipeline.hooks import Hooks
from grape.pipeline.plan import Plan
from grape.pipeline.rehearsal import Rehearsals
from grape.pipeline.schedule import Engine, Threads, Work
from grape.pipeline.screen import Screen
from grape.progress import duration
from grape.project import Project
from grape.rehearsal.record import Rehearsal


@dataclass(frozen=True)
class Request:
    """What the user asked for. No targets: everything."""

    targets: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    workers: int | None = None
    wait: bool = True
    name: str = "pipeline"  # of the run in MLflow
    rehearsal: bool | None = None  # before runs of rl; None: before long ones


@dataclass(frozen=True)
class Result:
    plan: Plan | None  # None: everything was up to date
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    changed_since: tuple[str, ...] = ()  # what is not up to date although it ran: somebody edited meanwhile
    rehearsals: tuple[Rehearsal, ...] = ()

    @property
    def exit_code(self) -> int:
        codes = {outcome.code for outcome in self.outcomes.values() if outcome.status in ("failed", "stopped")}
        return 0 if not codes else 2 if codes == {2} else 1

    def as_json(self) -> dict[str, Any]:
        found = {"up_to_date": self.plan is None, "exit_code": self.exit_code, "seconds": round(self.seconds, 2)}
        stages = {}
        for name, outcome in self.outcomes.items():
            stages[name] = {"status": outcome.status, "seconds": round(outcome.seconds, 2), "because": outcome.because}
        steps = self.plan.as_json() if self.plan else []
        more = {"changed_since": list(self.changed_since), "rehearsals": [asdict(each) for each in self.rehearsals]}
        return found | {"plan": steps, "stages": stages} | more


def look(project: Project, request: Request, hooks: Hooks) -> Plan | None:
    """What would run now; None when nothing. Edits params.yaml when the request says so, runs nothing."""
    if request.sets:
        hooks.edit(project.params, list(request.sets))
    dvc.stages(project)  # refused in our words when it cannot be read
    preflight.algorithm_files(project)
    preflight.named_files(project)
    question = dvc.ask_status(project)  # half a second, in which the parameters are checked
    try:
        hooks.check(project.params)
        unneeded = hooks.unneeded(project)
    except BaseException:
        question.drop()
        raise
    if needed.write(project, unneeded):
        with suppress(GrapeError):  # of the cards as they were, one of which may not have been there
            question.answer()
        question = dvc.ask_status(project)
    status = dvc.read_status(question.answer())
    preflight.inputs(project, status)
    known = plan.known(project)
    if not status and all(any(t in (n, n.split("@")[0]) for n in known) for t in request.targets):
        return None
    drawn = plan.draw(project, list(request.targets), status)
    return replace(drawn, unneeded=unneeded, notes=hooks.notes(project, drawn.todo)) if drawn.todo else None


def run(project: Project, request: Request, engine: Engine, screen: Screen, hooks: Hooks) -> Result:
    """Bring the targets up to date.

    Raises:
        GrapeError: something must be mended first; nothing has run.
        KeyboardInterrupt: interrupted; every stage has been ended.
    """
    started = time.monotonic()
    project.enter()
    preflight.repository(project, screen.say)
    with signals(), preflight.lock(project, screen.say, request.wait):
        preflight.mended(project, screen.say, request.wait)
        preflight.disk(project)
        preflight.version_file(project)
        drawn = look(project, request, hooks)
        if drawn is None:
            hooks.after_idle(project)
            mend.keep_lock_file(project)
            screen.say("everything is up to date; `grape plan` shows what a change would run")
            for line in plan.left_out(hooks.unneeded(project)):
                screen.say(line)
            return Result(None, seconds=time.monotonic() - started)
        preflight.sampler(project, drawn.todo)
        screen.say("\n".join(drawn.lines()) + "\n")
        if not drawn.computes:
            engine = Threads()  # fetching from the cache takes less time than a Prefect server to start
        rehearsals = Rehearsals(project, drawn, request.rehearsal)
        try:
            outcomes = _execute(project, drawn, request, engine, screen, hooks, rehearsals)
        finally:
            engine.close()
        late = _changed_since(project, request, outcomes)
        result = Result(drawn, outcomes, time.monotonic() - started, late, rehearsals.held)
        _tell(project, result, screen, hooks)
        return result


def _execute(
    project: Project, drawn: Plan, request: Request, engine: Engine, screen: Screen, hooks: Hooks, rehearsals: Rehearsals
) -> dict[str, Outcome]:
    workers = request.workers or schedule.default_workers()
    screen.say("getting MLflow and the engine ready")
    hooks.refuse(project)
    engine.prepare(project)
    nonce = uuid.uuid4().hex
    opened, parent = threading.Event(), ""

    def after(outcome: Outcome) -> None:
        opened.wait()
        if outcome.good:
            mend.keep_lock_file(project)
            hooks.link(project, parent, outcome.stage)

    def rehearsed(rehearsal: Rehearsal) -> None:
        opened.wait()
        hooks.rehearsed(project, rehearsal)

    rehearsals.told = rehearsed
    executor = Executor(project, screen, schedule.threads(drawn.graph, workers), nonce, after=after, before=rehearsals.before)
    todo = drawn.graph.only(drawn.todo)
    # MLflow's store and Prefect's server take seconds to open: what can run meanwhile does.
    executor.begin([stage for stage in todo.order() if not todo.needs[stage]][:workers])
    try:
        parent = hooks.open(project, nonce, {s.stage: list(s.reasons) for s in drawn.steps}, request.name) or ""
    except BaseException as error:
        opened.set()
        executor.stop(interrupted=isinstance(error, KeyboardInterrupt))
        raise
    executor.parent = parent or None
    opened.set()
    for step in drawn.steps:
        if step.action == "ready":
            executor.outcomes[step.stage] = Outcome(step.stage, "cached")
            hooks.link(project, parent, step.stage)
    status = "KILLED"
    try:
        engine(Work(todo, executor, workers, str(project.root)))
        status = "FINISHED" if all(o.good for o in executor.outcomes.values()) else "FAILED"
    finally:
        rows = closing.table(drawn.graph, executor.outcomes, hooks.receipts(project, drawn.graph))
        hooks.close(project, parent, status, "\n".join(["```", *rows, "```"]))
    return {stage: executor.outcomes[stage] for stage in drawn.graph.order()}


def _changed_since(project: Project, request: Request, outcomes: dict[str, Outcome]) -> tuple[str, ...]:
    """Why a stage that has run is not up to date now: only an edit during the run does that."""
    if not all(outcome.good for outcome in outcomes.values()):
        return ()
    status = dvc.read_status(dvc.ask_status(project).answer())
    if not status:
        return ()
    again = plan.draw(project, list(request.targets), status)
    return tuple(line for step, line in zip(again.steps, again.lines(), strict=True) if step.action != "ready")


def _tell(project: Project, result: Result, screen: Screen, hooks: Hooks) -> None:
    assert result.plan is not None
    table = closing.table(result.plan.graph, result.outcomes, hooks.receipts(project, result.plan.graph))
    for line in ("", *table, *closing.failures(project, result.outcomes, result.rehearsals)):
        screen.say(line)
    if result.changed_since:
        screen.say("\nnot up to date after all; was something edited while it ran? The next run takes it up:")
        screen.say("\n".join(result.changed_since))
    screen.say(f"\n{duration(result.seconds)} in all")
    for line in closing.ending(project, result.exit_code == 0):
        screen.say(line)


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end a run as Ctrl-C does: stages ended, MLflow told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
