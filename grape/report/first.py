"""The report's first screen: who won, by how much, how sure, at what cost, and whether anything is fishy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from grape.evaluation.comparison import Comparison
from grape.report.conclusions import cost
from grape.report.data import ReportInputs
from grape.report.pairs import SFT

CHEAPER = 0.9  # of the best one's seconds: what is worth a word


def answers(inputs: ReportInputs, found: Sequence[Comparison], alarms: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(question, answer), in the order of a reader's interest.

    Args:
        found: the family of comparisons. alarms: (name, hint).
    """
    means = {name: fmean(run.policy.of(inputs.judge).mean for run in inputs.of(name)) for name in inputs.algorithms}
    best = max(means, key=lambda name: means[name])
    said = [("Who won?", _winner(best, means, found)), ("By how much?", _margin(best, found, inputs))] if found else []
    if found:
        said.append(("How sure?", _certainty(best, found)))
    said.append(("At what cost?", _costs(best, inputs, found)))
    said.append(("On what?", _prompts(inputs)))
    fishy = ", ".join(dict.fromkeys(name for name, _ in alarms))
    said.append(("Anything fishy?", f"{fishy}: see Alarms" if fishy else "No alarm."))
    return said


def _prompts(inputs: ReportInputs) -> str:
    before = f"looked at before for {len(inputs.looks)} other polic{'y' if len(inputs.looks) == 1 else 'ies'}"
    looks = before if inputs.looks else "looked at for the first time"
    validation = inputs.validation[0].prompts
    return f"{inputs.evaluations[0].prompts} test prompts, {looks}; the champion was chosen by {validation} validation prompts."


def _winner(best: str, means: Mapping[str, float], found: Sequence[Comparison]) -> str:
    of_sft = next(one for one in found if {one.a, one.b} == {best, SFT})
    if not of_sft.different:
        return f"Nobody: {best} has the highest mean of them, {means[best]:.3f}, and cannot be told from SFT."
    if of_sft.difference.mean < 0:
        return f"Nobody: {best} has the highest mean of them, {means[best]:.3f}, and is worse than SFT."
    level = _level_with(best, found)
    if len(means) == 1:
        return f"{best} is better than SFT."
    if not level:
        return f"{best}: it is better than SFT and than every other algorithm."
    others = " and ".join([", ".join(level[:-1]), level[-1]] if len(level) > 1 else level)
    return f"{best} has the highest mean and is better than SFT; it cannot be told from {others}."


def _level_with(best: str, found: Sequence[Comparison]) -> list[str]:
    """The algorithms that `best` is not distinguishable from."""
    return [one.b if one.a == best else one.a for one in found if best in (one.a, one.b) and SFT != one.b and not one.different]


def _margin(best: str, found: Sequence[Comparison], inputs: ReportInputs) -> str:
    """Against SFT, and against the algorithm that comes nearest."""
    gains: dict[str, tuple[float, float, float]] = {}
    for one in found:
        mean, low, high = one.difference.mean, one.difference.low, one.difference.high
        if one.a == best:
            gains[one.b] = mean, low, high
        elif one.b == best:
            gains[one.a] = -mean, -high, -low
    others = sorted(gains.keys() - {SFT}, key=lambda name: gains[name][0])
    parts = []
    for name in (SFT, *others[:1]):
        written = [f"{value:+.3f}".replace("-", "−") for value in gains[name]]
        parts.append(f"{written[0]} [{written[1]}, {written[2]}] against {name}")
    return f"{best}, {inputs.judge} score: {'; '.join(parts)}."


def _certainty(best: str, found: Sequence[Comparison]) -> str:
    one, count = found[0], len(found)
    different = sum(each.different for each in found)
    family = f"{different} of {count} pairs differ after Holm's correction" if count > 1 else "One pair, nothing to correct"
    seeds = f"{one.seeds} seed{'s' if one.seeds > 1 else ''}"
    seen = max(each.detectable for each in found if best in (each.a, each.b))
    return f"{seeds}, {one.prompts} prompts: {one.standing}. {family}; a difference of {seen:.3f} to {best} would have been seen."


def _costs(best: str, inputs: ReportInputs, found: Sequence[Comparison]) -> str:
    of = {name: cost(inputs, name) for name in inputs.algorithms}
    kl = {name: fmean(run.kl.sequence for run in inputs.of(name)) for name in inputs.algorithms}

    def words(name: str) -> str:
        return f"{name}: {of[name].seconds:.0f} s, {of[name].tokens:.0f} tokens, KL {kl[name]:.2f} nats a response"

    cheaper = [name for name in _level_with(best, found) if of[name].seconds < CHEAPER * of[best].seconds]
    least = min(cheaper, key=lambda name: of[name].seconds, default=None)
    return words(best) + (f". As good as far as can be seen, and cheaper: {words(least)}." if least else ".")
