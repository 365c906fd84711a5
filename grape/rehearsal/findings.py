"""What two rounds say of a run: each number beside its limit, and the knob that mends it.

Where the report raises an alarm about the same thing after training, the limit and the words are that alarm's
(`grape.report.alarms`, and `report` in params.yaml).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grape import memory
from grape.params import Params
from grape.rehearsal.record import Level, Reading, Seen
from grape.report.alarms import CUT, DROPPED, NEARER, OUTSIDE, SAMPLER, apart, cut

HOPELESS = 0.9  # share of answers that are cut, from which on nothing but beginnings is judged
NEAR = 0.95  # of model.positions; of rl.max_new_tokens
FLAT = 0.5  # share of groups without signal
TIGHT = 0.9  # of this machine's memory; `grape doctor --fit` is off by as much
MIDDLE = "choose prompts that are neither always nor never answered well, raise rl.samples or rl.temperature"


def readings(seen: Seen, params: Params, compares: bool) -> list[Reading]:
    """All but time and memory.

    Args:
        compares: whether an algorithm of these runs learns from the differences within a group alone.
    """
    found = [_cut(seen, params), *_lengths(seen, params), _missing(seen, params), *_rewards(seen, params, compares)]
    return [*found, _mismatch(seen, params), Reading("memory, rehearsed", "fine", seen.peak_mb, None, "MiB")]


def _level(value: float, look: float, stop: float | None = None) -> Level:
    return "stop" if stop is not None and value >= stop else "look" if value > look else "fine"


def _reading(
    name: str, level: Level, value: float | None, limit: float | None, sentence: str, mend: str, unit: str = "share"
) -> Reading:
    return Reading(name, level, value, limit, unit, *(("", "") if level == "fine" else (sentence, mend)))


def _cut(seen: Seen, params: Params) -> Reading:
    longest = params.rl.max_new_tokens
    some = f"{seen.cut:.0%} of SFT's answers were cut at rl.max_new_tokens: these are judged by how they begin."
    sentence = cut(seen.cut, "SFT") if seen.cut > CUT else some
    mend = f"raise rl.max_new_tokens (it is {longest}), or teach SFT to end its answers (sft.steps, shorter demonstrations)"
    return _reading("answers cut", _level(seen.cut, DROPPED, HOPELESS), seen.cut, DROPPED, sentence, mend)


def _lengths(seen: Seen, params: Params) -> Iterator[Reading]:
    most, positions = NEAR * params.rl.max_new_tokens, params.model.positions
    sentence = f"Answers already come near rl.max_new_tokens = {params.rl.max_new_tokens}; those that grow in training are cut."
    level: Level = "look" if seen.late >= most and seen.cut <= DROPPED else "fine"
    yield _reading("length of 95 %", level, seen.late, most, sentence, "raise rl.max_new_tokens", "tokens")
    sentence = f"A prompt with its answer comes near model.positions = {positions}."
    level = "look" if seen.longest > NEAR * positions else "fine"
    yield _reading("longest row", level, seen.longest, NEAR * positions, sentence, "raise model.positions", "tokens")
    dropped = seen.dropped / max(seen.kept + seen.dropped, 1)
    sentence = f"{dropped:.0%} of the prompts are left out: with an answer they are longer than model.positions = {positions}."
    mend = "raise model.positions, or lower rl.max_new_tokens"
    yield _reading("prompts left out", _level(dropped, DROPPED), dropped, DROPPED, sentence, mend)


def _missing(seen: Seen, params: Params) -> Reading:
    limit, most = params.report.missing, params.rl.max_missing
    sentence = f"{seen.missing:.0%} of a round's scores are missing; more than rl.max_missing = {most:.0%} would stop the run."
    mend = f"mend the first one's reason: {seen.reason}"
    level: Level = "stop" if seen.missing > most else "look" if seen.missing > limit else "fine"
    return _reading("scores missing", level, seen.missing, min(limit, most), sentence, mend)


def _rewards(seen: Seen, params: Params, compares: bool) -> Iterator[Reading]:
    if seen.reward is None:
        return  # all scores are missing, and that is said
    level: Level = "fine" if seen.varies else "stop"
    sentence = f"The reward is {seen.reward:.3g} for each of {seen.answers} answers: there is nothing to learn from."
    mend = "look at the rubric (`grape rubric try`) or the reward model; else " + MIDDLE
    yield _reading("reward", level, seen.reward, None, sentence, mend, "reward")
    if seen.best is not None:
        limit = params.report.saturated * seen.best
        sentence = f"SFT's mean reward is {seen.reward:.3g} of {seen.best:.3g} at most: there is hardly anything left to learn."
        mend = "ask harder prompts, or rubric items that SFT does not meet yet"
        yield _reading("of the best reward", _level(seen.reward / seen.best, limit), seen.reward / seen.best, limit, sentence, mend)
    if params.rl.samples > 1 and seen.varies:
        level = _level(seen.flat, FLAT, 1.0 if compares else None)
        sentence = f"In {seen.flat:.0%} of the groups all answers have the same reward: they teach nothing."
        yield _reading("groups without signal", level, seen.flat, FLAT, sentence, MIDDLE)


def _mismatch(seen: Seen, params: Params) -> Reading:
    off = seen.sampler > SAMPLER or seen.outside > OUTSIDE
    level: Level = "look" if off and params.rl.importance is None else "fine"
    mend = NEARER[0].lower() + NEARER[1:].rstrip(".")
    return _reading("sampler from trainer", level, seen.sampler, SAMPLER, apart(seen.sampler, seen.outside), mend, "nats")


def of_memory(peaks: Mapping[str, int], there: int) -> Reading:
    """Of the run that takes most. peaks: estimated bytes of each run's process; there: what the machine has."""
    name, peak = max(peaks.items(), key=lambda pair: pair[1])
    sentence = f"{name} takes {peak >> 20} MiB at its peak, as is estimated, and this machine has {there >> 20}."
    level: Level = "stop" if peak > there else _level(peak, TIGHT * there)
    return _reading("memory, estimated", level, peak / 2**20, TIGHT * there / 2**20, sentence, memory.MEND, "MiB")


def of_time(seconds: Mapping[str, float]) -> Iterator[Reading]:
    """Of each run, and of all one after the other."""
    for name, estimated in seconds.items():
        yield Reading(f"time of {name}", "fine", estimated, None, "seconds")
    if len(seconds) > 1:
        yield Reading("time of all", "fine", sum(seconds.values()), None, "seconds")
