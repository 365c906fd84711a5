"""One small project whose stages have run, with the dvc.lock that DVC would have written, for all tests of this folder."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from grape import dvc, needed, yamlfile
from grape import params as params_file
from grape.project import Project
from grape.stages.inputs import entry, resolved
from grape.stages.stage import Stage
from grape.track import StageRun, digest
from tests.stages.test_stages import strengthen

ROOT = Path(__file__).resolve().parents[2]
MINIATURE = (
    "model.layers=1 model.width=16 model.heads=2 model.positions=128 prepare.documents=60 prepare.demonstrations=40 "
    "prepare.prompts=24 prepare.validation=6 prepare.test=6 prepare.judgements=60 "
    "base.steps=2 base.batch_size=8 sft.steps=2 sft.batch_size=8 "
    "critic.steps=1 critic.batch_size=4 preferences.prompts=24 preferences.samples=16 preferences.margin=0 "
    "reward.steps=1 reward.batch_size=2 rl.algorithms=[grpo] "
    "rl.steps=2 rl.learning_rate=0.01 rl.warmup_steps=0 rl.prompts=4 rl.samples=4 rl.max_new_tokens=12 "
    "evaluate.samples=2"
).split()
CHAIN = ("prepare", "base", "sft", "critic", "preferences", "reward", "rl@grpo-0", "test@grpo-0")
# What a template of one's own may ask for: an argument, a date; and a space before the answer.
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A: ' + m['content'] + eos_token }}{% else %}"
    "{{ greeting + ' ' + strftime_now('%Y') + ' ' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)


def run(project: Project, name: str) -> None:
    """A stage as `python3 -m grape.stages` runs it, and its entry of dvc.lock, as DVC makes it afterwards."""
    params = params_file.load(project.params)
    needed.write(project, needed.unneeded(project))
    kind, _, policy = name.partition("@")
    algorithm, _, seed = policy.rpartition("-")
    with StageRun(project, name, resolved(project, params, name), 0, deliver=False) as stage_run:
        stage = Stage(name, kind, params, project, stage_run, algorithm, int(seed or 0))
        importlib.import_module(f"grape.stages.{kind}").run(stage)
    if kind == "sft":
        strengthen(project)
    record(project, name)


def record(project: Project, name: str) -> None:
    declared, tree = entry(project, "grape/world.py", name), yamlfile.read(project.params)

    def items(paths: list[str]) -> list[dict[str, str]]:
        there = [path for path in paths if (project.root / path).exists()]
        return [{"path": path, "hash": "md5", "md5": digest.computed(project.root / path, project)} for path in there]

    made = {
        "cmd": declared["cmd"],
        "deps": items(declared["deps"]),
        "params": {"params.yaml": {key: yamlfile.at(tree, key) for key in declared["params"]}},
        "outs": items(dvc.outputs(declared)),
    }
    lock = project.root / "dvc.lock"
    stages = dvc.read_lock(lock) | {name: made}
    with lock.open("w") as file:
        YAML().dump({"schema": "2.0", "stages": stages}, file)


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    for name in ("rubrics", "grape", "algorithms", "inputs"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    os.chdir(root)
    told = {"text": TEMPLATE, "arguments": {"greeting": 'Say "hé",\n'}, "date": "2024-02-03"}
    params_file.set_values(root / "params.yaml", [*MINIATURE, *(f"model.template.{k}={_yaml(v)}" for k, v in told.items())])
    for name in CHAIN:
        run(Project(root), name)
    os.chdir(before)
    return root


def _yaml(value: Any) -> str:
    import json

    return json.dumps(value)


@pytest.fixture
def project(_whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A copy that a test may spoil."""
    root = tmp_path / "project"
    shutil.copytree(_whole, root, symlinks=True)
    monkeypatch.chdir(root)
    yield Project(root)


@pytest.fixture
def whole(_whole: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The one that all share: to be read alone."""
    monkeypatch.chdir(_whole)
    return Project(_whole)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def say(said: list[str]) -> Callable[[str], None]:
    return said.append
