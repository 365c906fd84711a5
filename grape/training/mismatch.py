"""The sampler and the trainer compute the same policy with other kernels, in other batches, perhaps in another program: how far
apart their log-probabilities are, and truncated importance weights against it.

    d_t = log pi_old(y_t|s_t) - log mu(y_t|s_t)            pi_old as the trainer computes it, mu as the sampler did
    w_t = min(exp(d_t), cap)  (token)      or      min(exp(sum_t d_t), cap)  (sequence)

E_mu[w l] is E_pi_old[l] but for what the cap cuts off, so w weighs the loss of every token that mu drew: of the policy, of a
penalty and of a value model alike. Ratios rho = pi_theta / pi_old stay the trainer's own, whichever engine sampled: so the first
update's ratio is 1, and a trust region is about pi_old, also where mu is another program.
Source: truncated importance sampling, Ionides 2008; for language models Yao et al. 2025, "Your efficient RL framework secretly
brings you off-policy RL training".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.maths.kl import LOG_RATIO_LIMIT
from grape.maths.masked import metric
from grape.types import Batch, Loss, Outputs

BAND = 0.2  # around a ratio of 1: the usual clip (1707.06347), beyond which a mismatch alone would be taken for a long step
CAP = 2.0  # of the weights, where nothing else is said


@dataclass(frozen=True)
class Importance:
    """How sampled tokens are weighed: each by its own ratio, or all of a response by the product of theirs; at most `cap`."""

    how: Literal["token", "sequence"]
    cap: float = CAP

    def weights(self, difference: Tensor) -> Tensor:
        """(B, T) w_t of d_t (B, T), nats, 0 where there is no token."""
        log = difference if self.how == "token" else difference.sum(1, keepdim=True).expand_as(difference)
        return log.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=self.cap)


def corrected(loss: Loss, outputs: Outputs, batch: Batch, importance: Importance | None) -> Loss:
    """The loss with what the mismatch was among its metrics, and weighed by `importance`. Of rows whose sampler said nothing (NaN)
    none is known, and they weigh 1; a batch without `logp_sampler` is left as it is.

    Without `logp_old` there is one update a round, and the policy that is being updated is pi_old.

    Raises:
        GrapeError: the loss has no value per token to weigh.
    """
    said = batch.get("logp_sampler")
    if said is None or outputs.get("logp") is None:
        return loss
    old = batch.get("logp_old")
    old = outputs.logp.detach() if old is None else old
    known = batch.mask & said.isfinite()
    difference = torch.where(known, old - said, 0.0)
    metrics = {**loss.metrics, **mismatch(difference, known)}
    if importance is None:
        return replace(loss, metrics=metrics)
    if loss.value.shape != batch.mask.shape:
        raise GrapeError(
            f"the loss has the shape {tuple(loss.value.shape)}, and only one per token {tuple(batch.mask.shape)} can be weighed",
            where="params.yaml, rl.importance",
            mend="set it to null for this algorithm",
        )
    weights = importance.weights(difference)
    metrics |= {"importance": metric(weights, known), "importance/cut": metric(weights >= importance.cap, known)}
    return replace(loss, weight=loss.weight * weights, metrics=metrics)


def mismatch(difference: Tensor, known: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Mean and largest |d_t|, and the share of tokens whose ratio is off 1 by more than BAND.

    Args:
        difference: d_t (B, T), nats. known: (B, T) bool, the tokens that have one.
    """
    if not bool(known.any()):
        return {}
    outside = (difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp() - 1).abs() > BAND
    return {
        "logp_mismatch/sampler": metric(difference.abs(), known),
        "logp_mismatch/sampler/max": (difference.abs().max(), difference.new_ones(())),
        "logp_mismatch/outside": metric(outside, known),
    }
