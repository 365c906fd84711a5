"""A process of TRL's trainers, or of transformers' generation, on the given work, a step at a time.

    python -m benchmarks.speed.theirs JOB      JOB: JSON of `Job`

What TRL does by default and what is changed so that both sides compute the same: no checkpointing of activations (it would cost a
third), AdamW with grape's betas, no warm-up, rows in the order given; GRPO with beta 0 (its default too), one update a round, the
old log-probabilities those of the update itself (its default), groups' standard deviations, and the mean over the round's tokens
(`dapo`), which grape is told too; the reward model with grape's centring. It logs every step, as grape does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback

from benchmarks.speed.gate import Gate
from benchmarks.speed.work import NEW, PAIRS, PROMPTS, ROWS, SAMPLES, Work, message, reward

REPEATS = 100  # of the rows in the data set: its end, where TRL begins an epoch anew, is far


@dataclass(frozen=True)
class Job:
    """
    Attributes:
        case: sft, dpo, reward, grpo, or generate and continuous, which sample alone. work: the file.
        parts: micro-batches of a step. threads: 0: PyTorch's default. weights: what generation keeps them in.
    """

    case: str
    work: str
    dtype: str
    parts: int = 1
    threads: int = 0
    weights: str = "float32"

    def config(self, units: int, **more: Any) -> dict[str, Any]:
        """What all trainers are told; units: rows or pairs of a step."""
        return {
            "output_dir": tempfile.mkdtemp(prefix="speed-", dir=Path(self.work).parent),
            "per_device_train_batch_size": units // self.parts,
            "gradient_accumulation_steps": self.parts,
            "learning_rate": Work.read(Path(self.work)).learning_rate,
            "lr_scheduler_type": "constant",
            "adam_beta2": 0.95,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "bf16": self.dtype == "bfloat16",
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 1 << 30,
            "use_cpu": not torch.cuda.is_available(),
            "dataloader_pin_memory": False,
            **more,
        }


class Watch(TrainerCallback):
    """What TRL calls at the end of a step. It logs tokens as a running sum."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.tokens = gate, 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        before, self.tokens = self.tokens, logs["num_tokens"]
        self.gate.wait(loss=float(logs["loss"]), grad_norm=float(logs["grad_norm"]), tokens=round(self.tokens - before))


def run(job: Job, gate: Gate) -> None:
    if job.threads:
        torch.set_num_threads(job.threads)
    CASES[job.case](job, Work.read(Path(job.work)), gate)


def train(trainer: Any, gate: Gate) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch(gate))
    gate.wait()
    trainer.train()


def repeated(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(rows * REPEATS)


def policy_of(work: Work, dtype: str = "float32") -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(work.model, dtype=getattr(torch, dtype)), AutoTokenizer.from_pretrained(work.model)


def fine_tuning(job: Job, work: Work, gate: Gate) -> None:
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = policy_of(work)
    rows = [{"input_ids": x + y, "labels": [-100] * len(x) + y} for x, y in work.rows]
    config = SFTConfig(**job.config(ROWS, train_sampling_strategy="sequential", max_length=None))
    train(SFTTrainer(model=model, args=config, train_dataset=repeated(rows), processing_class=tokenizer), gate)


def rewards(job: Job, work: Work, gate: Gate) -> None:
    from trl import RewardConfig, RewardTrainer

    from grape.algorithms.reward_model import RewardModelParams

    model = AutoModelForSequenceClassification.from_pretrained(work.reward_model, num_labels=1, dtype=torch.float32)
    centring = RewardModelParams().centring
    config = RewardConfig(
        **job.config(PAIRS, train_sampling_strategy="sequential", max_length=None, center_rewards_coefficient=centring)
    )
    rows = [{"chosen_ids": x + y, "rejected_ids": x + z} for (x, y), (_, z) in pairs_of(work)]
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    # transformers scores a row at its last token that is no padding. SmolLM2 pads with the token that ends an answer, so that it
    # would be the one before; padded with a token that no row has, both sides score the same one.
    used = {token for x, y in work.pairs for token in (*x, *y)}
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(next(i for i in range(len(tokenizer)) if i not in used))
    model.config.pad_token_id = tokenizer.pad_token_id
    train(RewardTrainer(model=model, args=config, train_dataset=repeated(rows), processing_class=tokenizer), gate)


def pairs_of(work: Work) -> list[tuple[Any, Any]]:
    return list(zip(work.pairs[0::2], work.pairs[1::2], strict=True))


def preferences(job: Job, work: Work, gate: Gate) -> None:
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = policy_of(work)
    config = DPOConfig(**job.config(PAIRS, train_sampling_strategy="sequential", max_length=None, beta=0.1))
    text = Dataset.from_list([{"prompt": message("a"), "chosen": answer("b"), "rejected": answer("c")}])
    reference = policy_of(work)[0]
    trainer = DPOTrainer(model=model, ref_model=reference, args=config, train_dataset=text, processing_class=tokenizer)
    # It tokenises texts alone, and these rows are ids: given in the form its own preparation leaves them in.
    rows = [{"prompt_ids": x, "chosen_ids": y, "rejected_ids": z} for (x, y), (_, z) in pairs_of(work)]
    trainer.train_dataset = repeated(rows)
    train(trainer, gate)


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def online(job: Job, work: Work, gate: Gate) -> None:
    """GRPO. The first round learns from the fixed completions, as in ours.py."""
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = policy_of(work)
    rows = [{"prompt": message(text)} for text, _ in work.prompts]

    def judged(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids]

    config = GRPOConfig(
        **job.config(
            PROMPTS * SAMPLES, shuffle_dataset=False, num_generations=SAMPLES, max_completion_length=NEW,
            loss_type="dapo", scale_rewards="group", beta=0.0, generation_kwargs={"min_new_tokens": NEW},
        )
    )  # fmt: skip
    trainer = GRPOTrainer(model=model, reward_funcs=judged, args=config, train_dataset=repeated(rows), processing_class=tokenizer)
    found = trainer._tokenize_prompts([message(text) for text, _ in work.prompts])[0]
    if found != [ids for _, ids in work.prompts]:
        raise SystemExit("TRL makes other tokens of the prompts than grape does")
    first_is_fixed(trainer, work)
    trainer._generate_and_score_completions = timed(trainer._generate_and_score_completions, gate)
    train(trainer, gate)


def first_is_fixed(trainer: Any, work: Work) -> None:
    """Its first round takes the fixed completions in the place of generating any."""
    sampled, waiting = trainer._generate_single_turn, [work.completions]

    def generate(*given: Any, **more: Any) -> Any:
        return (waiting.pop(), None) if waiting else sampled(*given, **more)

    trainer._generate_single_turn = generate


def timed(made: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    def rollouts(inputs: Any) -> Any:
        began = time.perf_counter()
        found = made(inputs)
        gate.note(source=time.perf_counter() - began, learned=int(found["completion_mask"].sum()))
        return found

    return rollouts


def generation(tokenizer: Any) -> GenerationConfig:
    """Draws from the whole distribution, and nothing ends a completion."""
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=NEW, eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip


def talker(job: Job, work: Work) -> tuple[Any, Any, list[list[int]]]:
    """A model to sample from, and the round's prompts, each repeated for every completion."""
    model, tokenizer = policy_of(work, job.weights)
    model.generation_config.eos_token_id = None
    if torch.cuda.is_available():
        model.cuda()
    return model.eval(), tokenizer, [ids for _, ids in work.prompts for _ in range(SAMPLES)]


@torch.no_grad()
def generate(job: Job, work: Work, gate: Gate) -> None:
    """transformers' `generate`, under autocast where the weights are kept in float32 all the same."""
    model, tokenizer, prompts = talker(job, work)
    width, pad = max(map(len, prompts)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(x)) + x for x in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in prompts], device=model.device)
    how, cast = generation(tokenizer), job.dtype == "bfloat16" and job.weights == "float32"
    gate.wait()
    while True:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cast):
            drawn = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)
        written = drawn[:, width:].numel()
        gate.wait(tokens=written, learned=written)


@torch.no_grad()
def continuous(job: Job, work: Work, gate: Gate) -> None:
    """transformers' continuous batching. Left to itself it takes nine tenths of the free memory for its cache: here as much as the
    round needs, twice. It stays there from step to step."""
    model, tokenizer, prompts = talker(job, work)
    page = 32
    pages = sum(-(-(len(ids) + NEW) // page) for ids in prompts)
    cache = ContinuousBatchingConfig(
        page_size=page, num_blocks=2 * pages, max_batch_tokens=sum(map(len, prompts)), max_requests_per_batch=len(prompts)
    )
    how = generation(tokenizer)
    gate.wait()
    while True:
        drawn = model.generate_batch(
            prompts, generation_config=how, continuous_batching_config=cache, progress_bar=False, persistent_manager=True
        )
        written = sum(len(one.generated_tokens) for one in drawn.values())
        gate.wait(tokens=written, learned=written)


CASES: dict[str, Callable[[Job, Work, Gate], None]] = {
    "grpo": online,
    "sft": fine_tuning,
    "dpo": preferences,
    "reward": rewards,
    "generate": generate,
    "continuous": continuous,
}

if __name__ == "__main__":
    run(Job(**json.loads(sys.argv[1])), Gate.of_process())
