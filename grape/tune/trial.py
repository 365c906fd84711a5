"""One trial: an algorithm with a set of knobs, trained and evaluated in a workspace of its own, by the very stages of the pipeline.

A set of knobs that was tried before comes from DVC's run cache and trains nothing. Nothing that runs here reads the test prompts.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import ValidationError

from grape.errors import GrapeError, first_problem
from grape.evaluation.record import Evaluation, JudgeName
from grape.files import read_lines
from grape.pipeline.execute import Executor, Outcome
from grape.pipeline.screen import Screen
from grape.project import Project
from grape.slot import SFT
from grape.stages.validation import METRIC
from grape.track.spool import Spool
from grape.tune import workspace
from grape.tune.course import Course

TICK = 1.0  # seconds from one glance at what it says to the next
_ERROR = re.compile(r"^grape: error: (.*)")
Point = tuple[int, float]  # round, mean training reward on the validation prompts
Report = Callable[[Point], bool]  # told of every point in order; whether the trial is to end


@dataclass(frozen=True)
class TrialEnd:
    """What became of a trial.

    Attributes:
        score: of a complete one, mean over its seeds, by `judge`; of a pruned one the last point. reason: why one failed.
        trained: whether anything was computed, or all came from the cache. history: its rounds' metrics, of the first seed.
    """

    state: Literal["complete", "pruned", "failed", "stopped"]
    score: float | None = None
    judge: JudgeName = "proxy"
    reason: str = ""
    seconds: float = 0.0
    trained: bool = False
    history: tuple[Mapping[str, Any], ...] = ()


@dataclass
class Trial:
    """
    Args:
        name: `grpo-3`, of its workspace. course: what it runs. report: gets the points of the first seed; in the thread that runs
            the trial. threads: that a stage computes with.
    """

    here: Project
    name: str
    course: Course
    nonce: str
    report: Report
    threads: int
    screen: Screen
    logs: Path
    _executor: Executor | None = None
    _pruned: bool = False
    _stopped: bool = False
    _told: list[int] = field(default_factory=list)

    def run(self) -> TrialEnd:
        """Train and evaluate; the workspace is gone afterwards, unless the trial was stopped and is to go on."""
        stages = [SFT, *(f"{kind}@{policy}" for policy in self.course.policies for kind in ("rl", "evaluate"))]
        self._executor = Executor(self.here, self.screen, dict.fromkeys(stages, self.threads), self.nonce)
        outcomes: list[Outcome] = []
        for stage in self.course.stages():
            outcomes.append(self._executor.run(stage) if outcomes else self._watched(stage))
            if not outcomes[-1].good or self._pruned or self._stopped:
                break
        ended = self._ended(outcomes)
        if ended.state != "stopped":
            workspace.remove(self.here.root)
        return ended

    def stop(self) -> None:
        """End it for good reason of the user's: it can go on another time."""
        self._stopped = True
        if self._executor:
            self._executor.stop(interrupted=True)

    def _watched(self, stage: str) -> Outcome:
        """Run the stage that trains, and end it when its points say so."""
        assert self._executor is not None
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), name=f"points-{self.name}", daemon=True)
        watcher.start()
        try:
            return self._executor.run(stage)
        finally:
            done.set()
            watcher.join()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(TICK):
            if self._tell(self._points()):
                self._pruned = True
                assert self._executor is not None
                self._executor.stop(interrupted=False)
                return

    def _tell(self, points: Iterator[Point]) -> bool:
        for point in points:
            if point[0] not in self._told:
                self._told.append(point[0])
                if self.report(point):
                    return True
        return False

    def _points(self) -> Iterator[Point]:
        """What the stage that runs has said so far."""
        for spool in Spool.pending(self.here):
            if spool.meta["stage"] == f"rl@{self.course.policies[0]}":
                for event, _ in spool.events():
                    value = event.get("values", {}).get(METRIC) if event["kind"] == "metrics" else None
                    if isinstance(value, float) and isfinite(value):
                        yield int(event["step"]), value

    def _ended(self, outcomes: Sequence[Outcome]) -> TrialEnd:
        seconds, trained = sum(outcome.seconds for outcome in outcomes), any(outcome.status == "ran" for outcome in outcomes)
        common: dict[str, Any] = {"seconds": seconds, "trained": trained or self._pruned}
        if self._stopped:
            return TrialEnd("stopped", **common)
        if self._pruned:
            return TrialEnd("pruned", dict(self._points()).get(max(self._told)), **common)
        if not outcomes[-1].good:
            return TrialEnd("failed", reason=self._reason(outcomes[-1]), **common)
        common["history"] = tuple(self._history())
        self._tell((int(row["step"]), row[METRIC]) for row in common["history"] if isinstance(row.get(METRIC), float))
        try:
            score, judge = self._score()
        except GrapeError as error:
            return TrialEnd("failed", reason=error.what, **common)
        return TrialEnd("complete", score, judge, **common)

    def _history(self) -> list[Mapping[str, Any]]:
        return [row for _, row in read_lines(self.course.curve) if row.get("step")]

    def _score(self) -> tuple[float, JudgeName]:
        """Mean over the seeds, by gold where there is one."""
        found = [evaluation(self.here.root / "reports" / "evaluate" / name / "metrics.json") for name in self.course.policies]
        judge: JudgeName = "gold" if all(one.policy.gold for one in found) else "proxy"
        return fmean(one.policy.of(judge).mean for one in found), judge

    def _reason(self, outcome: Outcome) -> str:
        """In the stage's own words; its log is kept."""
        if outcome.log:
            self.logs.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(outcome.log, self.logs / f"{self.name}.log")
        said = [match[1] for line in outcome.tail if (match := _ERROR.match(line))]
        why = said[-1] if said else outcome.because or next((line for line in reversed(outcome.tail) if line.strip()), "no word")
        return f"{outcome.stage}: {why}"


def evaluation(path: Path) -> Evaluation:
    """
    Raises:
        GrapeError: a score is missing or no finite number.
    """
    try:
        return Evaluation.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise GrapeError(f"no finite score: {': '.join(first_problem(error))}", where=path.name) from error
