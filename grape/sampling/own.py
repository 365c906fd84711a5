"""The engine `grape`: tokens from a model in this process. The prompt is prefilled once per group, keys and values are written in
place, finished rows leave, and nothing is read back from an accelerator for every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grape import memory
from grape.models.forward import Dtype, autocast
from grape.models.protocols import LanguageModel
from grape.sampling.cache import expanded
from grape.sampling.draws import choose, mode, uniforms
from grape.sampling.engine import Told, Wanted, Written

# Finished rows are dropped from the cache when this share of the rows still there has finished.
COMPACT_AT = 0.25
# Tokens between two looks at who has finished. A look waits for an accelerator to have done all it was told.
LOOK = {"cpu": 1}
LOOK_OF_ACCELERATORS = 8


class _Decoding:
    """The rows still being written: their cache, where they belong, and what comes next."""

    def __init__(self, model: LanguageModel, wanted: Wanted, dtype: Dtype) -> None:
        self.model, self.dtype = model, dtype
        rows, samples, room = wanted.prompts, wanted.samples, max(wanted.limits)
        device, width = model.device, max(map(len, rows))
        ids = torch.tensor([[wanted.pad] * (width - len(r)) + r for r in rows], device=device)
        attention = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
        position = (attention.cumsum(1) - 1).clamp(min=0)
        # Without padding there is nothing to mask: attention takes its faster way, and nobody looks through the mask for zeros.
        masked = min(map(len, rows)) < width
        with autocast(dtype, device):
            mask = {"attention_mask": attention} if masked else {}
            out = model(input_ids=ids, **mask, position_ids=position, use_cache=True, logits_to_keep=1)
        self.cache = expanded(out.past_key_values, samples, room, rounded=dtype == "bfloat16")
        self.logits = out.logits[:, -1].repeat_interleave(samples, 0)
        self.attention = torch.cat([attention, attention.new_ones(len(rows), room)], 1).repeat_interleave(samples, 0)
        self.position = position[:, -1].repeat_interleave(samples, 0)
        # A finished row may stay for a while: it must not walk beyond the positions that the model has.
        self.last = self.position + torch.tensor(wanted.limits, device=device).repeat_interleave(samples)
        self.row = torch.arange(len(rows) * samples, device=device)
        self.width, self.masked = width, masked

    def step(self, token: Tensor) -> None:
        self.width += 1
        self.position = torch.minimum(self.position + 1, self.last)
        mask = {"attention_mask": self.attention[:, : self.width]} if self.masked else {}
        with autocast(self.dtype, token.device):
            out = self.model(
                input_ids=token.unsqueeze(1),
                **mask,
                position_ids=self.position.unsqueeze(1),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.logits = out.logits[:, -1]

    def keep(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.logits, self.attention, self.position, self.last, self.row = (
            x[index] for x in (self.logits, self.attention, self.position, self.last, self.row)
        )


@contextmanager
def weights_cast_once(model: LanguageModel, dtype: Dtype) -> Iterator[None]:
    """Within it, the matrices of a model are rounded to bfloat16 once and not for every token: that was two thirds of the time.

    Autocast keeps what it has rounded until its outermost context ends, so one is put around all of it: the numbers are the same.
    It keeps weights that want a gradient alone; frozen ones say so meanwhile, where no gradient is recorded. Memory: two bytes a
    weight; where less than twice that is free, every token pays for itself as before.
    """
    matrices = [p for p in model.parameters() if p.dtype == torch.float32 and p.dim() >= 2]
    pays = dtype == "bfloat16" and memory.free_bytes(model.device) > 4 * sum(p.numel() for p in matrices)
    frozen = [p for p in matrices if not p.requires_grad] if pays else []
    with torch.no_grad(), autocast(dtype, model.device) if pays else nullcontext():
        try:
            for p in frozen:
                p.requires_grad_(True)
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)


@dataclass(frozen=True)
class Own:
    """The engine `grape`.

    Attributes:
        dtype: of the matrix products.
        rows_at_once: bounds memory, and never changes what is drawn; None: as many as a quarter of the free memory holds.
    """

    model: LanguageModel
    dtype: Dtype = "float32"
    rows_at_once: int | None = None

    def follow(self) -> None:
        """It reads the very weights that are trained."""

    def write(self, wanted: Wanted, told: Told | None = None) -> list[Written]:
        longest = max((len(p) + n for p, n in zip(wanted.prompts, wanted.limits, strict=True)), default=0)
        size = max(1, (self.rows_at_once or rows_that_fit(self.model, longest, self.dtype)) // wanted.samples)
        order = list(range(len(wanted.prompts)))
        if size < len(order):  # prompts of like length together: a part is as wide as its longest
            order.sort(key=lambda i: len(wanted.prompts[i]))
        found: dict[int, list[Written]] = {}
        with weights_cast_once(self.model, self.dtype):
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                of = [p * wanted.samples + g for p in chosen for g in range(wanted.samples)]
                rows = self._write(wanted.part(chosen), _Telling(told, of))
                found |= {p: rows[i * wanted.samples : (i + 1) * wanted.samples] for i, p in enumerate(chosen)}
        return [row for p in range(len(order)) for row in found[p]]

    def _write(self, wanted: Wanted, telling: _Telling) -> list[Written]:
        """Of prompts that are written at once."""
        samples, longest, device = wanted.samples, max(wanted.limits), self.model.device
        decoding = _Decoding(self.model, wanted, self.dtype)
        uniform = uniforms(wanted.names, samples, longest, wanted.keys).to(device)
        limit = torch.tensor(wanted.limits, device=device).repeat_interleave(samples)
        stop = torch.tensor(sorted(wanted.stops), device=device)
        ids = torch.full(uniform.shape, -1, dtype=torch.long, device=device)
        logp = torch.zeros(uniform.shape, device=device)
        done = torch.zeros(len(limit), dtype=torch.bool, device=device)
        every = LOOK.get(device.type, LOOK_OF_ACCELERATORS)
        for t in range(longest):
            row = decoding.row
            token, logp[row, t] = _drawn(decoding, wanted, uniform[row, t])
            ids[row, t] = torch.where(done[row], -1, token)
            done[row] |= torch.isin(token, stop) | (t + 1 >= limit[row])
            if t + 1 == longest:
                break
            if (t + 1) % every == 0:
                telling(done, ids, logp)
                alive = ~done[row]
                count = int(alive.sum())
                if count == 0:
                    break
                if count <= (1 - COMPACT_AT) * len(row):
                    decoding.keep(alive.nonzero().squeeze(1))
                    token = token[alive]
            decoding.step(token)
        telling(torch.ones_like(done), ids, logp)
        return _read(ids, logp)


class _Telling:
    """Tells once of each row that is finished. of: the rows' places in all that is written."""

    def __init__(self, told: Told | None, of: Sequence[int]) -> None:
        self.told, self.of, self.said = told, of, torch.zeros(len(of), dtype=torch.bool)

    def __call__(self, done: Tensor, ids: Tensor, logp: Tensor) -> None:
        if self.told is None:
            return
        fresh = (done.cpu() & ~self.said).nonzero().squeeze(1)
        self.said[fresh] = True
        at = fresh.to(ids.device)
        for row, written in zip(fresh.tolist(), _read(ids[at], logp[at]), strict=True):
            self.told(self.of[row], written)


def _read(ids: Tensor, logp: Tensor) -> list[Written]:
    lengths = (ids >= 0).sum(1).tolist()
    return [Written(i[:n], p[:n]) for i, p, n in zip(ids.tolist(), logp.tolist(), lengths, strict=True)]


def _drawn(decoding: _Decoding, wanted: Wanted, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) next tokens and their log-probabilities."""
    token, logp = choose(decoding.logits, uniform, wanted.temperature)
    if not wanted.greedy:
        return token, logp
    last = decoding.row % wanted.samples == wanted.samples - 1
    best, of_best = mode(decoding.logits[last], wanted.temperature)
    return token.index_put((last,), best), logp.index_put((last,), of_best)


def rows_that_fit(model: LanguageModel, longest: int, dtype: Dtype) -> int:
    """How many rows of so many tokens are written at once: their cache and the numbers over the vocabulary that a token is drawn
    from take a quarter of the memory that is free now (other stages may run beside)."""
    return max(1, int(memory.free_bytes(model.device) // 4 // row_bytes(model.config, longest, dtype, model.dtype)))


def row_bytes(config: Any, longest: int, dtype: Dtype, weights: torch.dtype) -> int:
    """Bytes that a row of `longest` tokens takes: keys and values of every layer, and V logits, probabilities and their sums."""
    width = 2 if dtype == "bfloat16" else weights.itemsize
    return key_value_bytes(config, longest, width) + int(config.get_text_config().vocab_size * (width + 4 + 4 + 8))


def key_value_bytes(config: Any, longest: int, width: int) -> int:
    """Bytes of the keys and values of every layer for `longest` tokens, `width` bytes a number."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * longest * width)
