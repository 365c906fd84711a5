"""Log-probabilities of response tokens from logits. The only place that knows which logit predicts which token.

Logits at position j predict token j + 1. With a prompt of S columns followed by a response of T columns, response token t
(0-based) is predicted at column S - 1 + t: see `predicting_columns`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LEAST = -1e4  # nats, for products with a probability of 0, whose logarithm is -inf
# Logits whose softmax is taken at once, at least a row for each thread. On a CPU 4 MB in float32: they stay in its cache, and what
# is larger than 32 MB the C library takes from the system, zeroed, every time.
BLOCK = {"cpu": 1 << 20}
BLOCK_OF_ACCELERATORS = 1 << 24


def predicting_columns(prompt_width: int, response_width: int, device: torch.device | str = "cpu") -> Tensor:
    """(T,) columns of a [prompt | response] row whose logits predict the response's tokens."""
    return torch.arange(prompt_width - 1, prompt_width - 1 + response_width, device=device)


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last axis, in float32: bfloat16 loses the tail."""
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)  # a division is a pass over all of it


def token_logp(
    logits: Tensor, ids: Tensor, mask: Tensor, temperature: float = 1.0, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """log pi(y_t | s_t) and the entropy of pi(. | s_t).

    Args:
        logits: (B, T, V), already those that predict the response's tokens.
        ids: (B, T) response tokens; mask: (B, T).
        temperature: what sampling divided the logits by; training must divide by the same.
        entropy_gradient: whether the entropy is to be differentiated.

    Returns:
        logp (B, T), 0 outside the mask; entropy (B, T) in nats, 0 outside the mask. Differentiable once: `log_softmax` is as often
        as one likes.
    """
    logp, entropy = _Said.apply(logits.flatten(0, -2), ids.flatten(), temperature, entropy_gradient)
    # masked_fill and not a product: a padded position may hold -inf, and 0 * -inf is NaN.
    return logp.view_as(ids).masked_fill(~mask, 0.0), entropy.view_as(ids).masked_fill(~mask, 0.0)


class _Said(torch.autograd.Function):
    """log p(y) and H = -sum_j p_j log p_j of p = softmax(z / temperature), for logits z (N, V) and ids y (N,): both (N,).

        d log p(y) / dz_j = (1[j = y] - p_j) / temperature        dH / dz_j = -p_j (log p_j + H) / temperature

    A few rows at a time, forward and backward: of a vocabulary in float32 autograd would keep one copy for the way back and make
    six more, each a pass through memory: for SmolLM2 in bfloat16 a third of the head's time (benchmarks/head.py). Here the logits
    alone are kept, as they came.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        logp, entropy = (torch.empty(ids.shape, dtype=torch.float32, device=ids.device) for _ in range(2))
        for rows in blocks(logits):
            logp_all = log_softmax(logits[rows], temperature)
            logp[rows] = logp_all.gather(-1, ids[rows].unsqueeze(-1)).squeeze(-1)
            entropy[rows] = entropies(logp_all)
        ctx.save_for_backward(logits, ids, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, of_logp: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph: what is below is no graph that says how the probabilities move
            raise NotImplementedError("token_logp is differentiable once; for second derivatives take log_softmax of the logits")
        logits, ids, entropy = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        g = torch.zeros(ids.shape, device=ids.device) if of_logp is None else of_logp
        for rows in blocks(logits):
            logp_all, weight = log_softmax(logits[rows], ctx.temperature), g[rows].unsqueeze(-1)
            if of_entropy is None:
                d = logp_all.exp_().mul_(-weight)
            else:
                h, slope = entropy[rows].unsqueeze(-1), of_entropy[rows].unsqueeze(-1)
                d = logp_all.exp().mul_(logp_all.clamp_(min=LEAST).add_(h).mul_(slope).add_(weight).neg_())
            d.scatter_add_(-1, ids[rows].unsqueeze(-1), weight)
            gradient[rows] = d if ctx.temperature == 1 else d.div_(ctx.temperature)
        return gradient, None, None, None


def blocks(logits: Tensor) -> Iterator[slice]:
    """Rows of (N, V) logits, as many as a softmax is taken of at once."""
    count = BLOCK.get(logits.device.type, BLOCK_OF_ACCELERATORS) // logits.shape[-1]
    count = max(count, torch.get_num_threads() if logits.device.type == "cpu" else 1)
    for start in range(0, len(logits), count):
        yield slice(start, start + count)


def entropies(logp_all: Tensor) -> Tensor:
    """(..., V) log-probabilities -> (...) entropies in nats."""
    p, bounded = logp_all.exp(), logp_all.clamp(min=LEAST)
    return -(p * bounded if logp_all.requires_grad else p.mul_(bounded)).sum(-1)
