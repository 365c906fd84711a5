"""Keys and values in a buffer with room for every token to come, written in place.

transformers' own cache is concatenated anew for every token and layer: with 32 rows of 75 tokens that was a tenth of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class InPlace(DynamicLayer):
    """Keys and values (R, heads, n, size) of plain attention: the first n columns of a buffer."""

    def __init__(self, keys: Tensor, values: Tensor, samples: int, room: int, dtype: torch.dtype) -> None:
        """The layer of a prefilled prompt, (P, ..), repeated for G = `samples` rows each, with room for so many tokens more."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = dtype, keys.device, True
        self.buffers = [_roomy(x.to(dtype), samples, room) for x in (keys, values)]
        self._show(keys.shape[2])

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = new
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._show(length)


def _roomy(x: Tensor, samples: int, room: int) -> Tensor:
    rows, heads, length, size = x.shape
    buffer = x.new_empty(rows, samples, heads, length + room, size)
    buffer[:, :, :, :length] = x.unsqueeze(1)
    return buffer.view(rows * samples, heads, length + room, size)


def expanded(cache: Any, samples: int, room: int, rounded: bool = False) -> Any:
    """The cache of P prefilled prompts for P * G rows, with `rounded` in bfloat16: under autocast attention would round all of it
    for every token, to the same numbers. Layers of plain attention get a buffer; what is not that (sliding windows,
    indexers, layers that read another's keys) stays transformers' own and grows as it does."""
    if not hasattr(cache, "layers"):
        cache.batch_repeat_interleave(samples)
        return cache
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length() > 0:
            dtype = torch.bfloat16 if rounded else layer.keys.dtype
            cache.layers[i] = InPlace(layer.keys, layer.values, samples, room, dtype)
        else:
            layer.batch_repeat_interleave(samples)
    return cache
