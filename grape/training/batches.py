"""Where batches come from. A source is a function of (update, state): what update t learns from depends on nothing before it
but the weights and that small state, so a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from grape.algorithms.base import AnyAlgorithm, OnlineParams, State
from grape.maths.kl import kl_estimate
from grape.maths.masked import metric
from grape.models.chat import Chat, Row
from grape.models.encode import collate
from grape.models.forward import batched_language
from grape.models.protocols import LanguageModel
from grape.models.value import ValuedPolicy, batched_values
from grape.training.rollout_metrics import describe
from grape.training.sampler import Critique, Sampler, Sampling, Score, draw
from grape.training.sums import Sums
from grape.types import Batch, Prompt, Rollouts


@dataclass(frozen=True)
class Round:
    """What one update learns from; `batch` is None when nothing in the round could be scored."""

    batch: Batch | None
    state: State = field(default_factory=dict)
    metrics: Sums = field(default_factory=dict)


Source = Callable[[int, State], Round]


def offline(
    rows: Sequence[Row],
    pad_id: int,
    batch_size: int,
    keys: Sequence[object],
    device: torch.device,
    unit: int = 1,
    extra: Mapping[str, Sequence[Tensor]] | None = None,
) -> Source:
    """Batches of `batch_size` examples (of `unit` rows each) from a fixed set, shuffled anew every epoch.

    Args:
        extra: fields of Batch with a tensor per row: (T_i,) for those per token, scalars for those per row.
    """
    examples = len(rows) // unit

    def source(update: int, state: State) -> Round:
        places = [i * unit + j for i in draw(examples, batch_size, update, keys) for j in range(unit)]
        tokens = collate([rows[i] for i in places], pad_id, unit)
        chosen = {name: [values[i] for i in places] for name, values in (extra or {}).items()}
        more = {n: pad_sequence(found, batch_first=True) if found[0].dim() else torch.stack(found) for n, found in chosen.items()}
        batch = Batch.of(tokens, **more)
        return Round(batch.to(device), state, {"num_tokens": (float(batch.tokens), 1.0)})

    return source


@dataclass(frozen=True)
class Actors:
    """The models of an online algorithm. `policy` samples; `valued` is policy and value model in one, where there is one."""

    policy: LanguageModel
    chat: Chat
    reference: LanguageModel | None = None
    valued: ValuedPolicy | None = None


def online(
    actors: Actors,
    prompts: Sequence[Prompt],
    score: Score,
    algorithm: AnyAlgorithm,
    params: OnlineParams,
    sampling: Sampling,
    keys: Sequence[object],
    critique: Critique | None = None,
) -> Source:
    """Batches the policy samples itself: prompts -> responses -> scores -> credit.

    Args:
        critique: what `params.revise` tells the policy about its answers.
    """
    credit, needs = algorithm.credit, algorithm.wants(params)
    if credit is None:
        raise ValueError(f"an algorithm that learns from {algorithm.data} samples nothing")
    old_needed = "old" in needs or params.epochs * params.mini_batches > 1
    sampler = Sampler(actors.policy, actors.chat, prompts, score, params, sampling, keys, critique)

    @torch.no_grad()  # rewards and advantages are constants: no gradient runs through a judge or the value model's guess
    def source(update: int, state: State) -> Round:
        with parametrize.cached():  # weights stay as they are for a round: an adapter's are formed once
            drawn = sampler.round(update)
            rollouts = drawn.rollouts(actors.chat, sampling)
            metrics = describe(rollouts, drawn.scores, sampling.max_missing, drawn.plain) | drawn.metrics
            measure = sampling.kl_every > 0 and update % sampling.kl_every == 0
            rollouts = _seen(
                actors, rollouts.to(actors.policy.device), sampling, old_needed or measure, "reference" in needs or measure
            )
        if measure:
            total, weight = metric(kl_estimate(rollouts.logp_old, rollouts.logp_ref, "k3"), rollouts.mask)
            metrics["kl"] = (float(total), float(weight))
        if not old_needed:
            rollouts = rollouts.with_(logp_old=None)
        given = credit(drawn.scores.to(actors.policy.device), rollouts, params, state)
        return Round(given.batch(rollouts), given.state, metrics | {n: (float(s), float(w)) for n, (s, w) in given.metrics.items()})

    return source


def _seen(actors: Actors, rollouts: Rollouts, how: Sampling, old: bool, reference: bool) -> Rollouts:
    """The rollouts with what the models say of them, as far as it is wanted."""

    def logp(model: LanguageModel) -> Tensor:
        return batched_language(model, rollouts, how.temperature, how.micro_batch_tokens, how.dtype).logp

    found: dict[str, Tensor] = {}
    if old:
        found["logp_old"] = logp(actors.policy)
    if reference:
        if actors.reference is None:
            raise ValueError("the log-probabilities of a reference are wanted, and there is none")
        found["logp_ref"] = logp(actors.reference)
    if actors.valued is not None:
        found["value_old"], found["bootstrap"] = batched_values(actors.valued, rollouts, how.micro_batch_tokens, how.dtype)
    return rollouts.with_(**found)
