"""Adapters and the folders that copy no weights: what is loaded is what was trained, by grape and by plain PEFT alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grape.errors import GrapeError
from grape.models import quantise
from grape.models.folder import ADAPTER, ADAPTER_WEIGHTS, POINTER, chain, point
from grape.models.forward import language, scalar
from grape.models.load import load_language_model, load_scalar_model, load_tokenizer, save_model
from grape.models.lora import LoRA, adapt, adapters_off, linear, save_adapter
from tests import tiny

# PEFT's own use of what transformers deprecates; nothing of ours is concerned.
foreign = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
CLOSE = 1e-5  # nats; merging rounds once more: at most 2e-6 here


def moved(model: Any, seed: int = 0) -> Any:
    """With B no longer zero, as training leaves it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def logp(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return language(model, tiny.batch()).logp


def project(folder: Path, architecture: str = "llama") -> Path:
    save_model(tiny.model(architecture), tiny.tokenizer(), folder / "models/base")
    return folder


def adapter(folder: Path, name: str, parent: str, seed: int, **lora: Any) -> torch.Tensor:
    """Adapters over `parent`, saved; the log-probabilities of the model that was saved."""
    model, tokenizer = load_language_model(str(folder / parent))
    moved(adapt(model, LoRA(**{"rank": 2, **lora}), seed), seed)
    save_adapter(model, tokenizer, folder / name, parent)
    return logp(model)


@foreign
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off: the model below, bit for bit. Loaded: as trained, also adapters on adapters. Plain PEFT gives the same bits."""
    import peft
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    root = project(tmp_path, architecture)
    monkeypatch.chdir(root)  # PEFT looks for what an adapter names there
    model, _ = load_language_model(str(root / "models/base"))
    plain = logp(model)
    adapt(model, LoRA(rank=2), 1)
    assert torch.equal(logp(model), plain)
    trained = logp(moved(model))
    assert (trained - plain).abs().max() > 0.1
    with adapters_off(model):
        assert torch.equal(logp(model), plain)
    assert torch.equal(logp(model), trained) and {"lora" in n for n, p in model.named_parameters() if p.requires_grad} == {True}

    first = adapter(root, "models/sft", "models/base", 1)
    assert not [path for path in (root / "models/sft").iterdir() if path.name == "model.safetensors"]
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("models/base"), "models/sft").eval()
    assert torch.equal(logp(theirs), first)
    again, _ = load_language_model(str(root / "models/sft"))
    torch.testing.assert_close(logp(again), first, atol=CLOSE, rtol=0)
    assert (
        all(p.requires_grad for p in again.parameters())
        and again.state_dict().keys() == tiny.model(architecture).state_dict().keys()
    )

    second = adapter(root, "models/policy/it-0", "models/sft", 2)
    point(root / "models/critic", "models/policy/it-0")
    for name in ("policy/it-0", "critic"):
        torch.testing.assert_close(logp(load_language_model(str(root / "models" / name))[0]), second, atol=CLOSE, rtol=0)
    assert load_tokenizer(str(root / "models/critic")).get_vocab() == tiny.tokenizer().get_vocab()

    judge, tokenizer = load_scalar_model(str(root / "models/sft"), from_language_model=True)
    moved(adapt(judge, LoRA(rank=2), 3))
    with torch.no_grad():
        score = scalar(judge, tiny.batch()).score
        save_adapter(judge, tokenizer, root / "models/reward", "models/sft")
        ours = scalar(load_scalar_model(str(root / "models/reward"))[0], tiny.batch()).score
        torch.testing.assert_close(ours, score, atol=1e-4, rtol=1e-5)
        save_model(again, tokenizer, root / "merged")
        below = AutoModelForSequenceClassification.from_pretrained("merged", num_labels=1)
        theirs = peft.PeftModel.from_pretrained(below, "models/reward").eval().base_model.model
        torch.testing.assert_close(scalar(theirs, tiny.batch()).score, score, atol=1e-6, rtol=1e-6)


def test_the_targets_are_those_of_peft_and_the_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    import peft

    for architecture in tiny.ARCHITECTURES:
        theirs, model = tiny.model(architecture), tiny.model(architecture)
        peft.inject_adapter_in_model(
            peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=architecture == "gpt2"), theirs
        )
        wanted = {name.removesuffix(".lora_A") for name, _ in theirs.named_modules() if name.endswith(".lora_A")}
        assert set(linear(model)) == wanted and not any("head" in name for name in wanted)
    drawn = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        torch.manual_seed(hash(name) % 1000)
        model = adapt(tiny.model(), LoRA(rank=3, alpha=3, targets=["v_proj", "q_proj"]), seed)
        save_adapter(model, tiny.tokenizer(), tmp_path / "models" / name, "models/base")
        drawn[name] = [(tmp_path / "models" / name / file).read_bytes() for file in (ADAPTER_WEIGHTS, ADAPTER)]
    assert drawn["one"] == drawn["same"] and drawn["one"][0] != drawn["other"][0] and drawn["one"][1] == drawn["other"][1]
    told = json.loads(drawn["one"][1])
    assert told["target_modules"] == ["q_proj", "v_proj"] and told["r"] == told["lora_alpha"] == 3 and told["lora_dropout"] == 0
    assert model.model.layers[0].self_attn.q_proj.scaling == {"default": 1.0}
    assert adapt(tiny.model(), LoRA(rank=3), 0).model.layers[0].self_attn.q_proj.scaling == {"default": 2.0}


def test_a_module_that_is_not_there_is_named_with_those_that_are() -> None:
    for wanted, nearest in (("q_prj", "did you mean 'q_proj'"), ("lm_head", "some of: down_proj")):
        with pytest.raises(GrapeError, match=f"no linear module '{wanted}' in its blocks; it has down_proj, gate_proj") as caught:
            adapt(tiny.model(), LoRA(rank=2, targets=["v_proj", wanted]), 0)
        assert caught.value.where == "params.yaml, model.lora.targets" and nearest in str(caught.value)


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(GrapeError, match=r"grape\[lora\]"):
        adapt(tiny.model(), LoRA(rank=2), 0)
    with pytest.raises(GrapeError, match=r"grape\[qlora\]"):
        quantise.quantise(tiny.model(), torch.device("cpu"))


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda models: (models / name).write_text(text)


def other_width(models: Path) -> None:
    save_model(tiny.model(width=64), tiny.tokenizer(), models / "base")


def fewer_blocks(models: Path) -> None:
    model, tokenizer = load_language_model(str(models / "base"))
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    save_model(model, tokenizer, models / "base")


def with_a_head(models: Path) -> None:
    model, tokenizer = load_scalar_model(str(models / "base"), from_language_model=True)
    save_adapter(adapt(model, LoRA(rank=2), 0), tokenizer, models / "sft", "models/base")


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda models: shutil.rmtree(models / "base"), "stands on models/base, which is not there\n.*grape run base"),
    (put(f"base/{POINTER}", '{"model": "models/sft"}'), "stands on itself"),
    (put(f"sft/{ADAPTER}", "{}"), "does not say what model it stands on"), (put(f"sft/{ADAPTER}", "{"), "not JSON"),
    (put(f"sft/{POINTER}", '{"model": 3}'), "does not say"), (put(f"sft/{POINTER}", '{"model": "./nowhere"}'), "not there"),
    (put(f"sft/{ADAPTER_WEIGHTS}", "cut"), "cannot be loaded"),
    (lambda models: (models / "sft" / ADAPTER_WEIGHTS).unlink(), f"no {ADAPTER_WEIGHTS}"),
    (other_width, "cannot be loaded"), (fewer_blocks, "of another model"), (with_a_head, "of another model|cannot be loaded"),
]  # fmt: skip


def test_a_folder_that_is_no_model_is_refused_with_its_place(tmp_path: Path) -> None:
    whole = project(tmp_path / "whole")
    adapter(whole, "models/sft", "models/base", 1)
    for i, (damage, words) in enumerate(WRONG):
        models = tmp_path / str(i) / "models"
        shutil.copytree(whole / "models", models)
        damage(models)
        with pytest.raises(GrapeError, match=f"(?s){words}") as caught:
            load_language_model(str(models / "sft"))
        assert caught.value.where and caught.value.mend, i


def test_a_model_is_found_by_what_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from the project's folder whatever the working directory, a path from there, or a hub id with its revision."""
    root = project(tmp_path)
    point(root / "models/sft", "models/base")
    point(root / "models/critic", "org/name", "abc")
    save_model(tiny.model(), tiny.tokenizer(), root / "elsewhere/mine")
    save_adapter(adapt(tiny.model(), LoRA(rank=2), 0), tiny.tokenizer(), root / "given", "mine")
    monkeypatch.chdir(root / "elsewhere")
    assert chain(str(root / "models/sft")).source == str(root / "models/base")
    found = chain(str(root / "models/critic"))
    assert (found.source, found.revision, found.size(), found.tokenizer) == ("org/name", "abc", None, ("org/name", "abc"))
    assert chain(str(root / "given")).source == str(root / "elsewhere/mine")
    size = (root / "elsewhere/mine/model.safetensors").stat().st_size
    assert (chain(str(root / "given")).size() or 0) > size + (root / "given" / ADAPTER_WEIGHTS).stat().st_size


def test_quantised_weights_are_near_and_adapters_on_them_go_onto_the_full_ones(tmp_path: Path) -> None:
    """NF4's error is about 0.09 of a matrix's standard deviation; what is saved is merged into the full weights."""
    pytest.importorskip("bitsandbytes", reason="extra grape[qlora]")
    for architecture in ("llama", "gpt2"):
        root = project(tmp_path / architecture)
        save_model(tiny.model(architecture, width=192), tiny.tokenizer(), root / "models/base")
        model, tokenizer = load_language_model(str(root / "models/base"))
        plain = logp(model)
        names = set(linear(model))
        quantised = quantise.quantise(model, torch.device("cpu"))
        assert {name for name, m in quantised.named_modules() if type(m).__name__ == "Linear4bit"} == names
        assert 0 < (logp(quantised) - plain).abs().mean() < 0.5 * plain.std()
        off = logp(quantised)
        moved(adapt(quantised, LoRA(rank=2), 1))
        out = language(quantised, tiny.batch())
        assert torch.equal(out.logp.detach(), logp(quantised)), "what samples is what is trained"
        out.logp.sum().backward()
        assert all((p.grad is not None) == ("lora" in n) for n, p in quantised.named_parameters())
        with adapters_off(quantised):
            assert torch.equal(logp(quantised), off)
        save_adapter(quantised, tokenizer, root / "models/sft", "models/base")
        full = moved(adapt(load_language_model(str(root / "models/base"))[0], LoRA(rank=2), 1))
        torch.testing.assert_close(logp(load_language_model(str(root / "models/sft"))[0]), logp(full), atol=1e-4, rtol=0)
    with pytest.raises(GrapeError, match="multiples of 64"):
        quantise.quantise(tiny.model(), torch.device("cpu"))
