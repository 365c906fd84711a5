"""The critic: a language model that answers yes or no to a rubric's question, read from the probabilities of its verdict tokens.

    z = log p(yes) - log p(no) at the first token of its answer,   p = sigma(slope z + offset),   score = p,
    confidence = max(p, 1 - p): the calibrated probability that its verdict is right.

slope and offset (Platt scaling, per item, else over all items) are fitted by the critic stage on held-out judgements: a raw
language model is overconfident. No text is generated, so the policy's text cannot be mistaken for the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.models.encode import collate, encode_chat, encode_prompt
from grape.models.forward import Dtype, micro_batches, response_logits
from grape.models.load import device, load_language_model

YES, NO = "yes", "no"
CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """slope and offset of sigma(slope z + offset) per item name `category/item`; "" is the fallback over all items."""

    items: Mapping[str, tuple[float, float]]

    def apply(self, names: Sequence[str], z: Tensor) -> Tensor:
        """(n,) probabilities of yes."""
        pairs = [self.items.get(name, self.items.get("", (1.0, 0.0))) for name in names]
        slope, offset = (torch.tensor(column, device=z.device) for column in zip(*pairs, strict=True))
        return torch.sigmoid(slope * z + offset)

    def write(self, folder: Path) -> None:
        text = json.dumps({name: list(pair) for name, pair in sorted(self.items.items())}, indent=1)
        (folder / CALIBRATION).write_text(text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Calibration:
        try:
            stored = json.loads((folder / CALIBRATION).read_text())
            return cls({name: (float(a), float(b)) for name, (a, b) in stored.items()})
        except (OSError, ValueError) as error:
            raise GrapeError(
                f"the critic's calibration cannot be read: {error}",
                where=str(folder / CALIBRATION),
                mend="run the critic stage again: grape run critic",
            ) from error


def fit_calibration(names: Sequence[str], z: Tensor, label: Tensor, least: int = 50) -> Calibration:
    """Platt scaling per item with at least `least` judgements of both kinds, and one over all items.

    Args:
        names: n item names; z: (n,) log-odds of yes; label: (n,) 1 for yes.
    """
    from sklearn.linear_model import LogisticRegression

    def platt(index: Tensor) -> tuple[float, float]:
        x, y = z[index].double().unsqueeze(1).numpy(), label[index].numpy()
        # A weak ridge keeps a separable item's slope finite.
        fitted = LogisticRegression(C=10.0).fit(x, y)
        return round(float(fitted.coef_[0, 0]), 6), round(float(fitted.intercept_[0]), 6)

    items: dict[str, tuple[float, float]] = {}
    everything = torch.arange(len(z))
    for name, index in [
        ("", everything),
        *((n, torch.tensor([i for i, m in enumerate(names) if m == n])) for n in sorted(set(names))),
    ]:
        yes = int(label[index].sum())
        if min(yes, len(index) - yes) > 0 and (name == "" or len(index) >= least):
            items[name] = platt(index)
    return Calibration(items)


def expected_calibration_error(p: Tensor, label: Tensor, bins: int = 10) -> float:
    """ECE over equal-mass bins: mean over bins of |mean p - share of label 1|, weighted by the bin's size. p: (n,) of yes."""
    order = torch.argsort(p, stable=True)
    parts = torch.tensor_split(order, min(bins, len(order)))
    return float(sum(abs(float(p[i].mean()) - float(label[i].float().mean())) * len(i) for i in parts) / max(len(p), 1))


class Critic:
    """A critic model ready to judge."""

    def __init__(
        self, model: Any, tokenizer: Any, calibration: Calibration, max_tokens: int = 16384, dtype: Dtype = "float32"
    ) -> None:
        self.model, self.tokenizer, self.calibration = model, tokenizer, calibration
        self.max_tokens, self.dtype = max_tokens, dtype
        self.prefix, self.yes, self.no = verdict_tokens(tokenizer)

    @classmethod
    def load(cls, folder: Path, dtype: Dtype = "float32", max_tokens: int = 16384) -> Critic:
        model, tokenizer = load_language_model(str(folder))
        return cls(model.to(device()), tokenizer, Calibration.read(folder), max_tokens, dtype)

    @torch.no_grad()
    def log_odds(self, texts: Sequence[str]) -> Tensor:
        """(n,) z = log p(yes) - log p(no); -inf or a missing score never arise: both verdicts have a logit. NaN where too long."""
        limit = getattr(self.model.config, "max_position_embeddings", 1 << 30)
        rows = [
            (encode_prompt(self.tokenizer, [{"role": "user", "content": t}]) + self.prefix, [self.yes]) for t in texts
        ]
        z = torch.full((len(rows),), torch.nan)
        fitting = [i for i, (p, _) in enumerate(rows) if len(p) < limit]
        if not fitting:
            return z
        batch = collate([rows[i] for i in fitting], self.tokenizer.pad_token_id).to(self.model.device)
        for index in micro_batches(batch, self.max_tokens):
            logits = response_logits(self.model, batch.select(index), self.dtype)[:, 0].float()
            z[[fitting[i] for i in index.tolist()]] = (logits[:, self.yes] - logits[:, self.no]).cpu()
        return z

    def judge(self, names: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(score, confidence), both (n,), of the items `names` on the critic texts; NaN where the text is too long to judge."""
        unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        z = self.log_odds(list(unique))[[unique[text] for text in texts]]
        score = self.calibration.apply(names, z)
        return score, torch.maximum(score, 1 - score)


def verdict_tokens(tokenizer: Any) -> tuple[list[int], int, int]:
    """(prefix, yes, no): what both verdicts begin with in this tokenizer, and the first token at which they differ."""
    turn = [{"role": "user", "content": "?"}]
    yes, no = (encode_chat(tokenizer, turn, verdict)[1] for verdict in (YES, NO))
    same = 0
    while yes[same] == no[same]:
        same += 1
    return yes[:same], yes[same], no[same]
