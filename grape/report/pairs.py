"""Every algorithm against every other and against SFT, as one family (`grape.evaluation.comparison`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from grape.errors import GrapeError
from grape.evaluation.comparison import Comparison, Scored, compare
from grape.evaluation.record import Sample
from grape.report.data import ReportInputs

SFT = "SFT"
DIGITS = 6


def compared(inputs: ReportInputs, level: float) -> list[Comparison]:
    """The family is all that the run was asked to compare: rl.algorithms and SFT, which stands last. Empty where a single prompt
    was held out, which nothing can be inferred from.

    Raises:
        GrapeError: evaluations are of other prompts or draws than each other.
    """
    first = inputs.evaluations[0]
    asked = _identity(inputs.samples[first.name])
    for run in inputs.evaluations:
        if _identity(inputs.samples[run.name]) != asked:
            raise GrapeError(
                f"it has other prompts, or other draws of an answer, than {first.name}'s, so the two cannot be compared",
                where=f"reports/test/{run.name}/samples.jsonl",
                mend=f"delete its folder and run `grape run test@{run.name}`",
            )
    if len(asked) < 2:
        return []
    sides = [_scored(inputs, name) for name in inputs.algorithms]
    whole = np.array([[row.draws.sft.of(inputs.judge) for row in inputs.samples[first.name]]] * len(sides[0].seeds), dtype=float)
    return compare([*sides, Scored(SFT, sides[0].seeds, whole)], level)


def _identity(rows: list[Sample]) -> list[tuple[str, int]]:
    return [(row.id, len(row.draws.policy.proxy)) for row in rows]


def _scored(inputs: ReportInputs, name: str) -> Scored:
    runs = inputs.of(name)
    scores = [[row.draws.policy.of(inputs.judge) for row in inputs.samples[run.name]] for run in runs]
    return Scored(name, tuple(run.seed for run in runs), np.array(scores, dtype=float))


def numbers(found: list[Comparison]) -> list[dict[str, Any]]:
    """For metrics.json."""
    return [
        {
            **{key: getattr(one, key) for key in ("a", "b", "seeds", "prompts", "different", "standing", "sentence")},
            **{key: round(getattr(one, key), DIGITS) for key in ("p", "adjusted", "detectable")},
            **{
                key: {k: round(v, DIGITS) for k, v in getattr(one, key).model_dump().items()}
                for key in ("difference", "joint", "wins")
            },
        }
        for one in found
    ]
