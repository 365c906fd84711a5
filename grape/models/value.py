"""The value model V(s_t): what a prefix is worth. A model of its own beside the policy, or a head on the policy's trunk."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from grape.maths.logprob import predicting_columns, token_logp
from grape.models.forward import Dtype, autocast, inputs, language, micro_batches
from grape.models.head import any_head, chunked_logp, head_of, hidden_states
from grape.models.protocols import LanguageModel, ScalarModel
from grape.models.shared import share, states
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
    if model.value is not None:
        said = language(model.policy, batch, temperature, dtype, entropy_gradient)
        return said.with_(value=_values(model, batch, dtype)[:, :-1])
    with autocast(dtype, batch.prompt.device):
        given, packed = inputs(batch) | {"logits_to_keep": _states(batch)}, batch.get("shared") is not None
        head = any_head(model.policy) if packed else head_of(model.policy, batch.response.numel())
        hidden = None if head is None else states(model.policy, batch) if packed else hidden_states(model.policy, head, given)
        if head and hidden is not None:
            logp, entropy = chunked_logp(head, hidden[:, :-1], batch.response, batch.mask, temperature, entropy_gradient)
            return Outputs(logp=logp, entropy=entropy, value=_read(model, hidden)[:, :-1])
        out = model.policy(**given | {"logits_to_keep": _states(batch)[:-1]}, use_cache=False, output_hidden_states=True)
        value = _read(model, out.hidden_states[-1][:, _states(batch)])
    logp, entropy = token_logp(out.logits, batch.response, batch.mask, temperature, entropy_gradient)
    return Outputs(logp=logp, entropy=entropy, value=value[:, :-1])


def _states(batch: Tokens) -> Tensor:
    """The columns before every response token, and behind the last: (T + 1,)."""
    return predicting_columns(batch.prompt.shape[1], batch.response.shape[1] + 1, batch.prompt.device)


def _values(model: ValuedPolicy, batch: Tokens, dtype: Dtype) -> Tensor:
    """(B, T + 1) values: before every response token, and behind the last column. No logits are made."""
    owner = model.policy if model.value is None else model.value
    with autocast(dtype, batch.prompt.device):
        if batch.get("shared") is not None:
            return _read(model, states(owner, batch))
        return _read(model, owner.base_model(**inputs(batch), use_cache=False).last_hidden_state[:, _states(batch)])


def _read(model: ValuedPolicy, hidden: Tensor) -> Tensor:
    # A head that is trained above frozen weights in half precision is in full.
    value: Tensor = model.score(hidden.to(next(model.score.parameters()).dtype))
    return value.float().squeeze(-1)


@torch.no_grad()
def batched_values(model: ValuedPolicy, batch: Tokens, max_tokens: int, dtype: Dtype = "float32") -> tuple[Tensor, Tensor]:
    """V(s_t) of every response token (B, T), 0 outside the mask, and V behind each row's last token (B,). In micro-batches."""
    batch, value = share(model, batch), torch.zeros(batch.response.shape, device=batch.response.device)
    behind = torch.zeros(batch.rows, device=batch.response.device)
    for index in micro_batches(batch, max_tokens):
        part = batch.select(index)
        found = _values(model, part, dtype)
        value[index, : part.mask.shape[1]] = found[:, :-1] * part.mask
        behind[index] = found.gather(1, part.mask.sum(1, keepdim=True)).squeeze(1)
    return value, behind
