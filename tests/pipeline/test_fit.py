"""`grape doctor --fit`: what is counted without a weight is what a forward pass really keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from grape import memory
from grape.cli import app
from grape.commands import fit, products
from grape.models import shared
from grape.models.checkpointing import checkpointed
from grape.models.encode import collate
from grape.models.forward import autocast
from grape.models.lora import LoRA, adapt
from grape.params import set_values
from grape.types import Batch
from tests import tiny


def really_kept(model: Any, rows: int, width: int, dtype: Any) -> int:
    """Bytes that a real model's trunk keeps for the way back, its own weights aside."""
    own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        found[x.untyped_storage().data_ptr()] = x
        return x

    prompts = [([5 + i, 6], [7] * (width - 2)) for i in range(rows)]
    batch = shared.share(model, Batch.of(collate(prompts, 0)))
    if batch.get("shared") is None:
        mask = torch.ones(rows, 1, width, width).bool()
        given = {"input_ids": torch.zeros(rows, width, dtype=torch.long), "attention_mask": mask}
        given["position_ids"] = torch.arange(width).expand(rows, width)
    else:
        given = shared.packed(batch).given
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), autocast(dtype, torch.device("cpu")):
        out = model.base_model(**given, use_cache=False).last_hidden_state
    kept = sum(x.untyped_storage().nbytes() for place, x in found.items() if place not in own)
    return kept + out.untyped_storage().nbytes()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packs", [False, True])
def test_a_model_without_content_keeps_what_the_real_one_keeps(
    architecture: str, dtype: Any, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_known", type(shared._known)())
    if not packs:
        for module in (shared, fit):
            monkeypatch.setattr(module, "can", lambda model: False)
    model = tiny.model(architecture)
    plain, every = fit.sized(model.config, 3, 20, dtype, False, LoRA(rank=0))
    assert plain.kept == pytest.approx(really_kept(model, 3, 20, dtype), rel=0.02)
    assert plain.weights == every == sum(p.numel() for p in model.parameters())
    assert plain.head == model.get_output_embeddings().weight.numel()
    less, trained = fit.sized(model.config, 3, 20, dtype, True, LoRA(rank=2))
    assert less.kept - less.wide == pytest.approx(really_kept(checkpointed(model), 3, 20, dtype), rel=0.02)
    assert less.kept < plain.kept
    assert trained == sum(p.numel() for p in adapt(tiny.model(architecture), LoRA(rank=2), 0).parameters() if p.requires_grad)


def test_the_table_and_what_is_said_where_a_stage_does_not_fit(project_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_values(project_dir / "params.yaml", ["rl.algorithms=[grpo, trpo, ppo, dpo]", "algorithms.grpo.beta=0.1"])
    done = CliRunner().invoke(app, ["doctor", "--fit", "--json"])
    assert done.exit_code == 0, done.output
    found = {row["stage"]: row for row in json.loads(done.stdout)}
    stages = ["base", "sft", "critic", "preferences", "reward", "rl@grpo", "rl@trpo", "rl@ppo", "rl@dpo", "evaluate"]
    assert list(found) == stages and all(row["fits"] for row in found.values())
    sft, weights = found["sft"], found["sft"]["weights"]
    assert (sft["optimiser"], sft["gradients"], sft["frozen"]) == (2 * weights, weights, 0)
    assert found["rl@grpo"]["frozen"] >= weights and found["rl@ppo"]["weights"] == 2 * weights and not found["rl@dpo"]["cache"]
    monkeypatch.setattr(memory, "total_bytes", lambda device: found["rl@grpo"]["peak"] - 1)
    short = CliRunner().invoke(app, ["doctor", "--fit"])
    assert short.exit_code == 1 and "too little for" in short.stdout and "rl@grpo" in short.stdout
    assert "GRAPE_MICRO_BATCH_TOKENS" in short.stdout and "TFLOP/s in float32" in short.stdout and sft["micro_batch_tokens"] == 1024
    monkeypatch.setenv("GRAPE_MICRO_BATCH_TOKENS", "256")
    less = {row["stage"]: row for row in json.loads(CliRunner().invoke(app, ["doctor", "--fit", "--json"]).stdout)}
    assert less["sft"]["micro_batch_tokens"] == 256 and less["sft"]["activations"] < sft["activations"] / 2


def test_half_precision_halves_frozen_models_and_checkpoints_shrink_activations(project_dir: Path) -> None:
    def stage(*sets: str) -> dict[str, Any]:
        set_values(project_dir / "params.yaml", ["rl.algorithms=[grpo]", "rl.kl_every=1", *sets])
        rows = json.loads(CliRunner().invoke(app, ["doctor", "--fit", "--json"]).stdout)
        return next(row for row in rows if row["stage"] == "rl@grpo")

    plain = stage()
    half, less = stage("model.weights=bfloat16"), stage("model.checkpointing=true")
    assert half["frozen"] * 2 == plain["frozen"] and less["activations"] < plain["activations"] / 2
    adapted = stage("model.lora.rank=4")
    assert adapted["optimiser"] < plain["optimiser"] / 4


def test_what_is_said_of_precisions_follows_from_what_was_measured() -> None:
    found = products.rates(torch.device("cpu"))
    assert set(found) == {"float32", "bfloat16"} and min(found.values()) > 0
    assert products.line({"float32": 0.3, "bfloat16": 2.0}).endswith(
        "model.dtype: bfloat16 is the faster one for large models here"
    )
    assert products.line({"float32": 0.3, "bfloat16": 0.1}).endswith("model.dtype: float32 is the faster one for large models here")
    assert "little difference" in products.line({"float32": 0.3, "bfloat16": 0.31})
