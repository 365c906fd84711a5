"""Models and tokenizers made from nothing, for `model.base: scratch`: random weights, a token per character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tokenizers
import torch
from tokenizers import Regex, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from grape.models.load import fit_threads
from grape.models.protocols import LanguageModel, Tokenizer
from grape.models.template import CHARACTER_TEMPLATE

SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>", "unk_token": "<|unknown|>"}


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """One token per character: printable ASCII, newline and whatever else the texts hold."""
    alphabet = {chr(c) for c in range(32, 127)} | {"\n"}
    for text in texts:
        alphabet.update(text)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL.values(), *sorted(alphabet)])}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
    fast.chat_template = CHARACTER_TEMPLATE
    return fast


def scratch(
    architecture: str, layers: int, width: int, heads: int, positions: int, tokenizer: Tokenizer, seed: int
) -> LanguageModel:
    """A model with random weights, drawn from `seed` alone."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    if architecture == "gpt2":
        config: Any = GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            n_positions=positions,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **ids,
        )
    else:
        kind = LlamaConfig if architecture == "llama" else Qwen3Config
        config = kind(
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=round(width * 8 / 3 / 32) * 32 or 32,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=width // heads,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            # Twice the usual 0.02: at widths near 100 attention else starts too flat to find what to copy.
            initializer_range=0.04,
            **ids,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit_threads(AutoModelForCausalLM.from_config(config))
