"""Trial after trial, several at once, and what was found."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from grape import track, tuned, yamlfile
from grape.errors import GrapeError
from grape.params import edited
from grape.pipeline import Screen, mend
from grape.pipeline.schedule import cores
from grape.project import Project, sqlite_address
from grape.schema import Params
from grape.slot import SFT
from grape.stages.inputs import identity
from grape.stages.validation import METRIC
from grape.tune import spaces, workspace
from grape.tune.course import Course, Sft, Slot
from grape.tune.spaces import Knobs, Space
from grape.tune.study import Study
from grape.tune.trial import Trial, TrialEnd
from grape.tuned import Spread, Tuned

PARTS = 4  # of a trial's training; after each but the last the policy is validated


@dataclass(frozen=True)
class Tuning:
    """What the user asked for.

    Attributes:
        algorithms: each with its space. trials: of each. share: of the budget, 0..1. seeds: of each trial. workers: trials at once.
    """

    algorithms: Mapping[str, Space]
    trials: int
    share: float
    seeds: tuple[int, ...]
    workers: int

    def steps(self, params: Params, name: str) -> int:
        """Of a trial of `name`: rounds, of SFT updates."""
        return math.ceil(self.share * (params.sft if name == SFT else params.rl).steps)

    def budget(self, params: Params, name: str) -> str:
        """Of a trial of `name`, in words."""
        if name == SFT:
            return f"{self.steps(params, name)} of {params.sft.steps} updates of {SFT}"
        for unit, amount in (params.rl.budget or {}).items():
            return f"{amount * self.share:g} of {amount:g} {unit}"
        return f"{self.steps(params, name)} of {params.rl.steps} rounds"


@dataclass
class Search:
    project: Project
    wanted: Tuning
    screen: Screen
    quiet: Screen
    base: Project
    cache: Path
    params: Params
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    parent: str | None = None
    studies: dict[str, Study] = field(default_factory=dict)
    _waiting: dict[str, list[optuna.trial.Trial]] = field(default_factory=dict)
    _running: dict[Future[TrialEnd], tuple[str, optuna.trial.Trial, Trial, track.TrialRun]] = field(default_factory=dict)

    # ---- in order

    def open(self) -> None:
        address, seed = sqlite_address("sqlite", workspace.folder(self.project) / "studies.db"), self.params.seed
        for name, space in self.wanted.algorithms.items():
            now = spaces.present(self.params, name, space)
            study = Study.open(address, f"{name}-{self._key(name, space)}", name, space, now, (seed, "tune"))
            self.studies[name], self._waiting[name] = study, study.begun()
            study.retry()
            if ended := len(study.ended):
                self.screen.say(f"{name}: {ended} trials are there from before")
        workspace.sweep(self.project, [self._place(name, trial.number) for name in self._waiting for trial in self._waiting[name]])

    def go(self) -> None:
        """Run what is left of every algorithm's trials, in turn."""
        with ThreadPoolExecutor(max_workers=self.wanted.workers, thread_name_prefix="trial") as pool:
            try:
                while True:
                    while len(self._running) < self.wanted.workers and (name := self._next()):
                        self._start(pool, name)
                    if not self._running:
                        return
                    for done in wait(list(self._running), return_when=FIRST_COMPLETED).done:
                        self._end(done)
            except BaseException:
                for _, _, trial, _ in self._running.values():
                    trial.stop()
                for done in wait(list(self._running)).done:
                    self._end(done)
                raise

    def found(self) -> dict[str, Tuned]:
        """Of every algorithm that has a score."""
        made_for = tuned.surroundings(self.base)
        found = {name: self._summary(study, made_for) for name, study in self.studies.items()}
        return {name: entry for name, entry in found.items() if entry is not None}

    def refuse_scoreless(self) -> None:
        """
        Raises:
            GrapeError: not one trial of an algorithm has a score.
        """
        for name, study in self.studies.items():
            if study.best() is None:
                reasons = [reason for trial in study.ended if (reason := trial.user_attrs.get("reason"))]
                what = (
                    f"not one of the {len(study.ended)} trials of {name} has a score; the last: {reasons[-1] if reasons else '-'}"
                )
                place = logs(self.project).relative_to(self.project.root)
                raise GrapeError(what, where="grape tune", mend=f"mend the cause (their logs: {place}), then tune {name} again")

    # ---- one trial

    def _next(self) -> str | None:
        """The algorithm whose turn it is: the one with the fewest trials so far. None: all have theirs."""
        busy = [name for name, _, _, _ in self._running.values()]
        begun = {name: len(study.ended) + busy.count(name) for name, study in self.studies.items()}
        open_ = [name for name, count in begun.items() if self._waiting[name] or count < self.wanted.trials]
        return min(open_, key=lambda name: begun[name], default=None)

    def _start(self, pool: ThreadPoolExecutor, name: str) -> None:
        study = self.studies[name]
        asked = self._waiting[name].pop(0) if self._waiting[name] else study.ask()
        knobs, label = study.knobs(asked), f"{name}-{asked.number}"
        values = self._values(name, knobs)
        record = track.TrialRun(self.project, self.parent, self.nonce, label, {"algorithm": name, **knobs, **values})
        try:
            here = self._workspace(name, asked.number, values)
        except GrapeError as refusal:  # these knobs do not go together
            self._settle(name, asked, record, TrialEnd("failed", reason=refusal.what))
            return
        course = self._course(name, here)
        trial = Trial(here, label, course, self.nonce, study.report(asked), self._threads, self.quiet, logs(self.project))
        self._running[pool.submit(trial.run)] = name, asked, trial, record

    def _end(self, done: Future[TrialEnd]) -> None:
        name, asked, _, record = self._running.pop(done)
        try:
            ended = done.result()
        except GrapeError as refusal:
            ended = TrialEnd("failed", reason=refusal.what)
        except Exception as error:  # boundary: one trial's accident, such as a file that is gone, must not cost the others
            ended = TrialEnd("failed", reason=f"{type(error).__name__}: {error}")
        self._settle(name, asked, record, ended)

    def _settle(self, name: str, asked: optuna.trial.Trial, record: track.TrialRun, ended: TrialEnd) -> None:
        self.studies[name].tell(asked, ended)
        score = {} if ended.score is None else {"score" if ended.state == "complete" else METRIC: ended.score}
        record.end(ended.state, {**score, "seconds": ended.seconds}, ended.history, ended.reason)
        self.screen.say(self._line(name, asked, ended))

    def _line(self, name: str, asked: optuna.trial.Trial, ended: TrialEnd) -> str:
        study = self.studies[name]
        knobs = "the present settings" if study.is_present(asked) else shown(study.settled(asked.params))
        known = {
            "complete": f"{ended.score:.4f} ({ended.judge})" if ended.score is not None else "",
            "pruned": f"pruned at {ended.score:.4f} (proxy)" if ended.score is not None else "pruned",
            "failed": f"failed: {ended.reason}",
            "stopped": "stopped; it goes on the next time",
        }
        how = "from the cache" if ended.state == "complete" and not ended.trained else f"{ended.seconds:.0f} s"
        return f"{name}-{asked.number}  {known[ended.state]}  {how}  {knobs}"

    def _values(self, name: str, knobs: Knobs) -> dict[str, Any]:
        """What a trial's params.yaml has otherwise than the project's."""
        budget = self._sft_budget() if name == SFT else self._rl_budget()
        scaled = knobs if name == SFT else spaces.scaled(self.params, name, knobs, self.wanted.steps(self.params, name))
        return budget | {f"{spaces.section(name)}.{knob}": value for knob, value in scaled.items()}

    def _sft_budget(self) -> dict[str, Any]:
        sft, steps = self.params.sft, self.wanted.steps(self.params, SFT)
        return {"sft.steps": steps, "sft.warmup_steps": round(sft.warmup_steps * steps / sft.steps)}

    def _rl_budget(self) -> dict[str, Any]:
        rl, steps = self.params.rl, math.ceil(self.wanted.share * self.params.rl.steps)
        budget: dict[str, Any] = {
            "rl.steps": steps,
            "rl.warmup_steps": round(rl.warmup_steps * steps / rl.steps),
            "rl.validate_every": max(1, steps // PARTS),
        }
        if rl.budget:
            budget["rl.budget"] = {unit: amount * self.wanted.share for unit, amount in rl.budget.items()}
        return budget

    def _course(self, name: str, here: Project) -> Course:
        if name != SFT:
            return Slot(here, name, self.wanted.seeds)

        def make(text: str) -> Project:
            return workspace.make(self.project, here.root, self.cache, text, self.base)

        before, own = yamlfile.text_of(self.base.params), yamlfile.text_of(here.params)
        return Sft(here, self.params.rl.algorithms[0], self.wanted.seeds, make, before, own)

    def _workspace(self, name: str, number: int, values: Mapping[str, Any]) -> Project:
        text = edited(self.base.params, [f"{key}={json.dumps(value)}" for key, value in values.items()])[0]
        place = self._place(name, number)
        for sentence in mend.leftovers(Project(place)):
            self.quiet.say(sentence)
        return workspace.make(self.project, place, self.cache, text, self.base)

    def _summary(self, study: Study, made_for: dict[str, str]) -> Tuned | None:
        best, count = study.best(), study.counts()
        if best is None:
            return None
        present = next((trial.value for trial in study.ended if study.is_present(trial)), None)
        return Tuned(
            knobs=study.settled(best.params),
            judge=best.user_attrs["judge"],
            spread=Spread.of(study.scores()),
            present=None if present is None else round(present, 6),
            scores=[round(score, 6) for score in study.scores()],
            share=self.wanted.share,
            steps=self.wanted.steps(self.params, study.algorithm),
            seeds=list(self.wanted.seeds),
            made_for=made_for,
            **count,
        )

    # ---- what is where

    def _place(self, name: str, number: int) -> Path:
        return workspace.folder(self.project) / "trials" / f"{name}-{number}"

    @property
    def _threads(self) -> int:
        return max(1, cores() // self.wanted.workers)

    def _key(self, name: str, space: Space) -> str:
        """Of all that makes scores comparable: what a trial's stages read but for the knobs that are tried, and how these are."""
        found: dict[str, Any] = {"space": repr(sorted(space.items())), "share": self.wanted.share, "seeds": self.wanted.seeds}
        policy = f"{self.params.rl.algorithms[0] if name == SFT else name}-{self.wanted.seeds[0]}"
        for stage in (SFT if name == SFT else f"rl@{policy}", f"evaluate@{policy}"):
            told = identity(self.base, self.params, stage)
            mine = json.loads(told.pop(spaces.section(name), "{}"))
            told.pop(f"models/policy/{policy}", None)
            found[stage.partition("@")[0]] = told | {"knobs": {knob: value for knob, value in mine.items() if knob not in space}}
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def shown(knobs: Mapping[str, Any]) -> str:
    return ", ".join(f"{knob} {json.dumps(value)}" for knob, value in knobs.items())


def logs(project: Project) -> Path:
    return project.state / "logs" / "tune"


@contextmanager
def log(path: Path) -> Iterator[Screen]:
    """What need not stand on the screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        yield Screen(file)
