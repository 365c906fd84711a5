"""What grape asks of models and tokenizers: those of transformers have it, and so has anything a test puts in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


class Trainable(Protocol):
    """Weights: what an optimiser moves and a checkpoint keeps."""

    @property
    def device(self) -> torch.device: ...

    def eval(self) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Transformer(Trainable, Protocol):
    """A model of transformers, whatever its head."""

    config: Any  # of transformers: its keys are the architecture's own
    name_or_path: str

    @property
    def base_model(self) -> Any: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...

    def to(self, device: torch.device | torch.dtype, /) -> Self: ...

    def save_pretrained(self, save_directory: Any, /) -> Any: ...

    def get_input_embeddings(self) -> Any: ...

    def get_output_embeddings(self) -> Any: ...


class LanguageModel(Transformer, Protocol):
    """A causal language model: ids -> logits of the next one, (B, S) -> (B, S, V), with a cache of what was read."""

    generation_config: Any

    def __call__(self, **inputs: Any) -> Any: ...


class ScalarModel(Transformer, Protocol):
    """A trunk with one scalar head, `score`: a reward model or a value model."""

    score: nn.Module


class Tokenizer(Protocol):
    """A fast tokenizer of transformers."""

    chat_template: str | None
    pad_token: str | None
    is_fast: bool

    @property
    def eos_token(self) -> str | None: ...

    @property
    def eos_token_id(self) -> int: ...  # `checked_tokenizer` has seen that there is one

    @property
    def pad_token_id(self) -> int: ...  # and one to pad with

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def all_special_tokens(self) -> list[str]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def __len__(self) -> int: ...

    def __call__(self, text: str, **how: Any) -> Mapping[str, list[int]]: ...

    def decode(self, ids: Sequence[int], **how: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]: ...

    def get_vocab(self) -> dict[str, int]: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    def get_chat_template(self) -> str: ...

    def apply_chat_template(self, messages: Any, **how: Any) -> Any: ...

    def save_pretrained(self, save_directory: Any, /) -> Any: ...
