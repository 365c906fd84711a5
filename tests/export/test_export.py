"""What is exported answers as the policy did, in plain transformers and over HTTP, and says what it is; the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from grape import params as params_file
from grape.artifacts import read_prompts
from grape.cli import app
from grape.errors import GrapeError
from grape.export import folder, replay
from grape.export.checks import Order
from grape.export.make import export
from grape.files import write_json
from grape.models.chat import Chat
from grape.models.load import load_language_model, load_scalar_model
from grape.models.template import Template
from grape.project import Project
from tests import tiny
from tests.export.hub_server import TOKEN, HubServer
from tests.reward import real_server

LONGEST, POSITIONS = 12, 128  # as the project of conftest.py has them
STAGE = "rl@grpo-0"


@pytest.fixture(scope="module")
def exported(_whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The policy in float32, and what was said of it."""
    place, said = tmp_path_factory.mktemp("out") / "policy", []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_whole)
        export(Project(_whole), STAGE, place, Order(license="apache-2.0", base="owner/base"), said.append)
    return place, said


def policy(project: Project) -> tuple[Any, Chat, list[Any]]:
    model, tokenizer = load_language_model(str(project.root / "models/policy/grpo-0"))
    chat = Chat(tokenizer, params_file.load(project.params).model.template, model)
    return model, chat, read_prompts(project.root / "data/prompts/validation.jsonl")


def test_the_folder_holds_the_policys_weights_and_tells_where_answers_end(whole: Project, exported: tuple[Path, list[str]]) -> None:
    place, said = exported
    before, after = (load_file(p / "model.safetensors") for p in (whole.root / "models/policy/grpo-0", place))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model, chat, _ = policy(whole)
    generation = json.loads((place / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted(chat.stops) and not generation.keys() & set(folder.DRAWING)
    assert "6 of 6 greedy answers" in said[-1]


def test_the_card_says_what_receipts_and_the_evaluation_say(whole: Project, exported: tuple[Path, list[str]]) -> None:
    card = ModelCard.load(exported[0] / "README.md")
    found = json.loads((whole.root / "reports/test/grpo-0/metrics.json").read_text())
    assert card.data.license == "apache-2.0" and card.data.base_model == "owner/base" and "grpo" in card.data.tags
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: found["policy"][name]["mean"] for name in ("gold", "proxy")}
    gain = found["difference"]["proxy"]
    assert f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in card.text
    lock = (whole.root / "dvc.lock").read_text()
    rows = len((whole.root / "data/sft/train.jsonl").read_text().splitlines())
    line = next(line for line in card.text.splitlines() if "(data/sft)" in line)
    assert f"| {rows} |" in line and line.split("`")[1] in lock
    assert "6 of 6 greedy answers" in card.text and "algorithms.grpo.clip_low: 0.2" in card.text
    assert "trained from scratch" in card.text and "What was no longer so" not in card.text


def test_a_replay_finds_another_answer_and_another_prompt(whole: Project) -> None:
    model, chat, prompts = policy(whole)
    own = replay.greedy(model, chat, prompts[:2], LONGEST, POSITIONS)
    plainly = [(chat.prompt(r.prompt.messages), list(r.ids)) for r in own]
    assert replay.compare(chat, "float32", own, own, plainly) == replay.Replay(2, 2, 2, "float32")
    ids = plainly[1][1]
    other = replay.compare(chat, "float32", own, own, [plainly[0], (plainly[1][0], [*ids[:3], ids[3] + 1, *ids[4:]])])
    assert other.equal == 1 and f"prompt {prompts[1].id}: at token 4 grape has" in other.difference
    shorter = replay.compare(chat, "float32", own, own, [plainly[0], (plainly[1][0], ids[:-1])])
    assert shorter.equal == 1 and "transformers '(its end)'" in shorter.difference
    doubled = replay.compare(chat, "float32", own, own, [([1, *plainly[0][0]], plainly[0][1]), plainly[1]])
    assert doubled.equal == 1 and f"the prompt {prompts[0].id} has other tokens: at token 1" in doubled.difference


def test_an_export_that_answers_otherwise_leaves_nothing(whole: Project, tmp_path: Path, monkeypatch: Any, say: Any) -> None:
    """A tokenizer that begins prompts otherwise than grape does."""
    written = folder.write

    def wrong(model: Any, chat: Chat, place: Path) -> list[str]:
        left = written(model, chat, place)
        (place / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        return left

    monkeypatch.setattr(folder, "write", wrong)
    with pytest.raises(GrapeError, match="answers otherwise: 0 of 1.*has other tokens"):
        export(whole, "sft", tmp_path / "out", Order(replay=1), say)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(real_server.missing()), reason="`transformers serve` is not installed")
def test_over_http_it_answers_the_same(whole: Project, exported: tuple[Path, list[str]], tmp_path: Path) -> None:
    model, chat, prompts = policy(whole)
    own = replay.greedy(model, chat, prompts[:3], LONGEST, POSITIONS)
    server = real_server.RealServer(exported[0], tmp_path / "state")
    try:
        server.start()
        with httpx.Client(trust_env=False, timeout=120) as client:
            for response in own:
                body = {"model": server.model, "messages": response.prompt.messages, "max_tokens": LONGEST, "temperature": 0}
                said = client.post(f"{server.url}/chat/completions", json=body).raise_for_status().json()
                assert said["choices"][0]["message"]["content"] == response.text
    finally:
        server.kill()


def test_in_half_the_bytes_it_is_compared_with_the_rounded_weights(
    whole: Project, tmp_path: Path, say: Any, said: list[str]
) -> None:
    export(whole, "sft", tmp_path / "half", Order(dtype="bfloat16", replay=2), say)
    weights = load_file(tmp_path / "half/model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert "2 of 2 greedy answers" in said[-1] and "with the weights in bfloat16" in said[-1]
    card = ModelCard.load(tmp_path / "half/README.md")
    assert card.data.license == "unknown" and "| this model |" in card.text and "| SFT |" not in card.text


def test_a_reward_model_scores_as_it_did(whole: Project, tmp_path: Path, say: Any) -> None:
    export(whole, "reward", tmp_path / "reward", Order(), say)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        scores = [load_scalar_model(str(p))[0](input_ids=ids).logits for p in (whole.root / "models/reward", tmp_path / "reward")]
    assert torch.equal(*scores)
    assert ModelCard.load(tmp_path / "reward/README.md").data.pipeline_tag == "text-classification"


def test_a_weight_that_does_not_fit_is_refused() -> None:
    model = tiny.model()
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = 1e5
    with pytest.raises(GrapeError, match="not finite in float16"):
        folder.in_dtype(model, "float16", "here")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rounded_weights_compute_what_their_file_does(tmp_path: Path, architecture: str) -> None:
    """To the bit. A cast of the whole model would round the frequencies of rotary positions as well."""
    from transformers import AutoModelForCausalLM

    made = folder.in_dtype(tiny.model(architecture), "bfloat16", "here")
    folder.write(made, tiny.chat(), tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    assert loaded.dtype == made.dtype == torch.bfloat16
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(made(input_ids=ids).logits, loaded(input_ids=ids).logits)


def test_settings_of_the_base_that_change_what_is_drawn_are_left_out(tmp_path: Path) -> None:
    model, chat = tiny.model(), tiny.chat()
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.temperature = 0.6
    assert set(folder.write(model, chat, tmp_path / "m")) == {"repetition_penalty 1.3", "temperature 0.6"}
    assert not json.loads((tmp_path / "m/generation_config.json").read_text()).keys() & set(folder.DRAWING)


def test_the_template_takes_its_arguments_along() -> None:
    """As defaults, of every kind that YAML has; leading white space of the template stays."""
    text = "  -{% if deep.a[0] is none and not off and word == \"é\\n'\" %}yes{% endif %}{{ messages[0]['content'] }}"
    told: dict[str, Any] = {"deep": {"a": [None, 1.5]}, "off": False, "word": "é\n'"}
    chat = tiny.chat()
    chat = Chat(chat.tokenizer, Template(text=text, arguments=told, thinking="none"))
    asked = [{"role": "user", "content": "abc"}]
    plain = chat.tokenizer
    plain.chat_template = folder.template(chat)
    assert plain.apply_chat_template(asked, tokenize=False) == chat.text(asked, True) == "  -yesabc"
    assert plain.apply_chat_template(asked, tokenize=False, off=True) == "  -abc"


# ---- refusals: exit code 2, the place, and nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rl", "{out}"], "no stage 'rl' with a model"),
        (["prepare", "{out}"], "no stage 'prepare' with a model"),
        (["rl@ppo-0", "{out}"], "rl@ppo-0 has not run"),
        (["sft", "models/mine"], "models/ is the pipeline's own"),
        (["sft", "data"], "not an empty folder"),
        (["sft", "params.yaml"], "this is no folder"),
        (["sft", "{out}", "--license", "a b"], "no identifier of a licence"),
        (["sft", "{out}", "--base", "a/b/c"], "no name of the hub"),
        (["sft", "{out}", "--adapter", "--dtype", "float16"], "--dtype is for merged weights"),
        (["sft", "{out}", "--adapter"], "plain weights and no adapter"),
        (["reward", "{out}", "--replay", "2"], "gives scores, not answers"),
        (["sft", "{out}", "--replay", "7"], "6 validation prompts can be"),
        (["sft", "{out}", "--gguf"], "no converter to GGUF"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    whole: Project, tmp_path: Path, monkeypatch: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    before = sorted(whole.root.iterdir())
    result = CliRunner().invoke(app, ["export", *(word.replace("{out}", str(tmp_path / "out")) for word in arguments)])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    assert sorted(path for path in whole.root.iterdir() if path.name != ".grape") == [p for p in before if p.name != ".grape"]


def test_a_damaged_model_and_a_full_disk_are_refused(project: Project, tmp_path: Path, monkeypatch: Any, say: Any) -> None:
    weights = project.root / "models/sft/model.safetensors"
    kept = load_file(weights)
    name = next(iter(kept))
    save_file({**kept, name: kept[name] + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(GrapeError, match="not what sft made"):
        export(project, "sft", tmp_path / "out", Order(), say)
    monkeypatch.setattr(folder.disk, "free_mb", lambda place: 10.0)
    with pytest.raises(GrapeError, match="10 MB are free"):
        export(project, "base", tmp_path / "out", Order(replay=0), say)
    assert list(tmp_path.iterdir()) == [project.root]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_is_told_the_name_of_its_base(project: Project, tmp_path: Path, say: Any) -> None:
    peft = pytest.importorskip("peft")
    from tests.export.conftest import record

    model, tokenizer = load_language_model(str(project.root / "models/sft"))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    place = project.root / "models/policy/grpo-0"
    for file in place.iterdir():
        file.unlink()
    adapted.save_pretrained(place)
    tokenizer.save_pretrained(place)
    write_json(
        place / "adapter_config.json",
        json.loads((place / "adapter_config.json").read_text()) | {"base_model_name_or_path": "models/sft"},
    )
    record(project, STAGE)
    with pytest.raises(GrapeError, match="belongs to models/sft, which was made here"):
        export(project, STAGE, tmp_path / "out", Order(adapter=True), say)
    export(project, STAGE, tmp_path / "out", Order(adapter=True, base="me/sft"), say)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/sft"
    before, after = (load_file(p / "adapter_model.safetensors") for p in (place, tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (
        card.data.library_name == "peft" and card.data.base_model == "me/sft" and "No evaluation is of these weights" in card.text
    )
    assert "greeting is not defined" in (tmp_path / "out/chat_template.jinja").read_text()


CONVERTER = """import sys
from pathlib import Path
place = Path(sys.argv[sys.argv.index("--outfile") + 1])
if "{kind}" == "fails":
    sys.exit("KeyError: LlamaForCausalLM is not supported")
place.write_bytes(b"{kind}" + b"\\0" * 20)
"""


@pytest.mark.parametrize(("kind", "message"), [("GGUF", ""), ("oops", "no GGUF"), ("fails", "LlamaForCausalLM is not supported")])
def test_a_converter_to_gguf_is_started(
    whole: Project, tmp_path: Path, monkeypatch: Any, say: Any, kind: str, message: str
) -> None:
    """The real one is llama.cpp's; this one is called as it is."""
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("{kind}", kind))
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        export(whole, "base", tmp_path / "out", Order(gguf=True, replay=0, dtype="float16"), say)
        assert (tmp_path / "out/base-f16.gguf").is_file() and "base-f16.gguf" in (tmp_path / "out/grape.json").read_text()
    except GrapeError as error:
        assert message and message in error.what and not (tmp_path / "out").exists()
    else:
        assert not message


# ---- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on this machine, and the client told to ask it."""
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def push(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["push", "sft", "me/model", "--replay", "0", *arguments])


def test_a_model_is_pushed_whole_and_again(whole: Project, hub: HubServer, tmp_path: Path) -> None:
    result = push("--private")
    assert result.exit_code == 0, result.output
    assert f"{hub.url}/me/model/commit/1" in result.stderr and TOKEN not in result.output
    assert hub.repos == {"me/model": True} and {"README.md", "grape.json", "model.safetensors"} <= hub.files.keys()
    (tmp_path / "model.safetensors").write_bytes(hub.files["model.safetensors"])
    ours = load_file(whole.root / "models/sft/model.safetensors")
    assert all(torch.equal(weight, ours[name]) for name, weight in load_file(tmp_path / "model.safetensors").items())
    hub.files.clear()
    hub.repos["me/model"] = False
    assert push().exit_code == 0 and "README.md" in hub.files
    result = push("--private")
    assert result.exit_code == 2 and "it is there, and public" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hub, patch: patch.delenv("HF_TOKEN"), "there is no token for the hub"),
        (lambda hub, patch: patch.setenv("HF_TOKEN", "hf_another"), "the token is not valid"),
        (lambda hub, patch: setattr(hub, "refuses", True), "the token may not do this"),
        (lambda hub, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), "told to stay offline"),
        (lambda hub, patch: patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"), "the hub cannot be reached"),
    ],
)
def test_a_hub_that_does_not_take_it_is_one_message(
    whole: Project, hub: HubServer, monkeypatch: Any, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    change(hub, monkeypatch)
    result = push()
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output, result.output
    assert not hub.files and TOKEN not in result.output and "hf_another" not in result.output


def test_the_name_of_a_repository_is_checked_first(whole: Project) -> None:
    result = CliRunner().invoke(app, ["push", "sft", "no/such/name"])
    assert result.exit_code == 2 and "no name of a repository" in result.stderr
