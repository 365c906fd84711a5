"""Conclusions: the numbers of metrics.json, what is said of every algorithm, champion candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.special import stdtrit  # type: ignore[import-untyped]

from grape.budget import COUNTS
from grape.evaluation.record import Evaluation, Interval, Judged, JudgeName, Side
from grape.report.data import Cost, ReportInputs
from grape.track import Candidate

DIGITS = 6


@dataclass(frozen=True)
class Conclusion:
    """One algorithm against SFT. `difference` is over seeds (t interval), or the one seed's own bootstrap interval."""

    algorithm: str
    seeds: int
    better: int  # seeds whose interval lies above 0
    worse: int  # below 0
    sft: float
    policy: float
    difference: Interval
    outcome: Literal["beats", "mixed", "loses"]

    @property
    def sentence(self) -> str:
        """In words, e.g. `2 of 3 seeds are better than SFT`."""
        if self.outcome == "beats":
            return "better than SFT" if self.seeds == 1 else f"better than SFT with each of {self.seeds} seeds"
        if self.outcome == "loses":
            return "worse than SFT" if self.seeds == 1 else f"worse than SFT with each of {self.seeds} seeds"
        if self.seeds == 1:
            return "not distinguishable from SFT"
        worse = f", worse with {self.worse}" if self.worse else ""
        return f"better than SFT with {self.better} of {self.seeds} seeds{worse}"


def over_seeds(values: Sequence[float], level: float) -> Interval | None:
    """Mean over seeds with its t interval; None with one seed, which says nothing about others."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def conclusion(inputs: ReportInputs, algorithm: str, level: float) -> Conclusion:
    judge = inputs.judge
    runs = inputs.of(algorithm)
    differences = [run.difference.of(judge) for run in runs]
    better = sum(difference.low > 0 for difference in differences)
    worse = sum(difference.high < 0 for difference in differences)
    outcome: Literal["beats", "mixed", "loses"] = "beats" if better == len(runs) else "loses" if worse == len(runs) else "mixed"
    sft = fmean(run.sft.of(judge).mean for run in runs)
    policy = fmean(run.policy.of(judge).mean for run in runs)
    difference = over_seeds([d.mean for d in differences], level) or differences[0]
    return Conclusion(algorithm, len(runs), better, worse, sft, policy, difference, outcome)


def candidates(inputs: ReportInputs) -> list[Candidate]:
    """Every policy with its difference to SFT on validation prompts, for the champion alias: the best of many on the prompts that
    are reported would be reported too well."""
    differences = {run.name: run.difference.of(inputs.judge) for run in inputs.validation}
    return [Candidate(name, difference.mean, difference.low) for name, difference in differences.items()]


def metrics(inputs: ReportInputs, level: float) -> dict[str, Any]:
    """Content of reports/metrics.json."""
    judge, names = inputs.judge, inputs.algorithms
    policies = {run.name: _policy(run) | asdict(inputs.cost(run.name)) for run in inputs.evaluations}
    algorithms = {name: _algorithm(inputs.of(name), judge, level) | asdict(cost(inputs, name)) for name in names}
    base = inputs.evaluations[0].base
    sides = {"base": _side(base) if isinstance(base, Side) else base, "sft": _sft(inputs)}
    validation = {run.name: _scores(run.difference) for run in inputs.validation}
    splits = {
        "validation": {"prompts": inputs.validation[0].prompts, "for": "champion, tuning, samples, findings"},
        "test": {"prompts": inputs.evaluations[0].prompts, "for": "every other number", "looks_at_others": len(inputs.looks)},
    }
    return {"judge": judge, **sides, "policies": policies, "algorithms": algorithms, "validation": validation, "splits": splits}


def cost(inputs: ReportInputs, algorithm: str) -> Cost:
    """Mean over seeds; of memory the largest."""
    costs = [inputs.cost(run.name) for run in inputs.of(algorithm)]
    took = {unit: round(fmean(getattr(c, unit) for c in costs), unit == "seconds") for unit in COUNTS}
    return Cost(**took, memory_mb=round(max(c.memory_mb for c in costs)))


def headline(inputs: ReportInputs, level: float) -> dict[str, float]:
    """The few numbers of the report stage's run."""
    judge = inputs.judge
    numbers = {f"sft/{judge}": _mean([run.sft.of(judge).mean for run in inputs.evaluations])}
    for algorithm in inputs.algorithms:
        result = conclusion(inputs, algorithm, level)
        numbers[f"{algorithm}/{judge}"] = _mean([run.policy.of(judge).mean for run in inputs.of(algorithm)])
        numbers[f"{algorithm}/{judge}_difference"] = round(result.difference.mean, DIGITS)
    return numbers


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _mean(values: Sequence[float]) -> float:
    return round(fmean(values), DIGITS)


def _interval(name: str, value: Interval | None) -> dict[str, float | None]:
    places = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
    return {key: _round(getattr(value, place)) if value else None for key, place in places.items()}


def _scores(scores: Judged) -> dict[str, float | None]:
    return {**_interval("gold", scores.gold), **_interval("proxy", scores.proxy)}


def _side(side: Side) -> dict[str, Any]:
    return {
        **_scores(side),
        "greedy_gold": _round(side.greedy.gold),
        "greedy_proxy": _round(side.greedy.proxy),
        **{name: _round(getattr(side, name)) for name in ("length", "finished", "entropy")},
        "pass_at": {k: _round(value) for k, value in side.pass_at.items()},
        "categories": {name: {"n": category.n, **_scores(category)} for name, category in side.categories.items()},
        "datasets": {name: {"n": part.n, **_scores(part)} for name, part in side.datasets.items()},
    }


def _sft(inputs: ReportInputs) -> dict[str, Any]:
    """SFT's side: every evaluation measures it; where they sampled it differently, the mean over evaluations."""
    sides = [_side(run.sft) for run in inputs.evaluations]
    return sides[0] if all(side == sides[0] for side in sides) else _average(sides)


def _average(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _average([value[key] for value in values if key in value]) for key in first}
    return None if any(value is None for value in values) else _mean(values)


def _policy(run: Evaluation) -> dict[str, Any]:
    return {
        "algorithm": run.algorithm,
        "seed": run.seed,
        **_side(run.policy),
        "difference": _scores(run.difference),
        "dataset_differences": {name: _scores(gain) for name, gain in run.dataset_differences.items()},
        "benchmarks": [row.model_dump() for row in run.benchmarks],
        **_interval("win_rate", run.win_rate),
        "kl_token": _round(run.kl.token),
        "kl_sequence": _round(run.kl.sequence),
    }


def _algorithm(runs: Sequence[Evaluation], judge: JudgeName, level: float) -> dict[str, Any]:
    """Means over seeds with t intervals; with one seed the bounds are null."""
    numbers: dict[str, Any] = {"seeds": len(runs)}
    name: JudgeName
    for name in ("gold", "proxy"):
        values = [run.policy.of(name).mean for run in runs] if name in ("proxy", judge) else []
        numbers |= {**_interval(name, over_seeds(values, level)), name: _mean(values) if values else None}
    differences = [run.difference.of(judge).mean for run in runs]
    numbers |= {**_interval("difference", over_seeds(differences, level)), "difference": _mean(differences)}
    numbers |= {"win_rate": _mean([run.win_rate.mean for run in runs])}
    numbers |= {f"kl_{per}": _mean([getattr(run.kl, per) for run in runs]) for per in ("token", "sequence")}
    return numbers | {name: _mean([getattr(run.policy, name) for run in runs]) for name in ("length", "finished", "entropy")}
