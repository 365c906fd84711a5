"""The learned reward: a Bradley-Terry model's r(x, y), standardised by the mean and std it had on held-out data; of several such
models, an ensemble, the mean, and how far they agree as its confidence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grape.errors import GrapeError
from grape.models.chat import Chat, Row
from grape.models.encode import collate
from grape.models.forward import Dtype, Weights, batched_scores
from grape.models.load import device, load_scalar_model, positions
from grape.models.protocols import ScalarModel
from grape.models.template import Template
from grape.types import Response, Scores, Tokens

STATISTICS = "reward_statistics.json"
MEMBERS = "members"  # folder of the second to the last model of an ensemble: 1, 2, ..
ITEM = "reward_model/score"
MOST_DOUBT, STEP = 10.0, 0.05  # the grid that `doubt` is looked for on


class Statistics(NamedTuple):
    """On held-out data: mean and std of r; of an ensemble, how much its members' spread counts (see `agreement`)."""

    mean: float
    std: float
    doubt: float


def statistics(folder: Path) -> Statistics:
    """Raises GrapeError: they cannot be read, or are no numbers to divide by."""
    try:
        found = json.loads((folder / STATISTICS).read_text())
        read = Statistics(float(found["mean"]), float(found["std"]), float(found.get("doubt", 0.0)))
        if not (all(map(math.isfinite, read)) and read.std > 0 and read.doubt >= 0):
            raise ValueError(f"mean {read.mean}, std {read.std}, doubt {read.doubt}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        what, mend = f"the reward model's mean and std cannot be used: {error}", "run the reward stage again: grape run reward"
        raise GrapeError(what, where=str(folder / STATISTICS), mend=mend) from error
    return read


def agreement(spread: Tensor, doubt: float | Tensor) -> Tensor:
    """1 / sqrt(1 + pi/8 (doubt spread)^2), in (0, 1]: the factor by which log-odds shrink towards 0 where r is only known up to a
    standard deviation of doubt x spread nats (MacKay 1992). 1 where all members agree."""
    return (1 + math.pi / 8 * (doubt * spread).square()).rsqrt()


def doubt(margins: Tensor) -> float:
    """The multiple of their spread that explains held-out pairs best: r_w - r_l of every member and pair (members, N), nats.

    Maximum likelihood of sigma(mean agreement(spread, doubt)); 0: where the members differ they are no more often wrong.
    """
    grid = torch.arange(0, MOST_DOUBT + STEP / 2, STEP).unsqueeze(1)
    likelihood = F.logsigmoid(margins.mean(0) * agreement(margins.std(0), grid)).mean(1)
    return round(float(grid[likelihood.argmax()]), 6)


class Member:
    """One reward model with its mean and std."""

    def __init__(self, folder: Path, weights: Weights) -> None:
        model, self.tokenizer = load_scalar_model(str(folder), weights=weights)
        self.model: ScalarModel = model.to(device())
        self.mean, self.std, self.doubt = statistics(folder)

    def __call__(self, batch: Tokens, max_tokens: int, dtype: Dtype) -> Tensor:
        """r less its mean, (B,), nats."""
        return batched_scores(self.model, batch.to(self.model.device), max_tokens, dtype).cpu() - self.mean


class LearnedReward:
    """Responses -> Scores with K = 1: (r - mean) / std, of an ensemble the members' mean; confidence 1, of an ensemble `agreement`.

    It reads the very tokens that were sampled (it comes from the same SFT model as the policy), so that a truncated answer, which
    has no EOS, is not read as if it had ended there.
    """

    def __init__(
        self, folder: Path, dtype: Dtype = "float32", max_tokens: int = 16384, template: Template | None = None,
        weights: Weights = "float32",
    ) -> None:  # fmt: skip
        more = sorted((folder / MEMBERS).glob("[0-9]*"), key=lambda path: int(path.name))
        self.members = [Member(place, weights) for place in (folder, *more)]
        self.chat = Chat(self.members[0].tokenizer, template)
        self.dtype, self.max_tokens = dtype, max_tokens

    def __call__(self, responses: Sequence[Response]) -> Scores:
        rows = [Row(self.chat.prompt(r.prompt.messages, r.prompt.id), list(r.ids)) for r in responses]
        limit = positions(self.members[0].model)
        fits = [row.tokens <= limit and bool(row.response) for row in rows]
        valid = torch.tensor(fits)
        score, confidence = torch.zeros(len(rows)), torch.ones(len(rows))
        if any(fits):
            batch = collate([row for row, fit in zip(rows, fits, strict=True) if fit], self.chat.pad)
            score[valid], confidence[valid] = self._judged(batch)
        # A reward model that overflows has no opinion: missing, not a number to learn from.
        finite = torch.isfinite(score)
        why = ["" if ok else "the reward model's score is not finite" for ok in finite.tolist()]
        reasons = tuple((w if fit else "longer than the reward model's positions",) for w, fit in zip(why, fits, strict=True))
        valid, score, confidence = valid & finite, torch.where(finite, score, 0.0), torch.where(finite, confidence, 1.0)
        ones = torch.ones(len(rows), 1)
        return Scores((ITEM,), score.unsqueeze(1), confidence.unsqueeze(1), valid.unsqueeze(1), ones, reasons)

    def _judged(self, batch: Tokens) -> tuple[Tensor, Tensor]:
        """Score and confidence of every row, (B,)."""
        r = [member(batch, self.max_tokens, self.dtype) for member in self.members]
        score = torch.stack([of / member.std for of, member in zip(r, self.members, strict=True)]).mean(0)
        return score, agreement(torch.stack(r).std(0), self.members[0].doubt) if len(r) > 1 else torch.ones_like(score)
