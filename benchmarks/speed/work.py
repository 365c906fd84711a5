"""What both sides are given: a model as a Hugging Face folder, and token ids. Neither side makes anything of its own."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROMPTS, SAMPLES, NEW = 4, 8, 32  # of a round of GRPO: prompts, completions of each, tokens of a completion
ROWS, PAIRS = 32, 16  # rows of an SFT step; pairs of a step of DPO or of the reward model
PROMPT = 45  # tokens of a prompt, about
TEXT = (
    "the river crosses an old stone bridge near our town and people sit there in the evening to talk about work food rain music "
    "two boats pass slowly while children count birds on a warm wall"
).split()
LONG = "long.json"
SCALES = {"tiny": 1e-3, "smollm2": 1e-5}  # learning rates: large enough that the second loss shows whether the first step was right

Rows = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Work:
    """
    Attributes:
        model, reward_model: folders with the same trunk; the head of the latter is random.
        prompts: (text, ids) of a round. completions: PROMPTS x SAMPLES fixed ones of unequal lengths, for the check.
        rows: (prompt, response) ids. pairs: the same, chosen and rejected in turn.
        trunk, head: weights that every token, and every token of a response, is multiplied with.
    """

    scale: str
    model: str
    reward_model: str
    learning_rate: float
    pad: int
    prompts: list[tuple[str, list[int]]]
    completions: list[list[int]]
    rows: Rows
    pairs: Rows
    trunk: int
    head: int

    @classmethod
    def read(cls, path: Path) -> Work:
        given = json.loads(path.read_text(encoding="utf-8"))
        for name in ("prompts", "rows", "pairs"):
            given[name] = [tuple(pair) for pair in given[name]]
        return cls(**given)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def reward(ids: list[int]) -> float:
    """Of a completion: any function of its ids, so that both sides agree and nothing is spent on it."""
    return sum(ids) % 7 / 6


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prepare(scale: str, source: str | None, folder: Path) -> None:
    """Load or make the scale's model, and write it with the work into `folder`, as model/, reward/,
    work.json and, with prompts twice as long, long.json.

    Args:
        source: a folder or .gguf file in place of the scale's own model.
    """
    import torch

    from grape.models.chat import Chat
    from grape.models.load import load_language_model, load_scalar_model, save_model

    model, tokenizer = _tiny() if scale == "tiny" and source is None else load_language_model(source or _smollm2())
    save_model(model, tokenizer, folder / "model")
    scalar, _ = load_scalar_model(str(folder / "model"), from_language_model=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.nn.init.normal_(scalar.score.weight, std=0.02)
    save_model(scalar, tokenizer, folder / "reward")
    head = model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    trunk = sum(p.numel() for p in model.parameters()) - embedding - (0 if tied else head)
    for name, length in (("work.json", PROMPT), (LONG, 2 * PROMPT)):
        rows = _rows(Chat(tokenizer, model=model), length)
        made = Work(scale, str(folder / "model"), str(folder / "reward"), SCALES[scale], **rows, trunk=trunk, head=head)
        made.write(folder / name)


def _tiny() -> tuple[Any, Any]:
    """The default world's model, untrained."""
    from grape.models.scratch import character_tokenizer, scratch
    from grape.params import load

    size, tokenizer = load(Path("params.yaml")).model, character_tokenizer([])
    return scratch(size.architecture, size.layers, size.width, size.heads, size.positions, tokenizer, 0), tokenizer


def _smollm2() -> str:
    """Where the preset of that name finds its model."""
    from grape.commands import presets

    base = presets.read(Path("presets"), "smollm2").base
    assert base is not None
    return base.found()[0]


def _rows(chat: Any, about: int) -> dict[str, Any]:
    """Texts of counted random words, cut to lengths that differ a little from row to row."""
    draw = random.Random(0)
    end = chat.tokenizer.eos_token_id

    def prompt(length: int) -> tuple[str, list[int]]:
        """Of at least `length` tokens, template included."""
        text = draw.choice(TEXT)
        while len(ids := chat.prompt(message(text))) < length:
            text += " " + draw.choice(TEXT)
        return text, ids

    def response(length: int) -> list[int]:
        ids = chat.tokens(" ".join(draw.choice(TEXT) for _ in range(length)))
        return [*ids[: length - 1], end]

    def lengths(n: int, low: int, high: int) -> list[int]:
        return [low + i * (high - low) // max(n - 1, 1) for i in range(n)]

    asked = [prompt(n) for n in lengths(ROWS, about - 5, about + 5)]
    return {
        "pad": chat.pad,
        "prompts": [prompt(n) for n in lengths(PROMPTS, about - 5, about + 4)],
        "completions": [response(n) for n in lengths(PROMPTS * SAMPLES, NEW // 2, NEW)],
        "rows": [(ids, response(n)) for (_, ids), n in zip(asked, lengths(ROWS, NEW // 2, NEW), strict=True)],
        "pairs": [(asked[i // 2][1], response(n)) for i, n in enumerate(lengths(2 * PAIRS, NEW, NEW // 2))],
    }


if __name__ == "__main__":
    import sys

    prepare(sys.argv[1], sys.argv[2] or None, Path(sys.argv[3]))
