"""Frozen values that travel between the parts of grape. Shapes are declared with the fields (`grape.tensors`); no logic.

Dimensions: P prompts, G responses per prompt, B = P*G rows, S prompt tokens, T response tokens, N pairs, V vocabulary,
K rubric items. Index t of every (B, T) tensor describes response token t; the mask is 1 on response tokens including EOS and
comes from recorded lengths, never from `ids == pad`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import torch
from torch import Tensor

from grape.maths.advantage import weighted_reward
from grape.tensors import Tensors, absent, dimensions

Metrics = Mapping[str, float]
Track = Callable[[int, Metrics], None]
PerRow = Annotated[Tensor, "B"]
PerToken = Annotated[Tensor, "B T"]
PerPrompt = Annotated[Tensor, "B S"]
PerItem = Annotated[Tensor, "B K"]


@dataclass(frozen=True)
class Prompt:
    """A question x. `messages` are chat turns (role, content, ..), the last one the user's; `answer` is what verifiers compare
    with; `dataset` the one it comes from, where several are mixed."""

    id: str
    category: str
    messages: tuple[Mapping[str, Any], ...]
    answer: str | None = None
    dataset: str = ""

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
    `logp`: log-probabilities of the ids as the engine that drew them computed them, nats; None: not kept.
    """

    prompt: Prompt
    index: int
    ids: tuple[int, ...]
    text: str
    finished: bool
    raw: str = ""
    logp: tuple[float, ...] | None = None

    @property
    def written(self) -> str:
        """All of it, as it is to be learned or kept."""
        return self.raw or self.text


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Tensors):
    """The only seam between rewards and policies: K item scores for each of B responses.

    Attributes:
        items: K names, `category/item`.
        score: in the item's own unit; rubric items are in [0, 1]. Undefined where not `valid`.
        confidence: in [0, 1]; 1 for programmatic verifiers.
        valid: bool; False: the score could not be had (missing, never 0).
        weight: >= 0; the rubric's weight of the item, 0 where the item is no part of the prompt's rubric.
        reasons: B rows of K texts, why a score is what it is or why it is missing.
        metrics: name -> (sum, weight): what the judges counted beside the scores, e.g. impossible tests that were passed.
    """

    items: tuple[str, ...]
    score: PerItem
    confidence: PerItem
    valid: PerItem
    weight: PerItem
    reasons: tuple[tuple[str, ...], ...] = ()
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score.shape[1] != len(self.items):
            raise ValueError(f"Scores.score is {tuple(self.score.shape)}, expected K = {len(self.items)} columns")
        if not bool(torch.isfinite(self.score[self.valid]).all()):
            raise ValueError("Scores.score has NaN or infinity where it says valid; mark such scores missing instead")

    def reward(self, group: Tensor) -> tuple[Tensor, Tensor]:
        """R (B,) and whether it is known (B,): see `weighted_reward`. group: (B,)."""
        return weighted_reward(self.score, self.valid, self.weight, group)

    def select(self, index: Tensor | slice) -> Scores:
        """These rows alone, without what was counted beside them."""
        rows = range(len(self.reasons))[index] if isinstance(index, slice) else index.tolist()
        reasons = tuple(self.reasons[row] for row in rows) if self.reasons else ()
        return super().select(index).with_(reasons=reasons, metrics={})

    def join(self, more: Scores) -> Scores:
        """These rows, then those of `more`."""
        if more.items != self.items:
            raise ValueError(f"scores of {more.items} cannot follow scores of {self.items}")
        return super().join(more).with_(reasons=self.reasons + more.reasons, metrics=added(self.metrics, more.metrics))

    def replaced(self, rows: Sequence[int], fresh: Scores) -> Scores:
        """These scores with the given rows taken from `fresh`, in order."""
        place = {row: len(self.score) + i for i, row in enumerate(rows)}
        both = self.join(fresh)
        return both.select(torch.tensor([place.get(i, i) for i in range(len(self.score))])).with_(metrics=both.metrics)


def added(a: Mapping[str, tuple[float, float]], b: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Sums and weights of both, name by name."""
    zero = (0.0, 0.0)
    return {name: (a.get(name, zero)[0] + b.get(name, zero)[0], a.get(name, zero)[1] + b.get(name, zero)[1]) for name in {**a, **b}}


@dataclass(frozen=True, eq=False, repr=False)
class Tokens(Tensors):
    """B rows: left-padded prompts and right-padded responses.

    Attributes:
        prompt, response: token ids. prompt_mask: bool.
        mask: bool, 1 on response tokens including EOS: those the model wrote, or is to learn to write.
        given: bool, tokens between them that others wrote (turns of a longer conversation): read, not learned from.
        shared: rows with the same number have one prompt, which is read once (`grape.models.shared`).
        unit: rows that belong together and are never split: 1, or 2 for pairs (chosen in even rows, rejected in odd ones).
    """

    prompt: PerPrompt
    prompt_mask: PerPrompt
    response: PerToken
    mask: PerToken
    given: PerToken = absent()
    shared: PerRow = absent()
    unit: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows % self.unit:
            raise ValueError(f"{self.rows} rows do not come out even in units of {self.unit}")

    @property
    def rows(self) -> int:
        return self.response.shape[0]

    @property
    def present(self) -> Tensor:
        """(B, T) bool: the tokens that are there, padding aside; a model attends to them."""
        given = self.get("given")
        return self.mask if given is None else self.mask | given

    @property
    def tokens(self) -> int:
        """Real (not padded) tokens of prompts and responses."""
        return int(self.prompt_mask.sum() + self.present.sum())

    def per_token(self, x: Tensor) -> Tensor:
        """(B,) -> (B, T): the same for every response token of a row, 0 outside the mask."""
        return x.unsqueeze(1) * self.mask

    def select(self, index: Tensor | slice) -> Self:
        """The rows `index`, with padding that no row needs any more cut off."""
        chosen = super().select(index)
        width, length = (max(int(m.sum(1).max()), 1) if len(m) else 1 for m in (chosen.prompt_mask, chosen.present))
        prompts = {name: getattr(chosen, name)[:, -width:] for name in ("prompt", "prompt_mask")}
        dims = dimensions(type(self))
        return chosen.with_(**prompts, **{n: x[:, :length] for n, x in chosen.tensors().items() if "T" in dims[n]})


@dataclass(frozen=True, eq=False, repr=False)
class Sampled(Tokens):
    """What credit and loss both may know of rows.

    Attributes:
        group: index of the row's prompt; rows of a group stay in one mini-batch. Of rollouts, not of pairs or demonstrations.
        logp_old: log pi_old(y_t | s_t), nats, of the policy that sampled; not there for a loss: it is the one being updated.
        logp_sampler: log-probabilities that the sampler gave when it drew the tokens, nats; NaN in rows where it did not.
        logp_ref: log pi_ref(y_t | s_t), nats.
        value_old: V(s_t) of the value model when the round was sampled, units of the reward.
        limit: longest response that could be sampled, tokens; 0: not sampled.
    """

    group: PerRow = absent()
    logp_old: PerToken = absent()
    logp_sampler: PerToken = absent()
    logp_ref: PerToken = absent()
    value_old: PerToken = absent()
    limit: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Rollouts(Sampled):
    """What the policy sampled in a round, P groups of G rows: what `credit` reads.

    Attributes:
        finished: bool, the response ended with EOS.
        revises: the row whose response this one is a revision of, -1: none; there in rounds with revisions alone.
        bootstrap: V(s_T+1), the value of the state behind the last token; read for truncated responses alone.
    """

    finished: PerRow = absent()
    revises: PerRow = absent()
    bootstrap: PerRow = absent()


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Sampled):
    """What a loss reads.

    Attributes:
        advantage: A_t in units of the reward. returns: what V(s_t) should have said.
        beta: coefficient of the KL in the loss, where it adapts; units of the reward per nat.
        length: mean response length of the whole round, for losses that divide by the round's tokens.
        margin: how much better the chosen answer scored, pairs only; the same in both rows.
    """

    advantage: PerToken = absent()
    returns: PerToken = absent()
    beta: PerRow = absent()
    length: PerRow = absent()
    margin: PerRow = absent()


@dataclass(frozen=True, eq=False, repr=False)
class Outputs(Tensors):
    """What a model says about a batch.

    Attributes:
        logp: log pi_theta(y_t | s_t), nats, 0 outside the mask; of a language model.
        entropy: of pi_theta(. | s_t), nats, without gradient unless the algorithm needs it.
        score: a scalar model's r(x, y).
        value: V(s_t), units of the reward; with a value model.
        distribution: log pi_theta(. | s_t) of the N tokens of the mask, nats; where it was asked for.
    """

    logp: PerToken = absent()
    entropy: PerToken = absent()
    score: PerRow = absent()
    value: PerToken = absent()
    distribution: Annotated[Tensor, "N V"] = absent()


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
