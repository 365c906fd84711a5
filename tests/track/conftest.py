"""A project of its own per test, with MLflow's sqlite store inside, and a reader of that store."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grape.project import Project
from grape.track.store import connect

ROOT = Path(__file__).resolve().parents[2]
# MLflow's own use of what its dependencies deprecate; nothing of ours is concerned.
FOREIGN = ("ignore:The ``noload`` loader strategy is deprecated",)


def pytest_configure(config: pytest.Config) -> None:
    for line in FOREIGN:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the experiment in it: MLflow's migrations take seconds, a copy does not."""
    project = Project(tmp_path_factory.mktemp("database"))
    connect(project)
    return project.state / "mlflow.db"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that has never seen MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def project(bare: Project, database: Path) -> Project:
    """A project with an empty store."""
    bare.state.mkdir()
    shutil.copyfile(database, bare.state / "mlflow.db")
    return bare


@pytest.fixture
def client(bare: Project) -> Callable[[], Any]:
    """An MLflow client on the project's store, made when asked for."""

    def make() -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(bare.tracking_uri)

    return make


@pytest.fixture
def runs(client: Callable[[], Any]) -> Callable[[], list[Any]]:
    """All runs of the experiment, in order of their start."""

    def search() -> list[Any]:
        experiment = client().get_experiment_by_name("grape")
        return list(client().search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    return search


@pytest.fixture
def python(bare: Project) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start Python code in a process of its own, in the project; it is dead when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=bare.root,
            text=True,
            stdout=subprocess.PIPE,
            env={**bare.environment(), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition that another process brings about."""

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(1200):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError("waited for a minute")

    return wait


def save_model(folder: Path, kind: str = "causal") -> Path:
    """A tiny random Llama with its tokenizer, saved as the stages save theirs."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {"<unk>": 0, "<eos>": 1, **{word: 2 + i for i, word in enumerate("abcdef")}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_labels=1,
        num_attention_heads=2,
        pad_token_id=1,
        eos_token_id=1,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config) if kind == "causal" else LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture(name="save_model")
def _save_model() -> Callable[..., Path]:
    return save_model
