"""Log-probabilities of response tokens from logits. The only place that knows which logit predicts which token.

Logits at position j predict token j + 1. With a prompt of S columns followed by a response of T columns, response token t
(0-based) is predicted at column S - 1 + t: see `predicting_columns`.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
        entropy_gradient: whether the entropy is to be differentiated; it costs memory.

    Returns:
        logp (B, T), 0 outside the mask; entropy (B, T) in nats, 0 outside the mask.
    """
    logp_all = log_softmax(logits, temperature)
    del logits  # as large again, and read no more
    # masked_fill and not a product: a padded position may hold -inf, and 0 * -inf is NaN.
    logp = logp_all.gather(-1, ids.unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0.0)
    # Last, since where this is computed again for its gradient (`grape.models.head`) torch stops at what that needs.
    entropy = entropies(logp_all if entropy_gradient else logp_all.detach())
    return logp, entropy.masked_fill(~mask, 0.0)


def entropies(logp_all: Tensor) -> Tensor:
    """(..., V) log-probabilities -> (...) entropies in nats."""
    p, bounded = logp_all.exp(), logp_all.clamp(min=-1e4)
    return -(p * bounded if logp_all.requires_grad else p.mul_(bounded)).sum(-1)
