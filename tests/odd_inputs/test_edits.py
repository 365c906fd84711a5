"""What is edited, torn under a stage or a run: it is said, exit code 2, and nothing is recorded as what it is not."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grape import disk, yamlfile
from grape import params as params_file
from grape.cli import app
from grape.errors import GrapeError
from grape.pipeline import preflight
from grape.pipeline.hooks import Hooks
from grape.pipeline.screen import Screen
from grape.project import NONCE, Project
from grape.stages import prepare
from grape.stages.__main__ import main
from grape.stages.inputs import Inputs
from grape.stages.stage import Stage
from grape.training.checkpoint import Checkpoints
from tests.odd_inputs.own_data import FILES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `grape run`, which tells MLflow itself."""
    monkeypatch.setenv(NONCE, "1")


def swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


EDITS: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: swap(root / "params.yaml", "seed: 0 ", "seed: 7 "), r"params.yaml \(seed\)"),
    (lambda root: swap(root / "params.yaml", "positions: 256", "positions: 255"), r"params.yaml \(model.positions\)"),
    (lambda root: (root / "mine" / "sft.jsonl").write_bytes(FILES["sft.jsonl"] * 2), r"mine \(sft.jsonl\)"),
    (lambda root: (root / "mine" / "test.jsonl").unlink(), r"mine \(test.jsonl\)"),
    (lambda root: (root / "mine" / "gold.py").write_text("def gold(p, r): return 0.0"), r"mine \(gold.py\)"),
    (lambda root: swap(root / "rubrics" / "sums.yaml", "Is it right?", "Right?"), r"rubrics \(sums.yaml\)"),
    (lambda root: swap(root / "grape" / "stages" / "prepare.py", "prepare: build", "prepare: make"), "grape/stages/prepare.py"),
    (lambda root: swap(root / "grape" / "models" / "chat.py", "Content is", "Content was"), r"grape/models \(chat.py\)"),
    (lambda root: (root / "params.yaml").write_bytes(b"seed: ["), "params.yaml:2"),
    (lambda root: (root / "params.yaml").unlink(), "params.yaml"),
]
HARMLESS: list[Callable[[Path], object]] = [
    lambda root: None,
    lambda root: os.utime(root / "mine" / "sft.jsonl"),  # touched, the same bytes
    lambda root: (root / "mine" / "sft.jsonl").write_bytes(FILES["sft.jsonl"]),
    lambda root: (root / "README").write_text("beside it"),
    lambda root: (root / "mine" / "__pycache__").mkdir(),
    lambda root: swap(root / "params.yaml", "# integer >= 0", "# a comment"),
]


@pytest.fixture
def editing(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], object]], int]:
    """Runs prepare in a project with grape's code in it and edits something before its end; the exit code."""
    copied(project.root)
    real = prepare.run

    def run(edit: Callable[[Path], object]) -> int:
        monkeypatch.setattr(prepare, "run", lambda stage: (real(stage), edit(project.root)))
        return main(["prepare"])

    return run


def copied(root: Path) -> None:
    for name in ("grape", "algorithms"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(root / name)], check=True)
    (root / ".dvcignore").write_text((ROOT / ".dvcignore").read_text())


@pytest.mark.parametrize(("edit", "words"), EDITS, ids=range(len(EDITS)))
def test_an_edit_under_a_stage(
    project: Project, editing: Callable[..., int], capfd: pytest.CaptureFixture[str], edit: Callable[[Path], object], words: str
) -> None:
    assert editing(edit) == 2
    shown = capfd.readouterr().err
    assert "changed while the stage ran, so its results are not recorded" in shown and "Traceback" not in shown
    assert re.search(words, shown), shown
    assert not project.receipt("prepare").exists()


@pytest.mark.parametrize("edit", HARMLESS, ids=range(len(HARMLESS)))
def test_what_is_no_edit(project: Project, editing: Callable[..., int], edit: Callable[[Path], object]) -> None:
    assert editing(edit) == 0
    assert project.receipt("prepare").exists()


def test_what_params_yaml_names_is_compared_by_its_bytes(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, card = project.root / "model", project.root / "inputs" / "model.base"
    model.mkdir()
    (model / "weights").write_text("1")

    def written() -> str:
        preflight.named_files(project)
        return card.read_text()

    assert written() == "# model.base names no file.\n"
    params_file.set_values(project.params, ["model.base=./model"])
    assert main(["prepare"]) == 2  # as `dvc repro` would begin it, with a card that is no longer true
    assert "inputs/model.base does not say what model.base names now" in capfd.readouterr().err
    first = written()
    os.utime(model / "weights")
    assert written() == first != "# model.base names no file.\n"
    (model / "weights").write_text("2")
    second = written()
    (model / "more").touch()
    assert len({first, second, written()}) == 3
    (project.state / "named.json").write_bytes(b"\0torn")  # a cache
    assert written() == card.read_text()
    monkeypatch.setattr(prepare, "run", lambda stage: (model / "weights").write_text("3"))
    assert main(["prepare"]) == 2 and "what model.base names" in capfd.readouterr().err


def test_the_last_update_is_kept_when_something_was_edited(tmp_path: Path) -> None:
    changed: list[str] = []
    checkpoints = Checkpoints(tmp_path, {}, 5, lambda: changed)
    assert not checkpoints.due(12, 12) and checkpoints.due(5, 12)
    changed.append("params.yaml")
    assert checkpoints.due(12, 12) and not Checkpoints(tmp_path, {}, 0, lambda: changed).due(12, 12)


def test_a_checkpoint_belongs_to_what_was_read_at_the_start(project: Project) -> None:
    from grape.stages.inputs import identity

    copied(project.root)
    inputs, params = Inputs.read(project, "sft"), params_file.load(project.params, [])
    before = identity(project, params, "sft", inputs)
    swap(project.root / "grape" / "models" / "chat.py", "Content is", "Content was")
    assert identity(project, params, "sft", inputs) == before != identity(project, params, "sft")


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device", "models/sft/model.safetensors"), OSError(errno.EDQUOT, "quota", "data"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("sqlite3.OperationalError: database or disk is full"),
])  # fmt: skip
def test_a_full_disk_under_a_stage(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(stage: Stage) -> None:
        raise error

    monkeypatch.setattr(prepare, "run", full)
    assert main(["prepare"]) == 2
    shown = capfd.readouterr().err
    assert "the disk is full" in shown and "MB are free" in shown and " -> " in shown and "Traceback" not in shown
    assert not project.receipt("prepare").exists()


def test_what_is_no_matter_of_the_disk(tmp_path: Path) -> None:
    assert disk.refusal(ValueError("no"), tmp_path) is None and disk.refusal(FileNotFoundError(2, "no", "x"), tmp_path) is None
    refused = disk.refusal(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data")), tmp_path)
    assert refused is not None and refused.where == "data"


TORN = [
    b"\0" * 300,
    b"\xff\xfe\x00s",
    b"stages:\n  prepare:\n    cmd: [",
    b"stages: 3\n",
    b"- a\n",
    b"stages:\n  prepare: x\n",
    b"stages:\n",
    b"stages:\n  prepare: {}\n",
    (ROOT / "dvc.yaml").read_bytes()[:2000],
]


@pytest.mark.parametrize("data", TORN, ids=lambda x: repr(x)[:30])
def test_a_torn_dvc_yaml(project_dir: Path, data: bytes) -> None:
    (project_dir / ".dvc").mkdir()
    (project_dir / ".dvc" / "config").touch()
    (project_dir / "dvc.yaml").write_bytes(data)
    result = CliRunner().invoke(app, ["plan"])
    assert result.exit_code == 2 and "dvc.yaml" in result.stderr and "Traceback" not in result.output, result.output
    assert (project_dir / "dvc.yaml").read_bytes() == data


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"\xff" * 64, b"0" * 64])
def test_a_torn_cache_of_grapes_own_is_made_again(project_dir: Path, data: bytes) -> None:
    subprocess.run(["cp", "-r", str(ROOT / "grape"), str(project_dir / "grape")], check=True)
    note = project_dir / ".grape" / "params.valid"
    note.parent.mkdir()
    note.write_bytes(data)
    Hooks().check(project_dir / "params.yaml")
    assert len(note.read_text()) == 64 and note.read_bytes() != data


def test_a_terminal_without_the_character_loses_it_alone() -> None:
    raw = io.BytesIO()
    screen = Screen(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    screen.say("zwölf \N{GRAPES}")
    screen.say("und weiter")
    assert raw.getvalue() == b"zw?lf ?\nund weiter\n"


def test_commands_on_an_ascii_terminal(project_dir: Path) -> None:
    (project_dir / "rubrics" / "zwölf.yaml").write_text(
        "version: 1\ncategory: zwölf\nitems:\n  - {id: a, question: Größe?, kind: verify, verifier: length, options: {high: 3}}\n"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "grape.cli", "rubric", "check"], env=env, capture_output=True, cwd=project_dir)
    assert done.returncode == 0 and b"version 1, 1 verify" in done.stdout.splitlines()[-1] and not done.stderr, done


def test_text_that_is_no_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 1\nb: \x01\n")
    with pytest.raises(GrapeError) as caught:
        yamlfile.read(path)
    assert caught.value.where == "x.yaml:2"
