"""Peaks of memory, measured as processes, beside what `grape doctor --fit` estimates.

    python -m benchmarks.memory DIR                  # a table: sizes x stages, of models with random weights
    python -m benchmarks.memory DIR --model FOLDER   # the same of a model of your own

Every case is a process of its own; its peak is what the kernel says (ru_maxrss), less that of a process that only imports. Rows are
those of issue-sized GRPO: 4 prompts of 45 tokens, 8 answers of 32 tokens each. DIR keeps the random models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

PROMPTS, SAMPLES, PROMPT, ANSWER = 4, 8, 45, 32
ROWS, WIDTH = PROMPTS * SAMPLES, PROMPT + ANSWER
SIZES = {"10M": (256, 4, 30), "60M": (512, 12, 40)}  # width, layers, thousands of tokens
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What is run: `sft`, `grpo`, `reference` (GRPO that measures the KL) or `evaluate`, and its knobs."""

    kind: str
    dtype: str = "float32"
    weights: str = "float32"
    checkpointing: bool = False
    rank: int = 0
    micro: int = 1024


CASES = [
    Case("sft"), Case("sft", checkpointing=True), Case("grpo"), Case("grpo", checkpointing=True),
    Case("grpo", "bfloat16", checkpointing=True), Case("reference", checkpointing=True),
    Case("grpo", "bfloat16", checkpointing=True, rank=16),
    Case("reference", "bfloat16", "bfloat16", True, 16), Case("evaluate"),
]  # fmt: skip


def random_model(folder: Path, width: int, layers: int, thousands: int) -> None:
    """A Llama-style model with random weights, whose tokenizer knows so many letters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from grape.models.load import save_model
    from grape.models.scratch import character_tokenizer

    tokenizer = character_tokenizer(["".join(chr(0x4E00 + i) for i in range(thousands * 500))])
    config = LlamaConfig(
        vocab_size=thousands * 1000, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, folder)


def prompts(chat: Any) -> list[Any]:
    from grape.types import Prompt

    found = []
    for i in range(PROMPTS):
        text = f"{i}"
        while len(chat.prompt(({"role": "user", "content": text},))) < PROMPT:
            text += " a"
        found.append(Prompt(str(i), "any", ({"role": "user", "content": text},)))
    return found


def score(responses: Any) -> Any:
    import torch

    from grape.types import Scores

    values = torch.arange(len(responses)).remainder(3).float().unsqueeze(1)
    return Scores(("any/it",), values, torch.ones_like(values), torch.ones_like(values).bool(), torch.ones_like(values))


def run(folder: str, case: Case) -> None:
    """The case, in this process."""
    from grape.models.chat import Chat
    from grape.models.checkpointing import checkpointed
    from grape.models.load import load_language_model
    from grape.models.lora import LoRA, adapt

    trained = case.kind != "evaluate"
    policy, tokenizer = load_language_model(folder, weights="float32" if trained else case.weights)
    if case.rank:
        adapt(policy, LoRA(rank=case.rank), 0)
    chat = Chat(tokenizer)
    if not trained:
        return evaluate(policy, folder, chat, case)
    checkpointed(policy, case.checkpointing)
    sft(policy, case) if case.kind == "sft" else grpo(policy, folder, chat, case)


def batch() -> Any:
    """ROWS rows of WIDTH tokens."""
    import torch

    from grape.models.encode import collate
    from grape.types import Batch

    ids = torch.randint(4, 100, (ROWS, WIDTH), generator=torch.Generator().manual_seed(0)).tolist()
    return Batch.of(collate([(row[:PROMPT], row[PROMPT:]) for row in ids], 0))


def sft(policy: Any, case: Case) -> None:
    from grape.algorithms.sft import ALGORITHM
    from grape.models.forward import language
    from grape.training.adam import Adam, AdamParams

    adam = Adam(policy, AdamParams(1e-5, 3, micro_batch_tokens=case.micro, dtype=case.dtype))
    for _ in range(2):  # the moments are there from the second on
        adam.update(
            partial(language, policy, dtype=case.dtype), lambda out, part: ALGORITHM.loss(out, part, ALGORITHM.params()), batch()
        )


def grpo(policy: Any, folder: str, chat: Any, case: Case) -> None:
    from grape.algorithms import grpo
    from grape.models.load import load_language_model
    from grape.training.adam import AdamParams
    from grape.training.assemble import assemble
    from grape.training.sampler import Sampling

    reference = None
    if case.kind == "reference":
        reference = load_language_model(folder, weights=case.weights)[0].requires_grad_(False)
    adam = AdamParams(1e-5, 2, micro_batch_tokens=case.micro, dtype=case.dtype)
    learner = assemble(grpo.ALGORITHM, grpo.GRPOParams(), policy, adam)
    how = Sampling(PROMPTS, SAMPLES, 1.0, ANSWER, 512, case.micro, 0.0, kl_every=int(reference is not None))
    learner.train(learner.rollouts(chat, prompts(chat), score, how, ("memory",), reference), 2, lambda *_: None)


def evaluate(policy: Any, folder: str, chat: Any, case: Case) -> None:
    from grape.models.encode import collate
    from grape.models.forward import exact_kl
    from grape.models.load import load_language_model
    from grape.sampling import response_rows, sample

    reference, _ = load_language_model(folder, weights=case.weights)
    drawn = sample(policy, chat, prompts(chat), SAMPLES, temperature=1.0, max_new_tokens=ANSWER, positions=512, keys=("memory",))
    exact_kl(policy, reference, collate(response_rows(chat, drawn), chat.pad), 1.0, case.micro)


def estimated(folder: str, case: Case) -> int:
    """Bytes beyond the program's, as `grape doctor --fit` puts them together."""
    import torch
    from transformers import AutoConfig

    from grape.commands import fit
    from grape.models.lora import LoRA
    from grape.sampling import row_bytes

    config = AutoConfig.from_pretrained(folder)
    rows = max(1, case.micro // WIDTH)
    size, trainable = fit.sized(config, rows, WIDTH, case.dtype, case.checkpointing, LoRA(rank=case.rank))  # type: ignore[arg-type]
    weights = getattr(torch, case.weights)
    cache = ROWS * row_bytes(config, WIDTH, case.dtype, torch.float32 if case.kind != "evaluate" else weights)  # type: ignore[arg-type]
    micro, frozen = rows * ANSWER, size.weights * weights.itemsize
    if case.kind == "evaluate":
        return fit.asking("evaluate", size, frozen=2 * frozen, cache=cache, micro=micro, models=2).peak - fit.program()
    others = frozen * (case.kind == "reference")
    need = fit.training(case.kind, size, trainable, frozen=others, cache=cache * (case.kind != "sft"), micro=micro)
    return need.peak - fit.program()


def peak(*arguments: str) -> float:
    """MiB at the peak of a process of this file."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--case", type=json.loads)
    given = parser.parse_args()
    if given.case is not None:
        import grape.stages.evaluate
        import grape.stages.rl  # noqa: F401
        from grape.track.identity import peak_memory_mb

        if given.case:
            run(str(given.folder), Case(**given.case))
        print(peak_memory_mb())
        return
    folders = [given.model] if given.model else [given.folder / name for name in SIZES]
    for folder in folders:
        if not folder.exists():
            random_model(folder, *SIZES[folder.name])
    program = peak(str(given.folder), "--case", "{}")
    print(f"imports alone: {program:.0f} MiB; the rest without them\n")
    print("| model | stage | dtype | frozen weights | checkpointing | adapters | measured, MiB | estimated | off |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in folders:
        for case in CASES:
            found = peak(str(folder), "--case", json.dumps(vars(case))) - program
            guess = estimated(str(folder), case) / MIB
            knobs = f"{case.dtype} | {case.weights} | {'on' if case.checkpointing else 'off'} | {case.rank or 'none'}"
            print(f"| {folder.name} | {case.kind} | {knobs} | {found:.0f} | {guess:.0f} | {guess / found - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
