"""Where batches come from. A source is a function of (update, state): what update t learns from depends on nothing before it
but the weights and that small state, so a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape.algorithms.base import State
from grape.models.chat import Row
from grape.models.encode import collate
from grape.training.sampler import draw
from grape.training.sums import Sums
from grape.types import Batch


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
        return Round(batch.to(device), state, {"num_samples": (float(batch.rows), 1.0), "num_tokens": (float(batch.tokens), 1.0)})

    return source
