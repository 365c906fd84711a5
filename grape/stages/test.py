"""test: a policy, the SFT policy and the base model on the test prompts, which the report's tables alone are made from, and on
standard benchmarks, where one sees what was forgotten. Every look at the test prompts is written down (grape/looks.py)."""

from __future__ import annotations

from typing import NamedTuple

from grape import looks
from grape.evaluation.harness import Measured
from grape.evaluation.sides import Answers
from grape.stages.answers import Evaluated
from grape.stages.benchmarks import benchmarked, beside
from grape.stages.held_out import LINEAGE, HeldOut, bootstrap
from grape.stages.stage import Stage


class Found(NamedTuple):
    """What was found out about one model."""

    answers: Answers
    tasks: Measured


def run(stage: Stage) -> None:
    held_out = HeldOut.read(stage, "test")

    def measured(model: Evaluated, reference: Evaluated | None = None) -> Found:
        return Found(held_out.answered(model, reference), benchmarked(stage, model))

    # One after the other, so that no more than two are in memory: a policy and, for its KL, SFT.
    base = measured(Evaluated(stage, "base", LINEAGE[:1])) if stage.params.sft.steps else None
    sft = measured(held_out.sft)
    own = measured(held_out.policy, held_out.sft)
    tasks = beside((base or sft).tasks, sft.tasks, own.tasks, bootstrap(stage))
    found = held_out.compare(sft.answers, own.answers, base.answers if base else "sft", list(tasks))
    looks.note(stage.project, found.data, stage.policy, found.weights)
    held_out.write(found, sft.answers, own.answers)
