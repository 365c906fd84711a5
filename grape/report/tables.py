"""Rows of the report's tables and samples, as plain values that both templates format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from grape.evaluation.record import Interval, ItemStatistics, JudgeName, Sample, SampledAnswer, Side
from grape.report.conclusions import conclusion, cost, over_seeds
from grape.report.data import ReportInputs

Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One prompt with SFT's and the policy's answer; `label` says why it was picked."""

    label: str
    category: str
    prompt: str
    answer: str | None
    sft: Row
    policy: Row


def league(inputs: ReportInputs, champion: str | None) -> list[Row]:
    """Every policy, the best first, then SFT and base; where these two are one model, its row says so."""
    judge = inputs.judge
    order = sorted(inputs.evaluations, key=lambda run: (-run.policy.of(judge).mean, run.name))
    rows = []
    for run in order:
        against = {"difference": run.difference.of(judge), "win_rate": run.win_rate, "kl": run.kl.sequence}
        rows.append({**_side(run.name, run.policy, judge), "champion": run.name == champion, **against})
    first, none = inputs.evaluations[0], {"champion": False, "difference": None, "win_rate": None, "kl": None}
    rows.append(_side("SFT (= base)" if first.base == "sft" else "SFT", first.sft, judge) | none)
    base = apart(inputs)
    return [*rows, _side("base", base, judge) | none] if base else rows


def apart(inputs: ReportInputs) -> Side | None:
    """The base model's side, where it is another model than SFT and was evaluated."""
    base = inputs.evaluations[0].base
    return base if isinstance(base, Side) else None


def _side(name: str, side: Side, judge: JudgeName) -> Row:
    same = {key: getattr(side, key) for key in ("proxy", "length", "finished", "entropy", "pass_at")}
    return {"name": name, "score": side.of(judge), "greedy": side.greedy.of(judge), **same}


def algorithms(inputs: ReportInputs, level: float) -> list[Row]:
    """One row per algorithm, over its seeds."""
    rows = []
    for name in inputs.algorithms:
        runs = inputs.of(name)
        row = {"name": name, "conclusion": conclusion(inputs, name, level), "cost": cost(inputs, name)}
        row["difference"] = _spread([run.difference.of(inputs.judge).mean for run in runs], level)
        row["score"] = _spread([run.policy.of(inputs.judge).mean for run in runs], level)
        row["proxy"] = _spread([run.policy.proxy.mean for run in runs], level)
        row["win_rate"] = _spread([run.win_rate.mean for run in runs], level)
        row["kl"] = fmean(run.kl.sequence for run in runs)
        rows.append(row | {key: fmean(getattr(run.policy, key) for run in runs) for key in ("length", "entropy")})
    return sorted(rows, key=lambda row: -row["conclusion"].policy)


def _spread(values: Sequence[float], level: float) -> Interval | float:
    """The mean over seeds with its interval; of one seed the value alone, which says nothing about others."""
    return over_seeds(values, level) or values[0]


def left_out(inputs: ReportInputs) -> list[Row]:
    """What stages left out, by reason."""
    return [
        {"stage": stage, "reason": name.removeprefix("dropped/").replace("_", " "), "rows": count, "kept": record.get("rows/kept")}
        for stage, record in inputs.left.items()
        for name, count in record.items()
        if name.startswith("dropped/") and count
    ]


def judges(inputs: ReportInputs) -> list[Row]:
    """A row per judge of critic items and item that people have judged held out, over all items ("") first; of a judge that nobody
    has judged one row. `between`: the judges' agreement with each other on the item."""
    found = inputs.judges
    if found is None:
        return []
    rows = []
    for report in found.judges:
        items = sorted({name.rpartition("/")[0] for name in report.numbers if name.endswith("judged")})
        for item in items:
            numbers: Row = {name: report.of(item, name) for name in ("judged", "agreement", "kappa", "ece", "ece_floor")}
            who = {"name": report.name, "model": report.model or report.backend or "all together", "item": item or "all"}
            rows.append(who | {"calibrated": bool(report.curves), "between": found.between.get(item)} | numbers)
    return rows


def title(rows: Sequence[Row]) -> str:
    """The page in one line; `rows` are those of `algorithms`."""
    winners = [row["name"] for row in rows if row["conclusion"].outcome == "beats"]
    if winners:
        names = " and ".join([", ".join(winners[:-1]), winners[-1]] if len(winners) > 1 else winners)
        return f"{names} {'beats' if len(winners) == 1 else 'beat'} SFT"
    if any(row["conclusion"].better for row in rows):
        return "Some seeds beat SFT, no algorithm does with all of them"
    return "No policy beats SFT"


def categories(inputs: ReportInputs) -> list[Row]:
    """Score per category: SFT, then each algorithm's mean over seeds."""
    judge, rows, base = inputs.judge, [], apart(inputs)
    groups = [[run.policy for run in inputs.of(algorithm)] for algorithm in inputs.algorithms]
    for name, category in inputs.evaluations[0].sft.categories.items():
        means = [fmean(policy.categories[name].of(judge).mean for policy in policies) for policies in groups]
        before = base.categories[name].of(judge) if base else None
        rows.append({"name": name, "n": category.n, "base": before, "sft": category.of(judge), "algorithms": means})
    return rows


def datasets(inputs: ReportInputs, level: float) -> list[Row]:
    """By each judge that there is, the score per data set: base, SFT, then each algorithm's mean over seeds and its difference."""
    first, base, rows = inputs.evaluations[0], apart(inputs), []
    judges: tuple[JudgeName, ...] = ("gold", "proxy") if inputs.judge == "gold" else ("proxy",)
    for name, judge in ((n, j) for n in first.sft.datasets for j in judges):
        groups = [inputs.of(algorithm) for algorithm in inputs.algorithms]
        cells = []
        for runs in groups:
            gains = [run.dataset_differences[name].of(judge) for run in runs]
            cells.append((fmean(run.policy.datasets[name].of(judge).mean for run in runs), _gain_over_seeds(gains, level)))
        before, sft = base.datasets[name].of(judge) if base else None, first.sft.datasets[name]
        rows.append({"name": name, "judge": judge, "n": sft.n, "base": before, "sft": sft.of(judge), "algorithms": cells})
    return rows


def benchmarks(inputs: ReportInputs, level: float) -> list[Row]:
    """Every metric of the standard benchmarks: base, SFT, then each algorithm's mean over seeds and its difference."""
    rows = []
    for place, found in enumerate(inputs.evaluations[0].benchmarks):
        cells = []
        for algorithm in inputs.algorithms:
            runs = [run.benchmarks[place] for run in inputs.of(algorithm)]
            cells.append((fmean(run.policy for run in runs), _gain_over_seeds([run.difference for run in runs], level)))
        same = {name: getattr(found, name) for name in ("task", "metric", "n", "sft")}
        rows.append({**same, "base": found.base if apart(inputs) else None, "up": found.higher_is_better, "algorithms": cells})
    return rows


def _gain_over_seeds(gains: Sequence[Interval | float], level: float) -> Interval | float:
    """The mean over seeds with its interval; of one seed its own."""
    return over_seeds([g if isinstance(g, float) else g.mean for g in gains], level) or gains[0]


def items(inputs: ReportInputs) -> list[Row]:
    """Every rubric item before and after, each algorithm averaged over its seeds."""
    rows, base = [], apart(inputs)
    groups = [[run.policy.items for run in inputs.of(algorithm)] for algorithm in inputs.algorithms]
    for name, before in inputs.evaluations[0].sft.items.items():
        category, _, item = name.rpartition("/")
        after = [_average([found[name] for found in group if name in found]) for group in groups]
        origin = base.items.get(name) if base else None
        rows.append({"category": category, "item": item, "base": origin, "sft": before, "algorithms": after})
    return rows


def _average(values: Sequence[ItemStatistics]) -> ItemStatistics | None:
    """Number by number, the mean over those that have it."""
    known: dict[str, list[float]] = {name: [] for name in ItemStatistics.model_fields}
    for name, number in (pair for value in values for pair in value):
        known[name] += [] if number is None else [number]
    means = {name: fmean(numbers) if numbers else None for name, numbers in known.items()}
    return ItemStatistics.model_validate(means) if values else None


def samples(inputs: ReportInputs, count: int, best: str | None) -> list[tuple[str, list[Example]]]:
    """For one policy of each algorithm (the best of all, else its best seed): `count` validation prompts per category."""
    judge = inputs.judge
    chosen = []
    for algorithm in inputs.algorithms:
        runs = [run for run in inputs.validation if run.algorithm == algorithm]
        names = [run.name for run in sorted(runs, key=lambda run: -run.policy.of(judge).mean)]
        name = best if best in names else names[0]
        chosen.append((name, _pick(inputs.shown[name], count, judge)))
    return chosen


def _pick(rows: Sequence[Sample], count: int, judge: JudgeName) -> list[Example]:
    """Per category a third each of the largest gains, the largest losses and the middle; ties in order of id."""
    picked: list[tuple[str, Sample]] = []
    gains, losses = -(-count // 3), count // 3
    middle = count - gains - losses
    for category in dict.fromkeys(row.category for row in rows):
        ranked = sorted((row for row in rows if row.category == category), key=lambda row: (-_gain(row, judge), row.id))
        if len(ranked) <= count:
            picked += [("", row) for row in ranked]
            continue
        rest = ranked[gains : len(ranked) - losses]
        start = (len(rest) - middle) // 2
        picked += [("largest gain", row) for row in ranked[:gains]]
        picked += [("typical", row) for row in rest[start : start + middle]]
        picked += [("smallest gain or loss", row) for row in ranked[len(ranked) - losses :]]
    return [
        Example(label, row.category, _prompt(row.prompt), row.answer, _shown(row.sft, judge), _shown(row.policy, judge))
        for label, row in picked
    ]


def _gain(row: Sample, judge: JudgeName) -> float:
    before, after = row.sft.of(judge), row.policy.of(judge)
    return 0.0 if before is None or after is None else after - before


def _shown(answer: SampledAnswer, judge: JudgeName) -> Row:
    return {"text": answer.text, "score": answer.of(judge), "proxy": answer.proxy, "items": answer.items}


def _prompt(prompt: str | list[Row]) -> str:
    """A prompt is text, or a conversation in the field's `messages` form."""
    if isinstance(prompt, list):
        return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    return prompt
