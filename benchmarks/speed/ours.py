"""A process of grape: the loop of its stages on the given work, a step at a time.

python -m benchmarks.speed.ours JOB        JOB: JSON of `Job`
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# As stages have it (grape/project.py), before torch is there to read it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from benchmarks.speed.gate import Gate
from benchmarks.speed.work import NEW, PAIRS, PROMPTS, ROWS, SAMPLES, Work, message, reward
from grape.algorithms import dpo, grpo, reward_model, sft
from grape.algorithms.base import AlgorithmParams, AnyAlgorithm, State
from grape.models.chat import Chat
from grape.models.forward import Dtype, batched_language, language, scalar
from grape.models.load import device, load_language_model, load_scalar_model
from grape.sampling import sample
from grape.training.adam import Adam, AdamParams, Forward
from grape.training.assemble import assemble
from grape.training.batches import Round, Source, offline
from grape.training.loop import train
from grape.training.sampler import Drawn, Sampling
from grape.types import Metrics, Prompt, Response, Scores, Track

FOREVER = 1 << 40
KEYS = ("speed",)


@dataclass(frozen=True)
class Job:
    """
    Attributes:
        case: sft, dpo, reward, grpo or sampling. work: the file. micro: model.micro_batch_tokens.
    """

    case: str
    work: str
    dtype: Dtype
    micro: int = 1024

    def adam(self, work: Work) -> AdamParams:
        return AdamParams(work.learning_rate, FOREVER, micro_batch_tokens=self.micro, dtype=self.dtype)


def run(job: Job, gate: Gate) -> None:
    CASES[job.case](job, Work.read(Path(job.work)), gate)


def tracker(gate: Gate) -> Track:
    """What the loop calls at the end of a step."""

    def track(step: int, metrics: Metrics) -> None:
        gate.wait(loss=metrics["loss"], grad_norm=metrics["grad_norm"])

    return track


def watched(source: Source, gate: Gate) -> Source:
    """The source; how long it took and how many tokens it gave go out with the step."""

    def given(update: int, state: State) -> Round:
        began = time.perf_counter()
        made = source(update, state)
        assert made.batch is not None
        gate.note(source=time.perf_counter() - began, tokens=made.batch.tokens, learned=int(made.batch.mask.sum()))
        return made

    return given


def fixed(
    job: Job, gate: Gate, work: Work, model: Any, algorithm: AnyAlgorithm, params: AlgorithmParams, source: Source, forward: Forward
) -> None:
    """Train on fixed rows, as `grape.stages.fit` does."""
    source, optimiser = watched(source, gate), Adam(model, job.adam(work))
    gate.wait()
    train(model, algorithm, params, source, forward, optimiser, steps=FOREVER, track=tracker(gate), keys=KEYS)


def fine_tuning(job: Job, work: Work, gate: Gate) -> None:
    policy = load_language_model(work.model)[0].to(device())
    source = offline([*work.rows], work.pad, ROWS, KEYS, policy.device)  # type: ignore[list-item]
    fixed(job, gate, work, policy, sft.ALGORITHM, sft.ALGORITHM.params(), source, partial(language, policy, dtype=job.dtype))


def rewards(job: Job, work: Work, gate: Gate) -> None:
    model = load_scalar_model(work.reward_model)[0].to(device())
    source = offline([*work.pairs], work.pad, PAIRS, KEYS, model.device, 2)  # type: ignore[list-item]
    params = reward_model.RewardModelParams()
    fixed(job, gate, work, model, reward_model.ALGORITHM, params, source, partial(scalar, model, dtype=job.dtype))


def preferences(job: Job, work: Work, gate: Gate) -> None:
    """The reference speaks in every step, as in TRL. (The rl stage asks it once for each row and keeps what it said.)"""
    policy, reference = (load_language_model(work.model)[0].to(device()) for _ in range(2))
    reference.requires_grad_(False)
    pairs = offline([*work.pairs], work.pad, PAIRS, KEYS, policy.device, 2)  # type: ignore[list-item]
    learner = assemble(dpo.ALGORITHM, dpo.DPOParams(), policy, job.adam(work))

    def source(update: int, state: State) -> Round:
        batch = pairs(update, state).batch
        assert batch is not None
        return Round(batch.with_(logp_ref=batched_language(reference, batch, 1.0, job.micro, job.dtype).logp), state)

    gate.wait()
    learner.train(watched(source, gate), FOREVER, tracker(gate), keys=KEYS)


def score(responses: Sequence[Response]) -> Scores:
    values = torch.tensor([[reward(list(r.ids))] for r in responses])
    ones = torch.ones_like(values)
    return Scores(("any/any",), values, ones, ones.bool(), ones)


def asked(work: Work) -> list[Prompt]:
    return [Prompt(str(i), "any", tuple(message(text))) for i, (text, _) in enumerate(work.prompts)]


def talker(work: Work) -> tuple[Any, Chat]:
    """The policy, and a chat in which nothing ends a completion: all are of one length, on both sides."""
    policy, tokenizer = load_language_model(work.model)
    chat = Chat(tokenizer, model=policy)
    chat.stops = frozenset()
    return policy.to(device()), chat


def online(job: Job, work: Work, gate: Gate) -> None:
    """GRPO. The first round learns from the fixed completions, so that loss and gradient can be compared; the others sample."""
    policy, chat = talker(work)
    prompts, params = asked(work), grpo.GRPOParams(aggregation="dapo", beta=0.0)
    learner = assemble(grpo.ALGORITHM, params, policy, job.adam(work))
    how = Sampling(PROMPTS, SAMPLES, 1.0, NEW, room(work), job.micro, 0.0, dtype=job.dtype)
    sampled = learner.rollouts(chat, prompts, score, how, KEYS)

    def source(update: int, state: State) -> Round:
        return sampled(update, state) if update else given(state)

    def given(state: State) -> Round:
        whose = [prompts[i // SAMPLES] for i in range(len(work.completions))]
        responses = [Response(p, 0, tuple(ids), "", True) for p, ids in zip(whose, work.completions, strict=True)]
        drawn = Drawn(responses, score(responses), len(responses))
        rollouts = drawn.rollouts(chat, how).to(policy.device)
        credit = grpo.credit(drawn.scores.to(policy.device), rollouts, params, state)
        return Round(credit.batch(rollouts), state)

    gate.wait()
    learner.train(watched(source, gate), FOREVER, tracker(gate), keys=KEYS)


def room(work: Work, new: int = NEW) -> int:
    return max(len(ids) for _, ids in work.prompts) + new


def sampling(job: Job, work: Work, gate: Gate) -> None:
    policy, chat = talker(work)
    prompts, positions = asked(work), room(work)
    gate.wait()
    for step in range(FOREVER):
        drawn = sample(
            policy, chat, prompts, SAMPLES,
            temperature=1.0, max_new_tokens=NEW, positions=positions, keys=(*KEYS, step), dtype=job.dtype,
        )  # fmt: skip
        gate.wait(tokens=sum(len(r.ids) for r in drawn), learned=sum(len(r.ids) for r in drawn))


CASES: dict[str, Callable[[Job, Work, Gate], None]] = {
    "grpo": online,
    "sft": fine_tuning,
    "dpo": preferences,
    "reward": rewards,
    "sampling": sampling,
}

if __name__ == "__main__":
    run(Job(**json.loads(sys.argv[1])), Gate.of_process())
