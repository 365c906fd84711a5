"""The value model V(s_t): what a prefix is worth. A model of its own beside the policy, or a head on the policy's trunk."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from grape.maths.logprob import predicting_columns, token_logp
from grape.models.forward import Dtype, autocast, inputs, micro_batches
from grape.models.protocols import LanguageModel, ScalarModel
from grape.types import Outputs, Tokens


class ValuedPolicy(nn.Module):
    """A policy and its value model as one set of weights. `value` None: a head reads the policy's last hidden state.

    Heads start at zero, V = 0 everywhere: a random head would make the first advantages noise.
    """

    def __init__(self, policy: LanguageModel, value: ScalarModel | None = None) -> None:
        super().__init__()
        self.policy, self.value = policy, value
        self.head = nn.Linear(policy.config.hidden_size, 1) if value is None else None
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)
        self.score.to(policy.device)

    @property
    def score(self) -> nn.Module:
        return self.value.score if self.value is not None else cast(nn.Linear, self.head)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.policy.device
        return device

    def families(self) -> list[list[nn.Parameter]]:
        """The weights in groups with a learning rate and a gradient norm of their own: policy, value."""
        parts = (self.policy, cast(nn.Linear, self.head) if self.value is None else self.value)
        return [[p for p in part.parameters() if p.requires_grad] for part in parts]


def valued(
    model: ValuedPolicy, batch: Tokens, temperature: float = 1.0, dtype: Dtype = "float32", entropy_gradient: bool = False
) -> Outputs:
    """log pi(y_t | s_t), entropies, and V(s_t) read where the logits predict y_t."""
    logits, value = _both(model, batch, dtype)
    logp, entropy = token_logp(logits, batch.response, batch.mask, temperature, entropy_gradient)
    return Outputs(logp=logp, entropy=entropy, value=value[:, :-1])


def _both(model: ValuedPolicy, batch: Tokens, dtype: Dtype) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) and values (B, T + 1): before every response token, and behind the last column."""
    width, length, device = batch.prompt.shape[1], batch.response.shape[1], batch.prompt.device
    columns = predicting_columns(width, length, device)
    states = predicting_columns(width, length + 1, device)
    apart = model.value
    with autocast(dtype, device):
        out = model.policy(**inputs(batch), logits_to_keep=columns, use_cache=False, output_hidden_states=apart is None)
        hidden = out.hidden_states[-1] if apart is None else apart.base_model(**inputs(batch), use_cache=False).last_hidden_state
        value: Tensor = model.score(hidden[:, states])
    return out.logits, value.float().squeeze(-1)


@torch.no_grad()
def batched_values(model: ValuedPolicy, batch: Tokens, max_tokens: int, dtype: Dtype = "float32") -> tuple[Tensor, Tensor]:
    """V(s_t) of every response token (B, T), 0 outside the mask, and V behind each row's last token (B,). In micro-batches."""
    value = torch.zeros(batch.response.shape, device=batch.response.device)
    behind = torch.zeros(batch.rows, device=batch.response.device)
    for index in micro_batches(batch, max_tokens):
        part = batch.select(index)
        found = _both(model, part, dtype)[1]
        value[index, : part.mask.shape[1]] = found[:, :-1] * part.mask
        behind[index] = found.gather(1, part.mask.sum(1, keepdim=True)).squeeze(1)
    return value, behind
