"""Tiny models and batches for tests: random weights, real classes."""

from __future__ import annotations

from typing import Any

import torch

from grape.algorithms.base import Credit
from grape.models.chat import Chat, Row
from grape.models.encode import collate
from grape.models.lora import LoRA, adapt
from grape.models.scratch import character_tokenizer, scratch
from grape.types import Batch, Prompt, Rollouts

ARCHITECTURES = ("gpt2", "llama", "qwen3")


def tokenizer() -> Any:
    return character_tokenizer(["abc"])


def chat() -> Chat:
    return Chat(tokenizer())


def answered(prompt: Prompt, text: str) -> Row:
    """A prompt and an answer as a row to learn from."""
    return chat().conversation([*prompt.messages, {"role": "assistant", "content": text}]).row


def model(architecture: str = "llama", seed: int = 0, width: int = 32, positions: int = 64) -> Any:
    """Two blocks of random weights, scaled up so that the distribution is far from uniform."""
    made = scratch(architecture, 2, width, 2, positions, tokenizer(), seed).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
    return made


def adapted() -> Any:
    """With adapters that say something: B is 0 in new ones."""
    made = adapt(model(), LoRA(rank=4, alpha=None, targets="all-linear"), 0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return made


def scalar_model(language_model: Any) -> Any:
    """A model with a scalar head on a copy of the language model's trunk, as load_scalar_model makes it."""
    from transformers import AutoModelForSequenceClassification

    config = type(language_model.config).from_dict({**language_model.config.to_dict(), "num_labels": 1})
    made = AutoModelForSequenceClassification.from_config(config).eval()
    made.base_model.load_state_dict(language_model.base_model.state_dict())
    return made


def prompt(text: str, category: str = "any", answer: str | None = None) -> Prompt:
    return Prompt(f"id-{text}", category, ({"role": "user", "content": text},), answer)


def rows(seed: int = 0, count: int = 6) -> list[tuple[list[int], list[int]]]:
    """Rows of different prompt and response lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(4, 60, (n,), generator=generator).tolist()

    return [(ids(1, 9), [*ids(1, 7), 2]) for _ in range(count)]


def batch(seed: int = 0, count: int = 6, pad: int = 0, unit: int = 1) -> Batch:
    return Batch.of(collate(rows(seed, count), pad, unit))


def credited(given: Credit, rollouts: Rollouts) -> Batch:
    """What a loss would read of all rows, also of those that do not stay."""
    return Batch.of(rollouts, advantage=given.advantage, returns=given.returns, beta=given.beta, length=given.length)
