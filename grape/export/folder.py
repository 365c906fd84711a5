"""A model of the project as a folder that any program can load: weights in one file format and dtype, tokenizer, the chat template
as grape told it, and where an answer ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from grape import disk
from grape.errors import GrapeError
from grape.models.chat import Chat
from grape.models.load import rounded, save_model
from grape.models.protocols import LanguageModel, Transformer

Weights = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of a generation config, what changes which tokens are drawn: the model was trained and evaluated without any of it.
DRAWING = (
    "do_sample temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty no_repeat_ngram_size "
    "bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id num_beams penalty_alpha "
    "encoder_repetition_penalty sequence_bias guidance_scale exponential_decay_length_penalty min_length min_new_tokens "
    "max_length max_new_tokens"
).split()
BESIDE = 64 << 20  # bytes for tokenizer and card


def in_dtype(model: Transformer, dtype: Weights, where: str) -> Transformer:
    """`grape.models.load.rounded`.

    Raises:
        GrapeError: a weight is too large for it.
    """
    for name, weight in rounded(model, DTYPES[dtype]).state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            mend = "use --dtype bfloat16, which has the range of float32"
            raise GrapeError(f"the weight {name} is not finite in {dtype}", where=where, mend=mend)
    return model


def bytes_of(model: Transformer, dtype: Weights) -> int:
    """Of the weights in a file, those that are shared counted once."""
    return sum(p.numel() for p in model.parameters()) * DTYPES[dtype].itemsize


def refuse_full(place: Path, wanted: int) -> None:
    """
    Raises:
        GrapeError: the disk of `place` has not so many bytes to spare.
    """
    there = next(p for p in (place, *place.parents) if p.exists())
    if disk.free_mb(there) * 1e6 < wanted + BESIDE:
        what = f"the export takes {(wanted + BESIDE) / 1e6:.0f} MB, and {disk.free_mb(there):.0f} MB are free"
        raise GrapeError(what, where=str(place), mend="make room, export elsewhere, or take --dtype bfloat16")


def write(model: LanguageModel, chat: Chat, place: Path) -> list[str]:
    """The model as it is, into a new folder.

    Returns:
        what of its generation config was left out, `name value` each.
    """
    left = _generation(model, chat)
    write_scalar(model, chat, place)
    return left


def write_scalar(model: Transformer, chat: Chat, place: Path) -> None:
    """The same of a reward model, which writes no answers."""
    chat.tokenizer.chat_template = template(chat)
    save_model(model, chat.tokenizer, place)


def write_tokenizer(chat: Chat, place: Path) -> None:
    """The tokenizer alone, into a folder that is there."""
    chat.tokenizer.chat_template = template(chat)
    chat.tokenizer.save_pretrained(place)


def _generation(model: LanguageModel, chat: Chat) -> list[str]:
    """Give the model a generation config that ends answers where grape does and changes nothing else."""
    from transformers import GenerationConfig

    plain, given = GenerationConfig(), model.generation_config
    left = [f"{name} {getattr(given, name)}" for name in DRAWING if getattr(given, name, None) != getattr(plain, name, None)]
    ids = {"bos_token_id": chat.tokenizer.bos_token_id, "pad_token_id": chat.pad, "eos_token_id": sorted(chat.stops)}
    model.generation_config = GenerationConfig(**ids)
    return left


def template(chat: Chat) -> str:
    """The chat template with what `model.template` tells it: its date is fixed in the text, its arguments are defaults that a
    caller may still give otherwise."""
    told = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in chat.settings.arguments.items()
    )
    # Templates are rendered with trim_blocks, which takes the line feed, and lstrip_blocks, which wants lines to begin as they did.
    return f"{told}\n{chat.template}" if told else chat.template


def _literal(value: Any) -> str:
    """As Jinja writes it: JSON but for null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
