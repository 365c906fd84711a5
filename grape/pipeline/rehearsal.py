"""Runs of rl wait for a rehearsal before they begin: where they will take minutes, or where it is asked for.

A rehearsal is a process of its own, with the threads and under the guard of a stage, and no stage: it makes nothing that another
reads. One stands for all runs that draw and score alike; what does not sample waits for none. One that passed is not repeated while
all it depends on stays as it was. One that fails by itself keeps nobody from running.
"""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from grape import dvc, yamlfile
from grape.models.folder import chain
from grape.pipeline.execute import Executor, Outcome
from grape.pipeline.plan import Plan
from grape.project import Project
from grape.rehearsal.alike import Alike, alike, key
from grape.rehearsal.record import Rehearsal, keep, kept, place

PREFIX = "rl@"
LONG = 180.0  # seconds of rl, all runs together
# What two cores did: longest answers of small models, a token; of large ones, a token times a byte of the weights. Measured on the
# default world and on SmolLM2-135M; where it is faster, a run counts as longer than it is.
TOKENS, BYTES = 1e4, 4e10


def expected(project: Project, runs: int) -> float:
    """Seconds that `runs` runs of rl would take on two cores, at most; known before any model is loaded."""
    rl = yamlfile.at(yamlfile.read(project.params), "rl")
    ((unit, amount),) = (rl["budget"] or {"updates": rl["steps"]}).items()
    if unit == "seconds":
        return float(runs * amount)
    longest = rl["max_new_tokens"]
    each = {"updates": rl["prompts"] * rl["samples"] * longest, "samples": longest, "tokens": 1}[unit]
    weights, tokens = chain(str(project.root / "models/sft")).size(), float(runs * amount * each)
    return float("inf") if weights is None else tokens / TOKENS + tokens * weights / BYTES  # the hub's: large


class Rehearsals:
    """
    Args:
        wanted: before runs of any length (True), before none (False), before long ones (None).

    Attributes:
        told: called with each rehearsal once it is there, in the thread of a run.
    """

    def __init__(self, project: Project, drawn: Plan, wanted: bool | None) -> None:
        self.project, self.wanted = project, wanted
        steps = {step.stage: step.action for step in drawn.steps if step.stage.startswith(PREFIX) and wanted is not False}
        self._actions = {stage: action for stage, action in steps.items() if action in ("run", "check")}
        self._kinds = alike(project) if self._actions else []
        self._locks = {kind.algorithms: threading.Lock() for kind in self._kinds}
        self._held: dict[tuple[str, ...], Rehearsal | None] = {}  # None: it failed by itself
        self.told: Callable[[Rehearsal], None] = lambda _: None

    @property
    def held(self) -> tuple[Rehearsal, ...]:
        return tuple(each for each in self._held.values() if each is not None)

    def before(self, executor: Executor, stage: str) -> Outcome | None:
        """Wait until the rehearsal of this run's kind is over; an outcome keeps the run from beginning."""
        kind = next((kind for kind in self._kinds if stage.removeprefix(PREFIX) in kind.runs), None)
        if kind is None or stage not in self._actions:
            return None
        with self._locks[kind.algorithms]:
            if kind.algorithms not in self._held and not executor.stopping and self._called_for(stage):
                found = self._rehearsed(executor, kind, stage)
                if not executor.stopping:
                    self._held[kind.algorithms] = found
        if executor.stopping:
            return Outcome(stage, "stopped")
        verdict = self._held.get(kind.algorithms)
        return None if verdict is None or verdict.passed else Outcome(stage, "stopped", code=2, because="the rehearsal")

    def _called_for(self, stage: str) -> bool:
        runs = sum(name.removeprefix(PREFIX) in kind.runs for name in self._actions for kind in self._kinds)
        if not self.wanted and expected(self.project, runs) <= LONG:
            return False
        # What follows a stage that came out as it was is up to date after all.
        return self._actions[stage] == "run" or bool(dvc.read_status(dvc.ask(self.project, "status", "--json", stage).answer()))

    def _rehearsed(self, executor: Executor, kind: Alike, stage: str) -> Rehearsal | None:
        run, say = stage.removeprefix(PREFIX), executor.screen.say
        at = place(self.project, key(self.project, kind, run))
        shown = at.relative_to(self.project.root)
        if (found := kept(self.project, at.stem)) and found.passed:
            say(f"{', '.join(kind.runs)}: rehearsed before with all as it is now ({shown})")
            self.told(found)
            return found
        at.unlink(missing_ok=True)
        say(f"{', '.join(kind.runs)}: two rounds first, as a rehearsal (`--no-rehearsal` does without)")
        words = [sys.executable, "-m", "grape.commands.rehearse", run]
        exited = executor.watch(f"rehearsal@{run}", words, executor.threads.get(stage, 1))
        if exited is None or executor.stopping:
            return None
        found = kept(self.project, at.stem)
        if found is None:
            say(f"the rehearsal itself failed, and its runs begin without it: {exited.log.relative_to(self.project.root)}")
            return None
        if not found.passed and _agreed(executor):
            found = replace(found, accepted=True)
            keep(self.project, found)
        self.told(found)
        return found


def _agreed(executor: Executor) -> bool:
    """Whether somebody at the terminal wants to go on; nobody is there: no."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    executor.screen.say("Go on? [y/N]")
    while not executor.stopping:  # Ctrl-C reaches the main thread alone
        if select.select([sys.stdin], [], [], 0.2)[0]:
            return sys.stdin.readline().strip().lower() in ("y", "yes")
    return False
