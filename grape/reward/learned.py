"""The learned reward: a Bradley-Terry model's r(x, y), standardised by the mean and std it had on held-out data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from grape.errors import GrapeError
from grape.models.chat import Chat, Row
from grape.models.encode import collate
from grape.models.forward import Dtype, Weights, batched_scores
from grape.models.load import device, load_scalar_model, positions
from grape.models.template import Template
from grape.types import Response, Scores

STATISTICS = "reward_statistics.json"
ITEM = "reward_model/score"


def statistics(folder: Path) -> tuple[float, float]:
    """Mean and std of r on held-out data. Raises GrapeError: they cannot be read, or are no numbers to divide by."""
    try:
        found = json.loads((folder / STATISTICS).read_text())
        mean, std = float(found["mean"]), float(found["std"])
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"mean {mean}, std {std}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        what, mend = f"the reward model's mean and std cannot be used: {error}", "run the reward stage again: grape run reward"
        raise GrapeError(what, where=str(folder / STATISTICS), mend=mend) from error
    return mean, std


class LearnedReward:
    """Responses -> Scores with K = 1, confidence 1: (r - mean) / std.

    It reads the very tokens that were sampled (it comes from the same SFT model as the policy), so that a truncated answer, which
    has no EOS, is not read as if it had ended there.
    """

    def __init__(
        self, folder: Path, dtype: Dtype = "float32", max_tokens: int = 16384, template: Template | None = None,
        weights: Weights = "float32",
    ) -> None:  # fmt: skip
        model, tokenizer = load_scalar_model(str(folder), weights=weights)
        self.chat = Chat(tokenizer, template)
        self.model, self.dtype, self.max_tokens = model.to(device()), dtype, max_tokens
        self.mean, self.std = statistics(folder)

    def __call__(self, responses: Sequence[Response]) -> Scores:
        rows = [Row(self.chat.prompt(r.prompt.messages, r.prompt.id), list(r.ids)) for r in responses]
        limit = positions(self.model)
        fits = [row.tokens <= limit and bool(row.response) for row in rows]
        valid = torch.tensor(fits)
        score = torch.zeros(len(rows))
        if any(fits):
            batch = collate([row for row, fit in zip(rows, fits, strict=True) if fit], self.chat.pad)
            raw = batched_scores(self.model, batch.to(self.model.device), self.max_tokens, self.dtype).cpu()
            score[valid] = (raw - self.mean) / self.std
        ones = torch.ones(len(rows), 1)
        # A reward model that overflows has no opinion: missing, not a number to learn from.
        finite = torch.isfinite(score)
        why = ["" if ok else "the reward model's score is not finite" for ok in finite.tolist()]
        reasons = tuple((w if fit else "longer than the reward model's positions",) for w, fit in zip(why, fits, strict=True))
        valid, score = valid & finite, torch.where(finite, score, 0.0)
        return Scores((ITEM,), score.unsqueeze(1), ones, valid.unsqueeze(1), ones, reasons)
