"""Models in MLflow: loaded by alias, by reference when large, champion only for what beats SFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grape.project import Project
from grape.track import POLICY, Candidate, StageRun, registry
from grape.track.registry import best


def policy(project: Project, save_model: Callable[..., Path], name: str) -> None:
    path = save_model(project.root / "models" / "policy" / name)
    (path / "name.txt").write_text(name)  # equal weights would be equal models
    with StageRun(project, f"rl@{name}", {}, 0) as run:
        run.model(f"models/policy/{name}", name, register=POLICY)


def champion(client: Callable[[], Any]) -> Any:
    return client().get_model_version_by_alias(POLICY, "champion")


def test_the_champion_loads_and_answers(
    project: Project,
    client: Callable[[], Any],
    runs: Callable[[], list[Any]],
    save_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy(project, save_model, "grpo-0")
    policy(project, save_model, "grpo-1")
    versions = client().search_model_versions(f"name = '{POLICY}'")
    assert {v.tags["grape.path"]: int(v.version) for v in versions} == {"models/policy/grpo-0": 1, "models/policy/grpo-1": 2}
    with StageRun(project, "report", {}, 0) as run:
        run.champion([Candidate("grpo-0", 0.30, 0.25), Candidate("grpo-1", 0.28, 0.24)])
    assert champion(client).version == 1
    assert champion(client).run_id == runs()[0].info.run_id

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    pipeline = mlflow.transformers.load_model(f"models:/{POLICY}@champion")
    assert pipeline("a b", max_new_tokens=3)[0]["generated_text"].startswith("a b")
    assert not (project.root / "mlruns").exists()

    with StageRun(project, "report", {}, 0) as run:  # nobody beats SFT: the champion stays
        run.champion([Candidate("grpo-1", 0.02, -0.01)])
    assert champion(client).version == 1
    with StageRun(project, "report", {}, 0) as run:
        run.champion([Candidate("grpo-0", 0.1, 0.05), Candidate("grpo-1", 0.2, 0.1)])
    assert champion(client).version == 2


def test_an_evaluation_ranks_policies_on_mlflows_page_of_models(
    project: Project, client: Callable[[], Any], runs: Callable[[], list[Any]], save_model: Callable[..., Path]
) -> None:
    data = project.root / "data" / "prompts" / "test.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("{}\n")
    for name, score in (("grpo-0", 0.25), ("grpo-1", 0.5), ("grpo-2", 0.75)):
        folder = f"models/policy/{name}"
        if name != "grpo-2":  # whose model this store never sees
            policy(project, save_model, name)
        else:
            save_model(project.root / folder).joinpath("name.txt").write_text(name)
        with StageRun(project, f"evaluate@{name}", {}, 0) as run:
            run.dataset("data/prompts", "evaluation")
            run.headline({"policy": score}, model=folder, dataset="data/prompts")
            run.headline({"seconds": 1.0})
    experiment = client().get_experiment_by_name("grape").experiment_id
    best = [{"field_name": "metrics.policy", "ascending": False}]
    ranked = client().search_logged_models([experiment], "metrics.policy > 0", order_by=best)
    assert [model.name for model in ranked] == ["grpo-1", "grpo-0"]
    (metric,) = client().get_logged_model(ranked[0].model_id).metrics
    (used,) = runs()[3].inputs.dataset_inputs
    assert (metric.key, metric.value, metric.run_id) == ("policy", 0.5, runs()[3].info.run_id)
    assert (metric.dataset_name, metric.dataset_digest) == (used.dataset.name, used.dataset.digest)
    assert [run.data.metrics.get("policy") for run in runs() if "evaluate" in run.info.run_name] == [0.25, 0.5, 0.75]


def test_a_champion_the_store_never_saw_is_registered(
    project: Project, client: Callable[[], Any], save_model: Callable[..., Path]
) -> None:
    save_model(project.root / "models" / "policy" / "grpo-0")
    with StageRun(project, "report", {}, 0) as run:
        run.champion([Candidate("grpo-0", 0.3, 0.2)])
    assert champion(client).tags["grape.path"] == "models/policy/grpo-0"


def test_a_large_model_is_a_reference_with_its_tokenizer(
    project: Project,
    client: Callable[[], Any],
    runs: Callable[[], list[Any]],
    save_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "LARGEST", 1000)
    save_model(project.root / "models" / "base")
    with StageRun(project, "base", {}, 0) as run:
        run.model("models/base", "base", register=POLICY)
    (output,) = runs()[0].outputs.model_outputs
    model = client().get_logged_model(output.model_id)
    assert model.tags["grape.path"] == "models/base" and model.tags["grape.digest"].endswith(".dir")
    files = {path.name for path in Path(model.artifact_location).iterdir()}
    assert {"config.json", "tokenizer.json"} <= files and "model.safetensors" not in files
    assert client().search_model_versions(f"name = '{POLICY}'")[0].version == 1


def test_adapters_are_logged_merged_where_small_and_as_they_are_where_large(
    project: Project,
    client: Callable[[], Any],
    runs: Callable[[], list[Any]],
    save_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who loads a small one from MLflow needs neither PEFT nor what it stands on; a large one has what PEFT reads."""
    import mlflow
    import torch

    from grape.models.folder import ADAPTER, ADAPTER_WEIGHTS, point
    from grape.models.load import load_language_model
    from grape.models.lora import LoRA, adapt, save_adapter

    models = project.root / "models"
    save_model(models / "base")
    point(models / "sft", "models/base")
    model, tokenizer = load_language_model(str(models / "sft"))
    for name, parameter in adapt(model, LoRA(rank=2), 0).named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    save_adapter(model, tokenizer, models / "policy/grpo-0", "models/sft")
    with StageRun(project, "rl@grpo-0", {}, 0) as run:
        run.model("models/policy/grpo-0", "policy", register=POLICY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    logged = mlflow.transformers.load_model(f"models:/{POLICY}/1", return_type="components")["model"]
    ours = load_language_model(str(models / "policy/grpo-0"))[0].state_dict()
    assert logged.state_dict().keys() == ours.keys() and all(torch.equal(ours[k], v) for k, v in logged.state_dict().items())

    event = registry.model_event(project, "models/policy/grpo-0", "policy", None)
    assert set(event["below"]) == {"models/sft", "models/base"}
    (models / "base/name.txt").write_text("another")  # what the adapter stands on has changed: its bytes alone say nothing
    monkeypatch.setattr(registry, "_weights", None)
    monkeypatch.setattr(registry, "model_event", lambda *_: event)
    with StageRun(project, "rl@grpo-1", {}, 0) as run:
        run.model("models/policy/grpo-0", "policy")
    (output,) = next(found for found in runs() if found.info.run_name == "rl@grpo-1").outputs.model_outputs
    files = {path.name for path in Path(client().get_logged_model(output.model_id).artifact_location).iterdir()}
    assert {ADAPTER, ADAPTER_WEIGHTS, "tokenizer.json"} <= files and "model.safetensors" not in files


def test_a_reward_model_is_logged_as_a_classifier(
    project: Project, runs: Callable[[], list[Any]], save_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(project.root / "models" / "reward", kind="scalar")
    with StageRun(project, "reward", {}, 0) as run:
        run.model("models/reward", "reward")
    (output,) = runs()[0].outputs.model_outputs

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    parts = mlflow.transformers.load_model(f"models:/{output.model_id}", return_type="components")
    assert type(parts["model"]).__name__ == "LlamaForSequenceClassification"


def test_the_best_candidate_beats_sft_for_sure() -> None:
    assert best([]) is None
    assert best([Candidate("a", 0.5, 0.0)]) is None
    assert best([Candidate("a", 0.1, 0.05), Candidate("b", 0.3, 0.2), Candidate("c", 0.9, -0.1)]) == Candidate("b", 0.3, 0.2)
