"""Which token a uniform number means. Token t of a response is the inverse of the cumulated probabilities at one number that
depends only on (keys, prompt id, sample index, t), so it is the same whatever else is written beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from grape.randomness import generator

# Vocabularies above SEARCHED are searched block by block: summing 49152 probabilities one after the other in float64 took five
# times as long as the softmax they come from.
SEARCHED, BLOCK = 4096, 128


def uniforms(prompts: Sequence[str], samples: int, length: int, keys: Sequence[object]) -> Tensor:
    """(B, length) uniform numbers in [0, 1), row p * G + g for sample g of the prompt with the p-th id."""
    rows = [generator(*keys, prompt, g).random(length, dtype=np.float32) for prompt in prompts for g in range(samples)]
    return torch.from_numpy(np.stack(rows))


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(R,) tokens: the first whose cumulated probability exceeds the row's uniform number; temperature 0 takes the mode.
    And (R,) their log softmax(logits / temperature), nats, float32; 0 at temperature 0, where nothing is drawn."""
    if temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits), dtype=torch.float32)
    # x / 1 is x: one pass over (R, V) less.
    probability = torch.softmax(logits.float() / temperature if temperature != 1 else logits.float(), -1)
    token = _search(probability, uniform) if logits.shape[-1] <= SEARCHED else _search_blocks(probability, uniform)
    return token, probability.gather(1, token.unsqueeze(1)).squeeze(1).log()


def mode(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(R,) most likely tokens, and their log softmax(logits / temperature)."""
    token = logits.argmax(-1)
    scaled = logits.float() / temperature
    return token, scaled.gather(1, token.unsqueeze(1)).squeeze(1) - scaled.logsumexp(-1)


def _exact(device: torch.device) -> torch.dtype:
    """Sums over a vocabulary in float32 err by some 1e-6, so float64 where the device has it (Apple's has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def _search(weight: Tensor, uniform: Tensor) -> Tensor:
    """(R, N) weights >= 0, (R,) numbers in [0, 1) -> (R,) places."""
    cumulated = weight.cumsum(-1, dtype=_exact(weight.device))
    # Scale by the last entry: rounding may leave it just below 1, and a uniform number above it would fall off the end.
    drawn = torch.searchsorted(cumulated, (uniform.to(cumulated.dtype) * cumulated[:, -1]).unsqueeze(1), right=True)
    return drawn.squeeze(1).clamp(max=weight.shape[-1] - 1)


def _search_blocks(weight: Tensor, uniform: Tensor) -> Tensor:
    """The same, in two steps: the block, then the place within it. A block's sum is of BLOCK numbers in float32, right to some
    1e-7 of it: as right as the softmax. Within it, its own float64 sum scales what is left, so nothing of weight 0 is found."""
    blocks = pad(weight, (0, -weight.shape[-1] % BLOCK)).view(len(weight), -1, BLOCK)
    sums = blocks.sum(-1).to(_exact(weight.device))
    cumulated = sums.cumsum(-1)
    target = (uniform.to(sums.dtype) * cumulated[:, -1]).unsqueeze(1)
    found = torch.searchsorted(cumulated, target, right=True).clamp(max=sums.shape[-1] - 1)
    own = sums.gather(1, found)
    rest = ((target - (cumulated.gather(1, found) - own)) / own).clamp(0, 1 - 2**-20)
    within = _search(blocks.gather(1, found.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1), rest.squeeze(1))
    return found.squeeze(1) * BLOCK + within
