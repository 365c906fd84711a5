"""The LM head in chunks: logits, log-softmax and entropy of a few positions at a time, never of a whole micro-batch.

A vocabulary of V tokens makes a (B, T, V) tensor of logits, as many of log-probabilities and, on the way back, of their gradients:
with small models they are most of the memory. Here the logits (N, V) of the response's tokens alone are kept, in the precision of
the product that made them, and of many tokens only the hidden states: then each chunk of logits is made again where its gradient
is wanted. The head, and what a model does to its logits behind it, are the model's own. (Gemma's tanh keeps what it makes too.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grape.maths.logprob import token_logp
from grape.models.protocols import LanguageModel

# Logits of one chunk. A small model's micro-batch is below it and computed whole. Longer matrix products are faster, that for the
# gradient of the head's weights above all, and take more memory.
CHUNK = {"cpu": 24 << 20}
CHUNK_OF_ACCELERATORS = 1 << 26
KEPT = 1 << 26  # logits of a micro-batch; where there are more, each chunk's are made anew on the way back
# Models whose logits are not known to be what `Head` makes of hidden states: theirs are computed whole.
_whole: WeakSet[Any] = WeakSet()


class Head(NamedTuple):
    """Hidden states (N, H) -> logits (N, V), as the model makes them: scaled (Granite, Cohere), or capped by a tanh (Gemma)."""

    module: nn.Module
    config: Any

    @property
    def vocabulary(self) -> int:
        return len(self.module.weight)  # type: ignore[arg-type]

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.module(hidden)
        if (divisor := getattr(self.config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (factor := getattr(self.config, "logit_scale", None)) is not None:
            logits = logits * factor
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits


def chunk(vocabulary: int, device: torch.device) -> int:
    """Positions of one chunk."""
    return max(1, CHUNK.get(device.type, CHUNK_OF_ACCELERATORS) // vocabulary)


def head_of(model: LanguageModel, positions: int) -> Head | None:
    """The head of a model, where the logits of so many positions are to be computed in chunks; None: compute them whole."""
    head = any_head(model)
    return head if head is not None and positions > chunk(head.vocabulary, model.device) else None


def any_head(model: LanguageModel) -> Head | None:
    """The head of a model, however few positions there are; None: it has none, or its logits are computed whole."""
    module = model.get_output_embeddings()
    return None if module is None or model in _whole else Head(module, model.config.get_text_config())


def hidden_states(model: LanguageModel, head: Head, given: dict[str, Any]) -> Tensor | None:
    """What the model hands to its head for the inputs `given`, (B, T, H). Its own logits are made of one position alone, and
    compared with what `head` says of it.

    Returns:
        None where they differ: this model does something else to its logits.
    """
    with _caught(head.module) as caught:
        logits = model(**given, use_cache=False).logits
    if len(caught) == 1 and logits.shape[:2] == (1, 1):
        with torch.no_grad():
            same = torch.equal(head(caught[0][:1, :1]), logits)
        if same:
            return caught[0]
    _whole.add(model)
    return None


@contextmanager
def _caught(module: nn.Module) -> Iterator[list[Tensor]]:
    caught: list[Tensor] = []

    def catch(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        caught.append(given[0])
        return (given[0][:1, :1],)

    handle = module.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def chunked_logp(
    head: Head, hidden: Tensor, ids: Tensor, mask: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """`grape.maths.logprob.token_logp` of the logits that `head` makes of `hidden`: logp and entropy (B, T), 0 outside the mask.

    Args:
        hidden: (B, T, H). ids, mask: (B, T). temperature, entropy_gradient: as there.
    """

    def said(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return token_logp(head(states), tokens, torch.ones_like(tokens, dtype=torch.bool), temperature, entropy_gradient)

    anew = torch.is_grad_enabled() and int(mask.sum()) * head.vocabulary > KEPT
    of_chunk = partial(checkpoint, said, use_reentrant=False, preserve_rng_state=False) if anew else said
    return each_chunk(of_chunk, chunk(head.vocabulary, mask.device), mask, hidden, ids)


def each_chunk(said: Callable[..., tuple[Tensor, Tensor]], size: int, mask: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
    """What `said` gives, (n,) each, for `size` tokens of the mask at a time, (B, T), 0 outside of it."""
    chunks = zip(*(rows[mask].split(size) for rows in given), strict=True)
    found = [said(*parts) for parts in chunks]
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    one, other = (zeros.masked_scatter(mask, torch.cat(parts)) for parts in zip(*found, strict=True))
    return one, other
