"""Models and templates of every odd kind, a line a case: refused before anything is trained, with the place and what to do."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from grape import params as params_file
from grape.errors import GrapeError
from grape.models.load import load_tokenizer, save_model
from grape.models.scratch import scratch
from grape.project import Project
from grape.stages.inputs import resolved
from grape.stages.stage import Stage
from grape.track import StageRun
from tests.odd_inputs import tokenizers as shapes

COUNTS = "{{ messages | length }}" + shapes.CHATML  # a conversation does not begin with its prompt


def more_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{i}>" for i in range(99)])
    tokenizer.save_pretrained(folder)


def edit(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def put(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100]) and None


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def nothing(folder: Path) -> None:
    """The model as it is."""


# What is done to the model's folder, what is set, words of the refusal.
WRONG: list[tuple[Callable[[Path], object], list[str], str]] = [
    (shutil.rmtree, [], "cannot be loaded"), (nothing, ["model.base=./nowhere"], "no such directory"),
    (nothing, ["model.base=model/config.json"], "model.base|cannot be loaded"),
    (nothing, ["model.base=nowhere.gguf"], "no such file"),
    (put("../torn.gguf", b"GGUF" + b"\0" * 64), ["model.base=torn.gguf"], "cannot be loaded"),
    (put("../text.gguf", b"no model"), ["model.base=text.gguf"], "cannot be loaded"),
    (without("config.json"), [], "cannot be loaded"), (cut("config.json"), [], "cannot be loaded"),
    (put("config.json", b"\0" * 50), [], "cannot be loaded"), (edit("config.json", model_type="nonsense"), [], "cannot be loaded"),
    (edit("config.json", model_type="bert"), [], "not there"), (edit("config.json", hidden_size=64), [], "cannot be loaded"),
    (without("tokenizer.json"), [], "cannot be loaded|tokenizer"), (cut("tokenizer.json"), [], "cannot be loaded"),
    (put("tokenizer.json", b"\xff" * 20), [], "cannot be loaded"),
    (edit("tokenizer_config.json", eos_token=None), [], "end-of-sequence"),
    (without("model.safetensors"), [], "cannot be loaded"), (cut("model.safetensors"), [], "cannot be loaded"),
    (put("model.safetensors", b"\0" * 4096), [], "cannot be loaded"), (put("model.safetensors", b""), [], "cannot be loaded"),
    (edit("config.json", vocab_size=100), [], "cannot be loaded"), (more_tokens, [], "tokens, and the model knows"),
    (nothing, ["model.positions=4096"], "knows 256"),
    (nothing, ["model.positions=257"], "model.positions is 257"),
    (put("chat_template.jinja", b"{% for m in messages %}"), [], "template"),
    (put("chat_template.jinja", b"{{ nothing.at.all }}"), [], "templ"),
    (put("chat_template.jinja", b"{{ raise_exception('no') }}"), [], "no"),
    (put("chat_template.jinja", b"{{ 1 / 0 }}"), [], "template"),
    (put("chat_template.jinja", COUNTS.encode()), [], "begin"), (put("chat_template.jinja", b"\xff"), [], "cannot be loaded"),
    (nothing, ["model.template.text='{% if %}'"], "template"),
    (nothing, ["model.template.text='{{ messages[7].content }}'"], "template"),
    (nothing, ["model.template.text=''"], "template"),
    (nothing, ["model.template.text='{{ bos_token }}'"], "answer|template|content"),
    (nothing, ["model.template.thinking=[<think>]"], "thinking"), (nothing, ["model.template.thinking=always"], "thinking"),
    (nothing, ["model.template.arguments={messages: 3}"], "messages"), (nothing, ["model.template.date=yesterday"], "date"),
    (nothing, ["model.template.date=2025-02-30"], "date"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    tokenizer = shapes.byte_pair()
    save_model(scratch("llama", 1, 16, 2, 256, tokenizer, 0), tokenizer, folder)
    return folder


@pytest.fixture
def loading(project: Project, model: Path) -> Project:
    """The project, told to start from the model."""
    shutil.copytree(model, project.root / "model")
    params_file.set_values(project.params, ["model.base=model", "base.steps=0"])
    return project


def run(project: Project, *kinds: str) -> None:
    params = params_file.load(project.params, [])
    for kind in kinds:
        with StageRun(project, kind, resolved(project, params, kind), 0, deliver=False) as stage_run:
            importlib.import_module(f"grape.stages.{kind}").run(Stage(kind, kind, params, project, stage_run))


@pytest.mark.parametrize(("change", "sets", "words"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_model(loading: Project, change: Callable[[Path], object], sets: list[str], words: str) -> None:
    change(loading.root / "model")
    with pytest.raises(GrapeError, match=words) as caught:
        params_file.set_values(loading.params, sets)
        run(loading, "prepare", "base")
    assert caught.value.where and caught.value.mend
    assert not (loading.root / "models").exists()


@pytest.mark.parametrize("template", [shapes.CHATML, shapes.GEMMA, shapes.MISTRAL, shapes.LLAMA3, shapes.QWEN3, shapes.TOOLS, None])
@pytest.mark.parametrize("make", [shapes.byte_pair, shapes.sentence_piece])
def test_a_right_model(loading: Project, make: Callable[..., object], template: str | None) -> None:
    tokenizer = make(template)
    shutil.rmtree(loading.root / "model")
    save_model(scratch("llama", 1, 16, 2, 256, tokenizer, 0), tokenizer, loading.root / "model")
    run(loading, "prepare", "base")
    assert load_tokenizer(str(loading.root / "models/base")).get_vocab() == tokenizer.get_vocab()
