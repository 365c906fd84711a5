"""A yes or no read from a causal language model's logits, without generating a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.models.encode import collate
from grape.models.forward import Dtype, micro_batches, response_logits
from grape.models.load import positions

Asked = tuple[list[int], int, int]  # ids up to where the verdicts part, and the first token of yes and of no behind them
TOO_LONG = "the text is longer than the critic's positions"


@torch.no_grad()
def log_odds(model: Any, rows: Sequence[Asked], pad_id: int, max_tokens: int, dtype: Dtype) -> Tensor:
    """(n,) z = log p(yes) - log p(no) on the CPU: probabilities normalised over the two.

    NaN where a row is too long (it has no place for a verdict), or where the logits are not finite.
    No temperature: z is of the model's own distribution.
    """
    limit = positions(model)
    z = torch.full((len(rows),), torch.nan)
    fitting = [i for i, (ids, _, _) in enumerate(rows) if len(ids) < limit]
    if not fitting:
        return z
    verdicts = torch.tensor([rows[i][1:] for i in fitting], device=model.device)
    batch = collate([(rows[i][0], [rows[i][1]]) for i in fitting], pad_id).to(model.device)
    for index in micro_batches(batch, max_tokens):
        logits = response_logits(model, batch.select(index), dtype)[:, 0].float()
        pair = logits.gather(1, verdicts[index])
        z[[fitting[i] for i in index.tolist()]] = (pair[:, 0] - pair[:, 1]).cpu()
    return torch.where(z.isfinite(), z, torch.nan)


def part(yes: Sequence[int], no: Sequence[int]) -> tuple[int, int, int]:
    """(how many tokens both begin with, the next one of yes, the next one of no).

    Raises:
        GrapeError: one begins with the whole other, so that no token tells them apart.
    """
    for i, (a, b) in enumerate(zip(yes, no, strict=False)):
        if a != b:
            return i, a, b
    raise GrapeError(
        "the critic's verdicts begin alike in this tokenizer, so that no token tells them apart",
        where="critic",
        mend="use a model that knows the letters of yes and no, or other verdict words",
    )
