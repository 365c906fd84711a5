"""Where batches come from. A source is a function of (update, state): what update t learns from depends on nothing before it
but the weights and that small state, so a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape.algorithms.base import Algorithm, OnlineParams, State
from grape.maths.kl import kl_estimate
from grape.maths.masked import metric
from grape.models.chat import Chat, Row
from grape.models.encode import collate
from grape.models.forward import batched_language
from grape.models.value import ActorCritic, batched_values
from grape.training.rollout_metrics import Sums, describe
from grape.training.sampler import Critique, Rollout, Sampler, draw
from grape.types import Batch, Prompt, Response, Scores


@dataclass(frozen=True)
class Round:
    """What one update learns from; `batch` is None when nothing in the round could be scored."""

    batch: Batch | None
    state: State = field(default_factory=dict)
    metrics: Sums = field(default_factory=dict)


__all__ = ["Actors", "Rollout", "Round", "Source", "draw", "offline", "online"]
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
        batch = collate([rows[i] for i in places], pad_id, unit)
        for name, values in (extra or {}).items():
            batch = batch.with_(**{name: pad_sequence([values[i] for i in places], batch_first=True)
                                   if values[0].dim() else torch.stack([values[i] for i in places])})
        return Round(batch.to(device), state, {"num_tokens": (float(batch.tokens), 1.0)})

    return source


@dataclass(frozen=True)
class Actors:
    """The models of an online algorithm. `policy` samples; `critic` is policy and value model in one, where there is one."""

    policy: Any
    chat: Chat
    reference: Any | None = None
    critic: ActorCritic | None = None


def online(
    actors: Actors,
    prompts: Sequence[Prompt],
    score: Callable[[Sequence[Response]], Scores],
    algorithm: Algorithm,
    params: OnlineParams,
    rollout: Rollout,
    keys: Sequence[object],
    critique: Critique | None = None,
) -> Source:
    """Batches the policy samples itself: prompts -> responses -> scores -> credit.

    Args:
        critique: what `params.revise` tells the policy about its answers.
    """
    assert algorithm.credit is not None
    credit, needs = algorithm.credit, algorithm.needs(params)
    policy = actors.policy
    old_needed = "old" in needs or params.epochs * params.mini_batches > 1
    sampler = Sampler(policy, actors.chat, prompts, score, params, rollout, keys, critique)

    @torch.no_grad()  # rewards and advantages are constants: no gradient runs through a judge or the value model's guess
    def source(update: int, state: State) -> Round:
        drawn = sampler.round(update)
        scores, batch = drawn.scores, drawn.batch(actors.chat, rollout)
        metrics = describe(batch, scores, rollout.max_missing, drawn.plain) | drawn.metrics
        batch = batch.to(policy.device)

        def logp(model: Any) -> Tensor | None:
            return batched_language(model, batch, rollout.temperature, rollout.micro_batch_tokens, rollout.dtype).logp

        measure = rollout.kl_every > 0 and update % rollout.kl_every == 0
        old = logp(policy) if old_needed or measure else None
        if "reference" in needs or measure:
            batch = batch.with_(logp_ref=logp(actors.reference))
        if measure and old is not None and batch.logp_ref is not None:
            total, weight = metric(kl_estimate(old, batch.logp_ref, "k3"), batch.mask)
            metrics["kl"] = (float(total), float(weight))
        if actors.critic is not None:
            value, behind = batched_values(actors.critic, batch, rollout.micro_batch_tokens, rollout.dtype)
            batch = batch.with_(value_old=value, bootstrap=behind)
        batch = batch.with_(logp_old=old if old_needed else None)
        given = credit(to(scores, policy.device), batch, params, state)
        metrics |= {name: (float(s), float(w)) for name, (s, w) in given.metrics.items()}
        whole = given.batch.with_(revises=None)  # rows of this round, which is about to be cut and shuffled
        kept = whole.select(given.keep.nonzero().squeeze(1)) if bool(given.keep.any()) else None
        return Round(kept, given.state, metrics)

    return source


def to(scores: Scores, device: torch.device) -> Scores:
    moved = {n: getattr(scores, n).to(device) for n in ("score", "confidence", "valid", "weight")}
    return replace(scores, **moved)
