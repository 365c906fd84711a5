"""Frozen values that travel between the parts of grape. Shape checks, no logic.

Dimensions: P prompts, G responses per prompt, B = P*G rows, S prompt tokens, T response tokens, N pairs, V vocabulary,
K rubric items. Index t of every (B, T) tensor describes response token t; the mask is 1 on response tokens including EOS and
comes from recorded lengths, never from `ids == pad`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

Metrics = Mapping[str, float]
Track = Callable[[int, Metrics], None]


@dataclass(frozen=True)
class Prompt:
    """A question x. `messages` are chat turns (role, content, ..), the last one the user's; `answer` is what verifiers compare
    with."""

    id: str
    category: str
    messages: tuple[Mapping[str, Any], ...]
    answer: str | None = None

    @property
    def text(self) -> str:
        """The last turn's content."""
        return str(self.messages[-1]["content"])

    @property
    def conversation(self) -> str:
        """All of it, for people and judges to read."""
        return transcript(self.messages)


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as a text: the content of a single user turn as it stands, else a paragraph a turn that says who speaks."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    lines = []
    for m in messages:
        called = "".join(f"\n[calls {json.dumps(call, ensure_ascii=False)}]" for call in m.get("tool_calls") or ())
        lines.append(f"{str(m['role']).capitalize()}: {m.get('content', '')}{called}")
    return "\n\n".join(lines)


@dataclass(frozen=True)
class Response:
    """A sampled answer y to `prompt`. `ids` include EOS when `finished`; a truncated response has no EOS.

    `text` is what verifiers and judges read; `raw` is all that was written, thinking and special tokens included ("": the same).
    """

    prompt: Prompt
    index: int
    ids: tuple[int, ...]
    text: str
    finished: bool
    raw: str = ""

    @property
    def written(self) -> str:
        """All of it, as it is to be learned or kept."""
        return self.raw or self.text


@dataclass(frozen=True)
class Scores:
    """The only seam between rewards and policies: K item scores for each of B responses.

    Attributes:
        items: K names, `category/item`.
        score: (B, K) in the item's own unit; rubric items are in [0, 1]. Undefined where not `valid`.
        confidence: (B, K) in [0, 1]; 1 for programmatic verifiers.
        valid: (B, K) bool; False: the score could not be had (missing, never 0).
        weight: (B, K) >= 0; the rubric's weight of the item, 0 where the item is no part of the prompt's rubric.
        reasons: B rows of K texts, why a score is what it is or why it is missing.
        metrics: name -> (sum, weight): what the judges counted beside the scores, e.g. impossible tests that were passed.
    """

    items: tuple[str, ...]
    score: Tensor
    confidence: Tensor
    valid: Tensor
    weight: Tensor
    reasons: tuple[tuple[str, ...], ...] = ()
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (self.score.shape[0], len(self.items))
        for name in ("score", "confidence", "valid", "weight"):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Scores.{name} is {tuple(getattr(self, name).shape)}, expected (B, K) = {shape}")
        if not bool(torch.isfinite(self.score[self.valid]).all()):
            raise ValueError("Scores.score has NaN or infinity where it says valid; mark such scores missing instead")

    def select(self, rows: slice) -> Scores:
        """These rows alone, without what was counted beside them."""
        tensors = {name: getattr(self, name)[rows] for name in ("score", "confidence", "valid", "weight")}
        return Scores(self.items, **tensors, reasons=self.reasons[rows])

    def joined(self, more: Scores) -> Scores:
        """These rows, then those of `more`."""
        if more.items != self.items:
            raise ValueError(f"scores of {more.items} cannot follow scores of {self.items}")
        tensors = {
            name: torch.cat([getattr(self, name), getattr(more, name)]) for name in ("score", "confidence", "valid", "weight")
        }
        return Scores(self.items, **tensors, reasons=self.reasons + more.reasons, metrics=added(self.metrics, more.metrics))

    def replaced(self, rows: Sequence[int], fresh: Scores) -> Scores:
        """These scores with the given rows taken from `fresh`, in order."""
        if fresh.items != self.items:
            raise ValueError(f"scores of {fresh.items} cannot stand among scores of {self.items}")
        index = torch.tensor(list(rows))
        tensors = {name: getattr(self, name).clone() for name in ("score", "confidence", "valid", "weight")}
        for name, tensor in tensors.items():
            tensor[index] = getattr(fresh, name)
        reasons = list(self.reasons)
        for row, texts in zip(rows, fresh.reasons, strict=False):
            reasons[row] = texts
        return Scores(self.items, **tensors, reasons=tuple(reasons), metrics=added(self.metrics, fresh.metrics))


def added(a: Mapping[str, tuple[float, float]], b: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Sums and weights of both, name by name."""
    zero = (0.0, 0.0)
    return {name: (a.get(name, zero)[0] + b.get(name, zero)[0], a.get(name, zero)[1] + b.get(name, zero)[1]) for name in {**a, **b}}


# The (B, T) and the (B,) fields of Batch.
PER_TOKEN = ("mask", "given", "logp_old", "logp_ref", "advantage", "value_old", "returns")
PER_ROW = ("group", "finished", "revises", "bootstrap", "beta", "length", "margin")


@dataclass(frozen=True)
class Batch:
    """B rows to learn from: left-padded prompts, right-padded responses, and what is known about every response token.

    Attributes:
        prompt: (B, S) token ids, left-padded.
        prompt_mask: (B, S) bool.
        response: (B, T) token ids, right-padded.
        mask: (B, T) bool, 1 on response tokens including EOS: those the model wrote, or is to learn to write.
        given: (B, T) bool, tokens between them that others wrote (turns of a longer conversation): read, not learned from; None:
            none.
        unit: rows that belong together and are never split: 1, or 2 for pairs (chosen in even rows, rejected in odd ones).
        group: (B,) index of the row's prompt, rollouts only.
        finished: (B,) bool, the response ended with EOS, rollouts only.
        revises: (B,) the row whose response this one is a revision of, -1: none; only while credit is given.
        logp_old: (B, T) log pi_old(y_t | s_t), nats; None: the rollout policy is the policy being updated.
        logp_ref: (B, T) log pi_ref(y_t | s_t), nats.
        advantage: (B, T) A_t in units of the reward.
        value_old: (B, T) V(s_t) of the value model when the rollout was made, units of the reward.
        bootstrap: (B,) V(s_T+1), the value of the state behind the last token; read for truncated responses alone.
        returns: (B, T) what V(s_t) should have said.
        beta: (B,) coefficient of the KL in the loss, where it adapts; units of the reward per nat.
        length: (B,) mean response length of the whole round, for losses that divide by the round's tokens.
        margin: (rows,) how much better the chosen answer scored, pairs only; the same in both rows.
        limit: longest response that could be sampled, tokens; 0: not sampled.
    """

    prompt: Tensor
    prompt_mask: Tensor
    response: Tensor
    mask: Tensor
    given: Tensor | None = None
    unit: int = 1
    group: Tensor | None = None
    finished: Tensor | None = None
    revises: Tensor | None = None
    logp_old: Tensor | None = None
    logp_ref: Tensor | None = None
    advantage: Tensor | None = None
    value_old: Tensor | None = None
    bootstrap: Tensor | None = None
    returns: Tensor | None = None
    beta: Tensor | None = None
    length: Tensor | None = None
    margin: Tensor | None = None
    limit: int = 0

    def __post_init__(self) -> None:
        rows, width = self.response.shape
        if self.prompt.shape[0] != rows or self.prompt_mask.shape != self.prompt.shape or rows % self.unit:
            raise ValueError(
                f"Batch: prompt {tuple(self.prompt.shape)} and response {(rows, width)} do not fit (unit {self.unit})"
            )
        for name in PER_TOKEN:
            value = getattr(self, name)
            if value is not None and value.shape != (rows, width):
                raise ValueError(f"Batch.{name} is {tuple(value.shape)}, expected (B, T) = {(rows, width)}")
        for name in PER_ROW:
            value = getattr(self, name)
            if value is not None and value.shape != (rows,):
                raise ValueError(f"Batch.{name} is {tuple(value.shape)}, expected (B,) = {(rows,)}")

    @property
    def rows(self) -> int:
        return self.response.shape[0]

    @property
    def present(self) -> Tensor:
        """(B, T) bool: the tokens that are there, padding aside; a model attends to them."""
        return self.mask if self.given is None else self.mask | self.given

    @property
    def tokens(self) -> int:
        """Real (not padded) tokens of prompts and responses."""
        return int(self.prompt_mask.sum() + self.present.sum())

    def with_(self, **changes: object) -> Batch:
        return replace(self, **changes)  # type: ignore[arg-type]

    def select(self, index: Tensor) -> Batch:
        """The rows `index`, with padding that no row needs any more cut off."""
        chosen: dict[str, object] = {}
        for place in fields(self):
            value = getattr(self, place.name)
            chosen[place.name] = value[index] if isinstance(value, Tensor) else value
        prompt_mask, mask = chosen["prompt_mask"], self.present[index]
        assert isinstance(prompt_mask, Tensor)
        start = prompt_mask.shape[1] - max(int(prompt_mask.sum(1).max()), 1) if len(prompt_mask) else 0
        end = max(int(mask.sum(1).max()), 1) if len(mask) else 1
        for name in ("prompt", "prompt_mask"):
            chosen[name] = chosen[name][:, start:]  # type: ignore[index]
        for name in ("response", *PER_TOKEN):
            if chosen[name] is not None:
                chosen[name] = chosen[name][:, :end]  # type: ignore[index]
        return Batch(**chosen)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Outputs:
    """What a model says about a batch.

    Attributes:
        logp: (B, T) log pi_theta(y_t | s_t), nats, 0 outside the mask; None for a scalar model.
        entropy: (B, T) entropy of pi_theta(. | s_t), nats, without gradient unless the algorithm needs it.
        score: (B,) scalar model's r(x, y); None for a language model.
        value: (B, T) V(s_t), units of the reward; None without a value model.
        distribution: (B, T, V) log pi_theta(. | s_t), nats; None unless it was asked for.
    """

    logp: Tensor | None = None
    entropy: Tensor | None = None
    score: Tensor | None = None
    value: Tensor | None = None
    distribution: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """An unreduced objective to minimise: sum(value * weight) / sum(norm) over the *whole* optimiser batch.

    The update sums both over micro-batches before it divides, so the gradient cannot depend on how a batch was split.

    Attributes:
        value: (B, T) or (N,), the objective per token or pair.
        weight: like `value`, without gradient: how much each counts. Token mean: the mask; sequence mean: mask / length.
        norm: (rows,) or (N,), what the weights are divided by: token mean: length; sequence mean: 1; constant: L_max.
        metrics: name -> (sum, weight): diagnostics as sums, so that they too are exact over micro-batches.
    """

    value: Tensor
    weight: Tensor
    norm: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        if self.value.shape != self.weight.shape or self.value.dim() == 0:
            raise ValueError(
                f"Loss.value {tuple(self.value.shape)} and weight {tuple(self.weight.shape)} must share an unreduced shape"
            )
