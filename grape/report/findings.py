"""Rubric items that people should look at again: where one passes a threshold of `report` in params.yaml, and what may be done.

Nothing is changed here or anywhere else: weights and wordings stay with the people who write rubrics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from grape.evaluation.record import ItemStatistics, Side
from grape.report.data import ReportInputs

if TYPE_CHECKING:
    from grape.schema import Report

Flag = Literal["unsure", "saturated", "redundant", "length", "missing"]
FLAGS: tuple[Flag, ...] = ("unsure", "saturated", "redundant", "length", "missing")
LEARNED = "reward_model/score"  # what stands in place of the items with rl.reward: reward_model; nobody can edit it
KEYS = ("score", "confidence", "missing", "spread", "length_correlation")


@dataclass(frozen=True)
class Finding:
    """One item that passed a threshold. `where` names SFT and the policies it did so with, `number` is the furthest of theirs."""

    category: str
    item: str
    flag: Flag
    measure: str
    number: float
    threshold: float
    where: tuple[str, ...]
    advice: str


def findings(inputs: ReportInputs, limits: Report) -> list[Finding]:
    """What to look at again, on validation prompts, in the rubrics' order."""
    found: dict[tuple[str, Flag, str], list[tuple[str, float]]] = defaultdict(list)
    for place, side in _places(inputs):
        for name, flag, measure, number in _passed(side, limits):
            found[name, flag, measure].append((place, number))
    for run in inputs.validation:
        for name in _alike(run.sft, run.policy, limits):
            places = found[name, "saturated", "spread"]
            places += [*([] if places else [("SFT", 0.0)]), (run.name, 0.0)]
    order = {name: place for place, name in enumerate(_names(inputs))}
    rows = sorted(found, key=lambda key: (order[key[0]], FLAGS.index(key[1]), key[2]))
    return [_finding(*key, found[key], limits) for key in rows]


def _places(inputs: ReportInputs) -> list[tuple[str, Side]]:
    return [("SFT", inputs.validation[0].sft), *((run.name, run.policy) for run in inputs.validation)]


def _names(inputs: ReportInputs) -> list[str]:
    return list(dict.fromkeys(name for _, side in _places(inputs) for name in side.items))


def _passed(side: Side, limits: Report) -> Iterator[tuple[str, Flag, str, float]]:
    """(item, flag, what was measured, the number) of everything beyond a threshold; at the threshold is not beyond it."""
    for name, item in side.items.items():
        if name == LEARNED:
            continue
        if item.confidence is not None and item.confidence < limits.unsure:
            yield name, "unsure", "confidence", item.confidence
        if _full(item, limits):
            assert item.score is not None
            yield name, "saturated", "score", item.score
        if item.length_correlation is not None and abs(item.length_correlation) > limits.length:
            yield name, "length", "correlation with length", item.length_correlation
        if item.missing > limits.missing:
            yield name, "missing", "missing scores", item.missing
    for pair in side.overlap:
        if pair.correlation is not None and abs(pair.correlation) > limits.redundant:
            yield pair.a, "redundant", f"correlation with {pair.b.rpartition('/')[2]}", pair.correlation


def _full(item: ItemStatistics, limits: Report) -> bool:
    return item.score is not None and item.score > limits.saturated


def _alike(sft: Side, policy: Side, limits: Report) -> Iterator[str]:
    """Items on which all answers to a prompt score the same, before and after; those that all answers meet are named as such."""
    for name in sft.items.keys() & policy.items.keys() - {LEARNED}:
        before, after = sft.items[name], policy.items[name]
        if before.spread == 0 == after.spread and not (_full(before, limits) or _full(after, limits)):
            yield name


def _finding(name: str, flag: Flag, measure: str, places: list[tuple[str, float]], limits: Report) -> Finding:
    category, _, item = name.rpartition("/")
    ordered = sorted((number for _, number in places), key=abs)
    number = ordered[0] if flag == "unsure" else ordered[-1]
    threshold = 0.0 if measure == "spread" else float(getattr(limits, flag))
    where = tuple(place for place, _ in places)
    return Finding(category, item, flag, measure, number, threshold, where, _advice(flag, measure, number))


def _advice(flag: Flag, measure: str, number: float) -> str:
    """What a person may do about it."""
    other = measure.removeprefix("correlation with ")
    if flag == "unsure":
        return "Reword it, split it into single criteria, or label more judgements of it."
    if flag == "saturated" and measure == "spread":
        return "Answers to one prompt never differ in it, so it teaches nothing: drop it, or make it something some answers meet."
    if flag == "saturated":
        return "Nearly every answer meets it: drop it or make it harder, unless it is there as a guard."
    if flag == "redundant" and number > 0:
        return f"It says what {other} says: merge the two, or halve their weights."
    if flag == "redundant":
        return f"Answers that meet it fail {other}: decide which of the two is wanted, or reword them."
    if flag == "length":
        return f"{'Longer' if number > 0 else 'Shorter'} answers score higher: ask about content instead of form."
    return f"Its judge fails in {number:.0%} of the cases (the samples give reasons): shorten or reword it, or mend the judge."


def numbers(inputs: ReportInputs, limits: Report) -> dict[str, Any]:
    """Every item's numbers and the findings, for reports/metrics.json."""
    places = _places(inputs)
    items = {
        name: {place: side.items[name].model_dump(include=set(KEYS)) for place, side in places if name in side.items}
        for name in _names(inputs)
    }
    pairs: dict[str, dict[str, float | None]] = defaultdict(dict)
    for place, side in places:
        for pair in side.overlap:
            pairs[f"{pair.a} ~ {pair.b}"][place] = pair.correlation
    return {"items": items, "overlap": dict(pairs), "findings": [asdict(finding) for finding in findings(inputs, limits)]}
