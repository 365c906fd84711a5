"""Which knobs an algorithm is tried with next: Optuna's tree-structured Parzen estimator, in a database that outlives a kill.

Draws are counted, not streamed: the sampler of trial i is seeded from i, so that a study that was cut off goes on as it would have
gone.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from grape import randomness
from grape.tune.spaces import Dimension, Knobs, Range, Space, Value
from grape.tune.trial import Point, TrialEnd

RANDOM = 4  # trials before the estimator is asked, and complete ones before any is pruned
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass
class Study:
    """One algorithm's trials.

    Args:
        now: the present settings; they are among the trials and are never pruned. key: what the draws derive from.
    """

    algorithm: str
    space: Space
    now: Knobs
    key: tuple[object, ...]
    _study: optuna.Study

    @classmethod
    def open(cls, address: str, name: str, algorithm: str, space: Space, now: Knobs, key: tuple[object, ...]) -> Study:
        """The study of that name in the database, made where it is not there; what it tries next are the present settings,
        unless it has."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        storage = optuna.storages.RDBStorage(address, engine_kwargs={"connect_args": {"timeout": 60}})
        pruner = optuna.pruners.MedianPruner(n_startup_trials=RANDOM)
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True)
        study.enqueue_trial(now, skip_if_exists=True)
        return cls(algorithm, space, now, key, study)

    def begun(self) -> list[Trial]:
        """Trials that a kill has cut off, to be run again with the knobs they had."""
        return [Trial(self._study, trial._trial_id) for trial in self._all() if trial.state == TrialState.RUNNING]

    def ask(self) -> Trial:
        return self._study.ask()

    def knobs(self, trial: Trial) -> Knobs:
        """What the trial is run with: the present settings as they stand, drawn numbers to four digits."""
        seed = randomness.key(*self.key, self.algorithm, trial.number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = TPESampler(seed=seed, n_startup_trials=RANDOM, constant_liar=True)
        drawn = {knob: _drawn(trial, knob, dimension) for knob, dimension in self.space.items()}
        return self.settled(drawn)

    def settled(self, drawn: Knobs) -> Knobs:
        return drawn if drawn == self.now else {knob: _short(value) for knob, value in drawn.items()}

    def is_present(self, trial: Trial | FrozenTrial) -> bool:
        return trial.params == self.now

    def report(self, trial: Trial) -> Callable[[Point], bool]:
        """Tells the study of a trial's points; whether it is hopeless: below the median of the others at that round."""

        def told(point: Point) -> bool:
            known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if point[0] not in known:
                trial.report(point[1], point[0])
            return not self.is_present(trial) and trial.should_prune()

        return told

    def tell(self, trial: Trial, ended: TrialEnd) -> None:
        """What became of a trial; one that was stopped stays begun."""
        if ended.state == "stopped":
            return
        for name, value in (("reason", ended.reason), ("judge", ended.judge), ("trained", ended.trained)):
            trial.set_user_attr(name, value)
        if ended.state == "complete":
            self._study.tell(trial, ended.score)
        else:
            self._study.tell(trial, state=TrialState.PRUNED if ended.state == "pruned" else TrialState.FAIL)

    def retry(self) -> None:
        """Try again what failed before: its cause may be mended. The new trial then counts in place of the old one."""
        for trial in self.ended:
            if trial.state == TrialState.FAIL:
                self._study.enqueue_trial(trial.params)

    @property
    def ended(self) -> list[FrozenTrial]:
        """But for failed ones that were tried again, or will be."""
        known = self._all()
        later = [(trial.number, trial.params or trial.system_attrs.get("fixed_params")) for trial in known]

        def again(trial: FrozenTrial) -> bool:
            return trial.state == TrialState.FAIL and any(n > trial.number and values == trial.params for n, values in later)

        return [trial for trial in known if trial.state in STATES and not again(trial)]

    def counts(self) -> dict[str, int]:
        """How many are complete, pruned, failed."""
        return {name: sum(trial.state == state for trial in self.ended) for state, name in STATES.items()}

    def scores(self) -> list[float]:
        """Of the complete ones, in order."""
        return [trial.value for trial in self.ended if trial.state == TrialState.COMPLETE and trial.value is not None]

    def best(self) -> FrozenTrial | None:
        """The complete trial with the highest score, of equal ones the first; None where none is complete."""
        complete = [trial for trial in self.ended if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _drawn(trial: Trial, knob: str, dimension: Dimension) -> Value:
    if not isinstance(dimension, Range):
        return trial.suggest_categorical(knob, dimension.options)
    if dimension.whole:
        return trial.suggest_int(knob, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(knob, dimension.low, dimension.high, log=dimension.log)


def _short(value: Value) -> Value:
    return float(f"{value:.4g}") if isinstance(value, float) else value
