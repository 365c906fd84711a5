"""Sampling responses: prompts x G -> Responses. The prompt is prefilled once per group, EOS is kept, draws are counted.

Tokens come from the softmax of the logits divided by the temperature, over the whole vocabulary: no top-k, top-p or penalty,
because training computes log-probabilities of exactly that distribution. Token t of a response is the inverse of the
cumulated probabilities at one uniform number that depends only on (keys, prompt id, sample index, t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grape import memory
from grape.models.chat import Chat, Row
from grape.models.forward import Dtype, autocast
from grape.models.protocols import LanguageModel
from grape.randomness import generator
from grape.types import Prompt, Response

# Finished rows are dropped from the cache when this share of the rows still there has finished.
COMPACT_AT = 0.25


def uniforms(prompts: Sequence[Prompt], samples: int, length: int, keys: Sequence[object]) -> Tensor:
    """(B, length) uniform numbers in [0, 1), row p * G + g for sample g of prompt p."""
    rows = [generator(*keys, prompt.id, g).random(length, dtype=np.float32) for prompt in prompts for g in range(samples)]
    return torch.from_numpy(np.stack(rows))


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """(R,) tokens: the first whose cumulated probability exceeds the row's uniform number; temperature 0 takes the mode."""
    if temperature == 0:
        return logits.argmax(-1)
    probability = torch.softmax(logits.float() / temperature, -1)
    # Sums over a vocabulary in float32 err by some 1e-6, so float64 where the device has it (Apple's has not).
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulated = probability.cumsum(-1, dtype=exact)
    # Scale by the last entry: rounding may leave it just below 1, and a uniform number above it would fall off the end.
    drawn = torch.searchsorted(cumulated, (uniform.to(exact) * cumulated[:, -1]).unsqueeze(1), right=True)
    return drawn.squeeze(1).clamp(max=logits.shape[-1] - 1)


class _Decoding:
    """The rows still being written: their cache, where they belong, and what they have written so far."""

    def __init__(self, model: LanguageModel, rows: list[list[int]], samples: int, pad: int, dtype: Dtype) -> None:
        self.model, self.dtype = model, dtype
        device = model.device
        width = max(len(r) for r in rows)
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
        self.attention = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
        position = (self.attention.cumsum(1) - 1).clamp(min=0)
        with autocast(dtype, device):
            out = model(input_ids=ids, attention_mask=self.attention, position_ids=position, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        self.cache.batch_repeat_interleave(samples)
        self.logits = out.logits[:, -1].repeat_interleave(samples, 0)
        self.attention = self.attention.repeat_interleave(samples, 0)
        self.position = position[:, -1].repeat_interleave(samples, 0)
        self.row = torch.arange(len(rows) * samples, device=device)

    def step(self, token: Tensor) -> None:
        self.position = self.position + 1
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(token), 1)], 1)
        with autocast(self.dtype, token.device):
            out = self.model(
                input_ids=token.unsqueeze(1),
                attention_mask=self.attention,
                position_ids=self.position.unsqueeze(1),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.logits = out.logits[:, -1]

    def keep(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.logits, self.attention, self.position, self.row = (
            x[index] for x in (self.logits, self.attention, self.position, self.row)
        )


def rows_that_fit(model: LanguageModel, longest: int, dtype: Dtype) -> int:
    """How many rows of so many tokens are written at once: their cache and the numbers over the vocabulary that a token is drawn
    from take a quarter of the memory that is free now (other stages may run beside)."""
    return max(1, int(memory.free_bytes(model.device) // 4 // row_bytes(model.config, longest, dtype, model.dtype)))


def row_bytes(config: Any, longest: int, dtype: Dtype, weights: torch.dtype) -> int:
    """Bytes that a row of `longest` tokens takes: keys and values of every layer, and V logits, probabilities and their sums."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = 2 if dtype == "bfloat16" else weights.itemsize
    return int(2 * config.num_hidden_layers * heads * size * longest * width + config.vocab_size * (width + 4 + 4 + 8))


@torch.no_grad()
def _generate(
    model: LanguageModel,
    rows: list[list[int]],
    uniform: Tensor,
    samples: int,
    temperature: float,
    limits: list[int],
    stops: frozenset[int],
    pad: int,
    dtype: Dtype,
    greedy: bool,
) -> list[list[int]]:
    """Response ids of every row, EOS included where it was sampled, at most `limits` of them (one number per prompt).
    greedy: the last row of every group takes the most likely tokens."""
    decoding = _Decoding(model, rows, samples, pad, dtype)
    device = model.device
    uniform = uniform.to(device)
    limit = torch.tensor(limits, device=device).repeat_interleave(samples)
    max_new = max(limits)
    written = torch.full((len(rows) * samples, max_new), -1, dtype=torch.long, device=device)
    stop = torch.tensor(sorted(stops), device=device)
    done = torch.zeros(len(rows) * samples, dtype=torch.bool, device=device)
    for t in range(max_new):
        token = choose(decoding.logits, uniform[decoding.row, t], temperature)
        if greedy:
            token = torch.where(
                decoding.row % samples == samples - 1, choose(decoding.logits, uniform[decoding.row, t], 0.0), token
            )
        alive = ~done[decoding.row]
        written[decoding.row[alive], t] = token[alive]
        done[decoding.row] |= torch.isin(token, stop) | (t + 1 >= limit[decoding.row])
        alive = ~done[decoding.row]
        count = int(alive.sum())
        if count == 0:
            break
        if count <= (1 - COMPACT_AT) * len(decoding.row):
            decoding.keep(alive.nonzero().squeeze(1))
            token = token[alive]
        decoding.step(token)
    return [[i for i in row if i >= 0] for row in written.tolist()]


def sample(
    model: LanguageModel,
    chat: Chat,
    prompts: Sequence[Prompt],
    samples: int,
    *,
    temperature: float,
    max_new_tokens: int,
    positions: int,
    keys: Sequence[object],
    dtype: Dtype = "float32",
    rows_at_once: int | None = None,
    greedy: bool = False,
) -> list[Response]:
    """G = `samples` responses per prompt, grouped: responses p*G .. p*G+G-1 answer prompt p.

    Args:
        temperature: > 0; 0 takes the most likely token (greedy), then samples must be 1.
        positions: prompt and response together stay within this many tokens.
        keys: what the draws are for, e.g. (seed, "rl", update).
        rows_at_once: bounds memory, and never changes what is drawn; None: as many as a quarter of the free memory holds.
        greedy: every group has one response more, its last: the most likely tokens, written beside the others in the same passes.
    """
    if temperature == 0 and samples != 1:
        raise ValueError("greedy decoding gives one response per prompt")
    samples += greedy
    encoded = [chat.prompt(prompt.messages, prompt.id) for prompt in prompts]
    responses: list[Response] = []
    longest = min(max(map(len, encoded), default=0) + max_new_tokens, positions)
    per_chunk = max(1, (rows_at_once or rows_that_fit(model, longest, dtype)) // samples)
    for start in range(0, len(prompts), per_chunk):
        chunk, rows = prompts[start : start + per_chunk], encoded[start : start + per_chunk]
        limits = [min(max_new_tokens, positions - len(row)) for row in rows]
        if min(limits) < 1:
            raise ValueError(
                f"prompt {chunk[limits.index(min(limits))].id} leaves no room for a response within {positions} positions"
            )
        uniform = uniforms(chunk, samples, max(limits), keys)
        drawn = _generate(model, rows, uniform, samples, temperature, limits, chat.stops, chat.pad, dtype, greedy)
        for i, ids in enumerate(drawn):
            text, raw = chat.read(ids)
            finished = bool(ids) and ids[-1] in chat.stops
            responses.append(Response(chunk[i // samples], i % samples, tuple(ids), text, finished, "" if raw == text else raw))
    return responses


def response_rows(chat: Chat, responses: Sequence[Response]) -> list[Row]:
    """Rows for `collate`: the sampled ids themselves, never a re-encoding of their text."""
    return [Row(chat.prompt(r.prompt.messages, r.prompt.id), list(r.ids)) for r in responses]
