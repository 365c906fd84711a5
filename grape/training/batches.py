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
from grape.errors import GrapeError
from grape.maths.advantage import constant_groups, group_std, weighted_reward
from grape.maths.kl import kl_estimate
from grape.maths.masked import metric
from grape.models.encode import Row, collate
from grape.models.forward import Dtype, batched_language
from grape.models.value import ActorCritic, batched_values
from grape.randomness import permutation
from grape.sampling import response_rows, sample
from grape.types import Batch, Prompt, Response, Scores

Sums = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Round:
    """What one update learns from; `batch` is None when nothing in the round could be scored."""

    batch: Batch | None
    state: State = field(default_factory=dict)
    metrics: Sums = field(default_factory=dict)


Source = Callable[[int, State], Round]


def draw(n: int, size: int, update: int, keys: Sequence[object]) -> list[int]:
    """Indices of update t: `size` consecutive places of an endless row of counted permutations of range(n), an epoch each."""
    places = range(update * size, (update + 1) * size)
    orders = {epoch: permutation(n, *keys, "epoch", epoch) for epoch in {p // n for p in places}}
    return [int(orders[p // n][p % n]) for p in places]


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
class Rollout:
    """How `online` samples: P prompts a round, G samples each, at `temperature`, within `positions` tokens."""

    prompts: int
    samples: int
    temperature: float
    max_new_tokens: int
    positions: int
    micro_batch_tokens: int
    max_missing: float
    kl_every: int = 0
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class Actors:
    """The models of an online algorithm. `policy` samples; `critic` is policy and value model in one, where there is one."""

    policy: Any
    tokenizer: Any
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
) -> Source:
    """Batches the policy samples itself: prompts -> responses -> scores -> credit."""
    assert algorithm.credit is not None
    credit, needs = algorithm.credit, algorithm.needs(params)
    policy, tokenizer = actors.policy, actors.tokenizer
    old_needed = "old" in needs or params.epochs * params.mini_batches > 1

    def answers(chosen: Sequence[Prompt], update: int, attempt: int) -> list[Response]:
        return sample(
            policy,
            tokenizer,
            chosen,
            rollout.samples,
            temperature=rollout.temperature,
            max_new_tokens=rollout.max_new_tokens,
            positions=rollout.positions,
            keys=(*keys, "rollout", update, attempt) if attempt else (*keys, "rollout", update),
            dtype=rollout.dtype,
        )

    def drawn(update: int) -> tuple[list[Response], Scores, float]:
        """The round's responses, and how often a group was drawn again because its rewards were all equal."""
        chosen = [prompts[i] for i in draw(len(prompts), rollout.prompts, update, (*keys, "prompts"))]
        responses, again = answers(chosen, update, 0), 0.0
        scores = score(responses)
        for attempt in range(1, params.resample + 1):
            flat = _flat_groups(scores, rollout.samples)
            if not flat:
                break
            others = draw(len(prompts), len(flat), update, (*keys, "prompts again", attempt))
            fresh = answers([prompts[i] for i in others], update, attempt)
            rows = [group * rollout.samples + g for group in flat for g in range(rollout.samples)]
            for row, response in zip(rows, fresh, strict=True):
                responses[row] = response
            scores = scores.replaced(rows, score(fresh))
            again += len(flat)
        return responses, scores, again

    def source(update: int, state: State) -> Round:
        responses, scores, again = drawn(update)
        batch = collate(response_rows(tokenizer, responses), tokenizer.pad_token_id)
        group = torch.arange(rollout.prompts).repeat_interleave(rollout.samples)
        finished = torch.tensor([r.finished for r in responses])
        batch = batch.with_(group=group, finished=finished, limit=rollout.max_new_tokens)
        metrics = describe(batch, scores, rollout.max_missing)
        if params.resample:
            metrics["groups_drawn_again"] = (again, 1.0)
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
        kept = given.batch.select(given.keep.nonzero().squeeze(1)) if bool(given.keep.any()) else None
        return Round(kept, given.state, metrics)

    return source


def _flat_groups(scores: Scores, samples: int) -> list[int]:
    """The groups whose rewards are all equal."""
    group = torch.arange(scores.score.shape[0] // samples).repeat_interleave(samples)
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, group)
    flat: list[int] = group[constant_groups(reward, known, group)].unique().tolist()
    return flat


def to(scores: Scores, device: torch.device) -> Scores:
    moved = {n: getattr(scores, n).to(device) for n in ("score", "confidence", "valid", "weight")}
    return replace(scores, **moved)


def describe(batch: Batch, scores: Scores, max_missing: float) -> Sums:
    """The field's rollout metrics as (sum, weight).

    Raises:
        GrapeError: more than `max_missing` of the scores are missing; training on the rest would hide a broken judge.
    """
    assert batch.group is not None and batch.finished is not None
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, batch.group)
    asked = scores.weight > 0
    missing = float((asked & ~scores.valid).sum()) / max(float(asked.sum()), 1.0)
    if missing > max_missing:
        row, item = (asked & ~scores.valid).nonzero()[0].tolist()
        reason = scores.reasons[row][item] if scores.reasons else "no reason recorded"
        raise GrapeError(
            f"{missing:.0%} of the scores of this round are missing, more than rl.max_missing = {max_missing:.0%}",
            where=scores.items[item],
            mend=f"the first one's reason: {reason}",
        )
    rows = float(known.sum())
    lengths = batch.mask.sum(1).float()
    std = group_std(reward, known, batch.group)[known]
    flat = constant_groups(reward, known, batch.group)[known]
    metrics = {
        "reward": (float(reward[known].sum()), rows),
        "reward_std": (float(std.sum()), rows),
        "frac_reward_zero_std": (float(flat.sum()), rows),
        "completions/mean_length": (float(lengths.sum()), float(batch.rows)),
        "completions/finished": (float(batch.finished.sum()), float(batch.rows)),
        "missing": (missing, 1.0),
        "num_tokens": (float(batch.tokens), 1.0),
        **scores.metrics,
    }
    for k, item in enumerate(scores.items):
        valid = scores.valid[:, k] & asked[:, k]
        if bool(valid.any()):
            metrics[f"rewards/{item}/mean"] = (float(scores.score[valid, k].sum()), float(valid.sum()))
    return metrics
