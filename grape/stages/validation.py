"""What the policy's answers to validation prompts are worth while it trains, by the reward that it trains on.

Gold is not among it: training never sees that. Nothing is learned from it, nor does any draw of the training depend on it. What
`grape tune` ends a hopeless trial by.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from grape.algorithms.base import OnlineParams, SlotParams, State
from grape.artifacts import read_prompts
from grape.models.chat import Chat
from grape.models.encode import fitting_prompts
from grape.models.protocols import LanguageModel
from grape.needed import MAKES, VALIDATION
from grape.reward.source import RubricReward
from grape.sampling import sample
from grape.stages.judges import reward_source
from grape.stages.stage import Stage
from grape.training.batches import Round, Source
from grape.training.sampler import Score

METRIC = "validation/reward"


def validated(
    stage: Stage, policy: LanguageModel, knobs: SlotParams, chat: Chat, rounds: int, source: Source, judge: Score | None = None
) -> Source:
    """`source`, with the policy validated before every `rl.validate_every`-th round: one more metric of that round.

    Args:
        rounds: of the whole training; fewer rounds than rl.steps are larger ones, and it is validated as often.
        judge: of the training; None: made here.
    """
    rl, model = stage.params.rl, stage.params.model
    if not rl.validate_every:
        return source
    every, file = max(1, rl.validate_every * rounds // rl.steps), MAKES[VALIDATION]
    prompts, _ = fitting_prompts(chat, read_prompts(stage.path(file)), model.positions - rl.max_new_tokens, file)
    prompts = prompts[: rl.prompts * rl.samples]  # so that it costs no more than a round
    which = knobs.reward if isinstance(knobs, OnlineParams) else None
    reward = judge or reward_source(stage, prompts, file, which)
    if isinstance(reward, RubricReward):
        reward.check(prompts, file)

    @torch.no_grad()
    def measured() -> tuple[float, float]:
        keys, how = (stage.params.seed, "validation"), (rl.temperature, rl.max_new_tokens, model.positions)
        answers = sample(
            policy, chat, prompts, 1,
            temperature=how[0], max_new_tokens=how[1], positions=how[2], keys=keys, dtype=model.dtype,
        )  # fmt: skip
        value, known = reward(answers).reward(torch.arange(len(answers)))
        return float(value[known].sum()), float(known.sum())

    def with_validation(update: int, state: State) -> Round:
        seen = {METRIC: measured()} if update and update % every == 0 else {}
        given = source(update, state)
        return replace(given, metrics={**given.metrics, **seen})

    return with_validation
