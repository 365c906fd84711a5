"""evaluate: a policy on the validation prompts, which may be looked at: the champion and tuned knobs are chosen by them, and the
answers and the rubric's faults that the report shows are theirs."""

from __future__ import annotations

from grape.stages.held_out import HeldOut
from grape.stages.stage import Stage


def run(stage: Stage) -> None:
    held_out = HeldOut.read(stage, "validation")
    sft = held_out.answered(held_out.sft)
    own = held_out.answered(held_out.policy, held_out.sft)
    held_out.write(held_out.compare(sft, own), sft, own)
