"""Every stage with adapters, on models of three architectures that come from a directory: no stage copies their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from grape import params as params_file
from grape.errors import GrapeError
from grape.models.folder import ADAPTER, ADAPTER_WEIGHTS
from grape.models.load import load_language_model, load_scalar_model, save_model
from grape.project import Project
from grape.reward.learned import LearnedReward
from tests import tiny
from tests.stages import test_stages
from tests.stages.test_stages import run

project = test_stages.project  # the fixture

TRPO = ("trpo", ["algorithms.trpo.rounds=3", "algorithms.trpo.parameters=adapters"])
PPO_HEAD = ("ppo", ["algorithms.ppo.value=head", "algorithms.ppo.objective=penalty"])
# Architecture, product type, algorithms.
CASES: list[tuple[str, str, list[tuple[str, list[str]]]]] = [
    ("gpt2", "bfloat16", [("grpo", ["algorithms.grpo.beta=0.1"]), ("ppo", []), TRPO]),
    ("llama", "float32", [("dpo", []), PPO_HEAD, ("ppo", [])]),
    ("qwen3", "bfloat16", [("grpo", ["algorithms.grpo.beta=0.1"]), ("dpo", [])]),
]


def outside(project: Project, architecture: str) -> None:
    """A model that ends its answers, in a folder of the project's."""
    model, tokenizer = tiny.model(architecture, positions=256), tiny.tokenizer()
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 3
    save_model(model, tokenizer, project.root / "pretrained")
    small = ["preferences.prompts=12", "preferences.samples=6", "evaluate.samples=1", "prepare.judgements=30", "reward.members=2"]
    params_file.set_values(project.params, ["model.base=pretrained", "base.steps=0", "model.lora.rank=2", *small])


@pytest.mark.parametrize(("architecture", "dtype", "algorithms"), CASES, ids=[case[0] for case in CASES])
def test_every_stage_trains_adapters(
    project: Project, architecture: str, dtype: str, algorithms: list[tuple[str, list[str]]]
) -> None:
    outside(project, architecture)
    names = [name for name, _ in algorithms]
    knobs = [knob for _, knobs in algorithms for knob in knobs]
    params_file.set_values(project.params, [f"model.dtype={dtype}", f"rl.algorithms=[{', '.join(dict.fromkeys(names))}]", *knobs])
    for kind in ("prepare", "base", "sft", "critic", "preferences", "reward"):
        run(project, kind)
    models = project.root / "models"
    for seed, (name, own) in enumerate(algorithms):
        params_file.set_values(project.params, own)
        run(project, "rl", name, seed)
        told = json.loads((models / f"policy/{name}-{seed}" / ADAPTER).read_text())
        assert told["base_model_name_or_path"] == "models/sft" and told["task_type"] == "CAUSAL_LM"
    assert {path.name for path in models.rglob("*") if path.suffix == ".safetensors"} == {ADAPTER_WEIGHTS}, "no copy of the weights"
    assert sorted(path.name for path in (models / "base").iterdir()) == ["same_as.json"]
    sft, below = (load_language_model(str(models / name))[0].state_dict() for name in ("sft", "base"))
    reward, policy = (
        load_scalar_model(str(models / "reward"))[0].state_dict(),
        load_language_model(str(_last(models)))[0].state_dict(),
    )
    moved = {name for name, value in below.items() if not torch.equal(value, sft[name])}
    assert moved and moved == {name for name, value in sft.items() if not torch.equal(value, policy[name])}
    assert not any("embed" in name or "norm" in name or "ln_" in name or "wte" in name for name in moved)
    assert bool(reward["score.weight"].any()), "the new head is trained in full"
    assert len(LearnedReward(models / "reward").members) == 2
    if architecture == "gpt2":
        run(project, "evaluate", *("grpo", 0))
        found = json.loads((project.root / "reports/evaluate/grpo-0/metrics.json").read_text())
        assert found["kl"]["token"] > 0


def _last(models: Path) -> Path:
    return sorted((models / "policy").iterdir())[-1]


def test_pretraining_goes_on_with_adapters_and_what_is_read_from_a_directory_stays_there(project: Project) -> None:
    outside(project, "qwen3")
    params_file.set_values(project.params, ["base.steps=2"])
    run(project, "prepare")
    run(project, "base")
    told = json.loads((project.root / "models/base" / ADAPTER).read_text())
    assert told["base_model_name_or_path"] == "./pretrained"
    given, now = (load_language_model(str(project.root / name))[0].state_dict() for name in ("pretrained", "models/base"))
    assert any(not torch.equal(value, now[name]) for name, value in given.items())
    params_file.set_values(project.params, ["model.lora.targets=[c_attn]"])
    with pytest.raises(GrapeError, match=r"model\.lora\.targets: the model has no linear module 'c_attn'"):
        run(project, "sft")
    assert not (project.root / "models/sft").exists()


def test_a_model_from_scratch_has_nothing_for_adapters_to_stand_on(project: Project, capsys: Any) -> None:
    params_file.set_values(project.params, ["model.lora.rank=2"])
    run(project, "prepare")
    run(project, "base")
    assert "is trained in full" in capsys.readouterr().out and (project.root / "models/base/model.safetensors").is_file()
