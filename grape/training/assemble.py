"""An algorithm with what it needs around it: what is trained, what it says, who moves its weights, where its batches come from.

The rl stage, the tests and the benchmarks put algorithms together here, from what these declare: `data`, `update`, `needs`, and the
mixins of `grape.algorithms.base` that their knobs derive from. No algorithm is known by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from grape.algorithms.base import AlgorithmParams, AnyAlgorithm, OnlineParams, SlotParams, State, TrustRegionParams, ValueParams
from grape.budget import Budget
from grape.errors import GrapeError
from grape.maths.kl import kl_estimate
from grape.maths.masked import metric
from grape.models.chat import Chat
from grape.models.forward import Dtype, batched_language, language
from grape.models.lora import adapters_off
from grape.models.protocols import LanguageModel, ScalarModel, Trainable
from grape.models.value import ValuedPolicy, batched_values, valued
from grape.sampling import Own, RolloutEngine
from grape.training.adam import Adam, AdamParams, Forward
from grape.training.batches import Round, Source
from grape.training.checkpoint import Checkpoints
from grape.training.loop import Optimiser, train
from grape.training.mismatch import Importance
from grape.training.natural import NaturalGradient
from grape.training.rollout_metrics import describe
from grape.training.sampler import Ahead, Critique, Sampler, Sampling, Score
from grape.training.sums import numbers
from grape.types import Prompt, Rollouts, Track

Mixin = TypeVar("Mixin", bound=AlgorithmParams)


@dataclass(frozen=True)
class Learner:
    """What is trained and how.

    Attributes:
        policy: what samples. model: what is trained: the policy, or policy and value model in one.
        forward: Batch -> Outputs of that model, as the loss wants them.
        dtype: of the matrix products, in sampling as in training.
    """

    algorithm: AnyAlgorithm
    params: AlgorithmParams
    policy: LanguageModel
    model: Trainable
    forward: Forward
    optimiser: Optimiser
    dtype: Dtype
    importance: Importance | None = None

    def rollouts(
        self,
        chat: Chat,
        prompts: Sequence[Prompt],
        score: Score,
        sampling: Sampling,
        keys: Sequence[object],
        reference: LanguageModel | None = None,
        critique: Critique | None = None,
        engine: RolloutEngine | None = None,
        ahead: Ahead = nullcontext,
    ) -> Source:
        """Rounds that the policy samples itself: prompts -> responses -> scores -> credit.

        Args:
            reference: as `rounds` has it. engine: as `sampler` has it.
            critique: what `params.revise` tells the policy about its answers.
            ahead: as `sampler.Sampler` has it.
        """
        return self.rounds(self.sampler(chat, prompts, score, sampling, keys, critique, engine, ahead), reference)

    def sampler(
        self,
        chat: Chat,
        prompts: Sequence[Prompt],
        score: Score,
        sampling: Sampling,
        keys: Sequence[object],
        critique: Critique | None = None,
        engine: RolloutEngine | None = None,
        ahead: Ahead = nullcontext,
    ) -> Sampler:
        """Who draws and scores the rounds.

        Args:
            engine: who writes what the policy would say; None: grape's own. The others: as `rollouts` has them.
        """
        params, how = needed(self.params, OnlineParams, "learns from rollouts"), replace(sampling, dtype=self.dtype)
        return Sampler(engine or Own(self.policy, self.dtype), chat, prompts, score, params, how, keys, critique, ahead)

    def rounds(self, sampler: Sampler, reference: LanguageModel | None = None) -> Source:
        """What is learned from the sampler's rounds, once credit is given.

        Args:
            reference: for the need of that name, and for `sampling.kl_every`; the policy itself: as it is without its adapters.
        """
        params, how, chat = sampler.params, sampler.sampling, sampler.chat
        needs, credit = self.algorithm.wants(params), self.algorithm.credit
        assert credit is not None  # as of all that learn from rollouts
        old_needed = "old" in needs or params.epochs * params.mini_batches > 1
        device = self.policy.device

        @torch.no_grad()  # rewards and advantages are constants: no gradient runs through a judge or the value model's guess
        def source(update: int, state: State) -> Round:
            measure = how.kl_every > 0 and update % how.kl_every == 0
            drawn = sampler.round(update)
            rollouts = drawn.rollouts(chat, how)
            metrics = describe(rollouts, drawn.scores, how.max_missing, drawn.plain, drawn.thrown) | drawn.metrics
            compared = reference if "reference" in needs or measure else None
            rollouts = self._seen(rollouts.to(device), how, old_needed or measure, compared)
            if measure:
                kl = kl_estimate(rollouts.logp_old, rollouts.logp_ref, "k3")
                metrics |= numbers({"kl": metric(kl, rollouts.mask)})
            if not old_needed:
                rollouts = rollouts.with_(logp_old=None)
            given = credit(drawn.scores.to(device), rollouts, params, state)
            return Round(given.batch(rollouts), given.state, metrics | numbers(given.metrics))

        return source

    def _seen(self, rollouts: Rollouts, how: Sampling, old: bool, reference: LanguageModel | None) -> Rollouts:
        """The rollouts with what the models say of them, as far as it is wanted."""

        def logp(model: LanguageModel) -> Tensor:
            return batched_language(model, rollouts, how.temperature, how.micro_batch_tokens, how.dtype).logp

        found = {"logp_old": logp(self.policy)} if old else {}
        if reference is not None:
            with adapters_off(reference):
                found["logp_ref"] = logp(reference)
        if isinstance(self.model, ValuedPolicy):
            found["value_old"], found["bootstrap"] = batched_values(self.model, rollouts, how.micro_batch_tokens, how.dtype)
        return rollouts.with_(**found)

    def train(
        self,
        source: Source,
        steps: int,
        track: Track,
        checkpoints: Checkpoints | None = None,
        keys: tuple[object, ...] = (),
        budget: Budget | None = None,
    ) -> list[dict[str, float]]:
        """`steps` rounds, as far as the budget goes; the metrics of each."""
        return train(
            self.model, self.algorithm, self.params, source, self.forward, self.optimiser,
            steps=steps, budget=budget, track=track, checkpoints=checkpoints, keys=keys, importance=self.importance,
        )  # fmt: skip


def assemble(
    algorithm: AnyAlgorithm,
    params: SlotParams,
    policy: LanguageModel,
    adam: AdamParams,
    temperature: float = 1.0,
    value_model: ScalarModel | None = None,
    importance: Importance | None = None,
) -> Learner:
    """A learner for an algorithm of the slot.

    Args:
        adam: its learning rate is the algorithm's unless `params` say otherwise; its passes over a batch are those of `params`.
        temperature: of the rollouts. Pairs are learned at 1.
        importance: how rollouts weigh that the sampler computed otherwise than training does.
        value_model: the scalar model that becomes the value model; None: a head on the policy. For the need `value` alone.

    Raises:
        GrapeError: the params lack what the algorithm's needs or update ask for.
    """
    needs, trusted = algorithm.wants(params), algorithm.update == "natural_gradient"
    warmth, gradient = temperature if algorithm.data == "rollouts" else 1.0, "entropy" in needs
    dtype: Dtype = "float32" if trusted else adam.dtype
    model: Trainable = policy
    forward: Forward = partial(language, policy, temperature=warmth, dtype=dtype, entropy_gradient=gradient, distribution=trusted)
    if "value" in needs:
        model = both = ValuedPolicy(policy, value_model)
        forward = partial(valued, both, temperature=warmth, dtype=dtype, entropy_gradient=gradient)
    return Learner(algorithm, params, policy, model, forward, _optimiser(algorithm, params, model, adam), dtype, importance)


def _optimiser(algorithm: AnyAlgorithm, params: SlotParams, model: Trainable, adam: AdamParams) -> Optimiser:
    if algorithm.update == "natural_gradient":
        region = needed(params, TrustRegionParams, "asks for the natural gradient")
        return NaturalGradient(model, region, adam.micro_batch_tokens)
    adam = replace(adam, learning_rate=params.learning_rate or adam.learning_rate)
    if isinstance(params, OnlineParams):
        adam = replace(adam, epochs=params.epochs, mini_batches=params.mini_batches)
    if not isinstance(model, ValuedPolicy):
        return Adam(model, adam)
    policy, value = model.families()
    rate = needed(params, ValueParams, "needs a value model").value_learning_rate or adam.learning_rate
    return Adam(model, adam, [(policy, adam.learning_rate), (value, rate)])


def needed(params: AlgorithmParams, mixin: type[Mixin], why: str) -> Mixin:
    """The params as those of a mixin.

    Raises:
        GrapeError: they do not derive from it.
    """
    if isinstance(params, mixin):
        return params
    raise GrapeError(
        f"the algorithm {why}, but its params are not {mixin.__name__}",
        where=f"{type(params).__module__}.{type(params).__name__}",
        mend=f"derive them from grape.algorithms.base.{mixin.__name__}",
    )
