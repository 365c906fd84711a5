"""The commands: exit codes, messages, JSON."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grape.cli import app
from grape.errors import GrapeError
from grape.pipeline import preflight
from grape.project import Project
from tests.pipeline.harness import until

ROOT = Path(__file__).resolve().parents[2]


def grape(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def project(project_dir: Path) -> Path:
    """grape's own project, set up for DVC, its code in place, nothing run."""
    (project_dir / "grape").symlink_to(ROOT / "grape")
    (project_dir / "algorithms").symlink_to(ROOT / "algorithms")
    subprocess.run(["git", "init", "--quiet"], cwd=project_dir, check=True)
    (project_dir / ".dvc").mkdir()
    (project_dir / ".dvc" / "config").touch()
    return project_dir


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["plan"], ["run", "pipeline"], ["doctor"], ["ui"], ["mlflow", "sync"]):
        result = grape(*command)
        assert result.exit_code == 2
        assert "no grape project here" in result.stderr and "grape init DIR" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["rum"], ["run", "--stepz", "3"], ["run", "--workers", "0"], ["run", "--engine", "airflow"]])
def test_a_typo_is_exit_2(command: list[str]) -> None:
    assert grape(*command).exit_code == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [("rl.stepz=3", "rl.stepz"), ("rl.steps=three", "rl.steps"), ("rl.steps=-1", "rl.steps"), ("rl.steps", "--set")],
)
def test_a_bad_set_changes_nothing(project: Path, assignment: str, message: str) -> None:
    before = (project / "params.yaml").read_bytes()
    result = grape("run", "pipeline", "--engine", "dvc", "--set", assignment)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert (project / "params.yaml").read_bytes() == before
    assert not (project / "dvc.lock").exists() and not (project / "data").exists()


def test_not_a_git_repository(project_dir: Path) -> None:
    result = grape("run", "pipeline")
    assert result.exit_code == 2 and "not a git repository" in result.stderr and "git init" in result.stderr
    assert not (project_dir / ".dvc").exists()


def test_a_missing_data_file_is_found_before_anything_runs(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("source: grape/world.py", "source: my/data"))
    result = grape("run", "pipeline", "--engine", "dvc")
    assert result.exit_code == 2 and "my/data is missing" in result.stderr
    assert not (project / "dvc.lock").exists()


def test_vllm_without_its_program_is_refused_before_anything_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPE_VLLM", raising=False)
    sets = ["--set", "rl.engine=vllm", "--set", "rl.importance=token"]
    result = grape("run", "pipeline", "--engine", "dvc", *sets)
    assert result.exit_code == 2 and "GRAPE_VLLM is not set" in result.stderr and not (project / "dvc.lock").exists()
    found = {check["name"]: check for check in json.loads(grape("doctor", "--json").stdout)}
    assert (
        found["vllm"]["wrong"] and "GRAPE_VLLM is not set" in found["vllm"]["found"] and "rl.engine: grape" in found["vllm"]["mend"]
    )
    preflight.sampler(Project(project), ["prepare", "evaluate@grape-0"])
    (project / "inputs/runs.yaml").write_text('runs: {"dpo-0": {"rl": {"preferences": "data/preferences"}}}')
    preflight.sampler(Project(project), ["rl@dpo-0"])  # it samples nothing
    with pytest.raises(GrapeError, match="GRAPE_VLLM"):
        preflight.sampler(Project(project), ["rl@dpo-0", "rl@grpo-0"])


def test_the_plan_of_a_fresh_project(project: Path) -> None:
    result = grape("plan", "sft", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [step["stage"] for step in plan["stages"]] == ["prepare", "base", "sft"]
    assert all(step["reasons"] == ["it never ran here"] for step in plan["stages"])
    assert plan["stages"][2]["needs"] == ["prepare", "base"]
    assert not (project / "dvc.lock").exists()


def test_dry_run_does_not_edit(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    assert grape("run", "--dry-run", "--set", "rl.steps=3").exit_code == 2
    assert (project / "params.yaml").read_bytes() == before


def test_algorithms() -> None:
    text, data = grape("algorithms"), grape("algorithms", "--json")
    assert text.exit_code == data.exit_code == 0
    entries = {entry["name"]: entry for entry in json.loads(data.stdout)}
    assert {"reinforce", "grpo"} <= entries.keys()
    assert entries["grpo"]["data"] == "rollouts" and "group" in entries["grpo"]["needs"]
    assert {knob["name"] for knob in entries["grpo"]["knobs"]} >= {"clip_low", "beta"}
    assert "grpo: GRPO" in text.stdout


def test_doctor_of_a_healthy_project(project: Path) -> None:
    result = grape("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0, [check for check in checks.values() if check["wrong"]]
    assert {"python", "packages", "git", "dvc", "params.yaml", "disk", "mlflow"} <= checks.keys()


def test_doctor_finds_what_is_wrong(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "params.yaml").write_text("seed: zero\n")
    (project / "dvc.lock").write_text("schema: '2.0'\nstages:\n  prepare:\n    cmd: p\n    outs:\n    - path: data")
    (project / ".dvc" / "tmp").mkdir()
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"write": {"/x"')
    monkeypatch.setenv("GRAPE_MIN_FREE_MB", "1e12")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/api")
        result = grape("doctor")
    assert result.exit_code == 1
    wrong = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert [line.split()[1].rstrip(":") for line in wrong] == ["params.yaml", "disk", "dvc.lock", "dvc", "prefect"]
    assert result.stdout.count(" -> ") >= len(wrong)


def test_init_makes_a_project_that_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    result = grape("init", str(folder))
    assert result.exit_code == 0, result.output
    assert "next: cd" in result.stdout
    monkeypatch.chdir(folder)
    plan = json.loads(grape("plan", "--json").stdout)
    assert plan["stages"][0]["stage"] == "prepare" and plan["stages"][-1]["stage"] == "report"
    text = (folder / "dvc.yaml").read_text()
    assert "- grape/" not in text and text.count("- grape.version") == text.count("cmd:")
    assert "source: world.py" in (folder / "params.yaml").read_text()
    assert (folder / "rubrics").is_dir() and (folder / "grape.version").read_text().startswith("grape ")
    untracked = subprocess.run(
        ["git", "status", "--short", "--untracked-files=all"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    assert ".grape/" not in untracked


def test_init_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    result = grape("init", str(tmp_path))
    assert result.exit_code == 2 and "not an empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_new_grape_is_a_changed_dependency(tmp_path: Path) -> None:
    from grape.pipeline import preflight

    project = Project(tmp_path)
    preflight.version_file(project)
    assert not (tmp_path / "grape.version").exists()  # a checkout tracks its code file by file
    (tmp_path / "grape.version").write_text("grape 0.0.1\n")
    preflight.version_file(project)
    assert (tmp_path / "grape.version").read_text() == preflight.version_text()


def test_ui_refuses_a_port_in_use(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = grape("ui", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2 and "cannot be used" in result.stderr and "--port" in result.stderr


def test_ui_serves_this_projects_store_until_interrupted(project: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "grape.cli", "ui"],
        cwd=project,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    port = int(url.rsplit(":", 1)[1])
    assert url.startswith("http://127.0.0.1:") and port != 5000 and not 8000 <= port < 9000
    assert "ready" in process.stdout.readline()
    with urllib.request.urlopen(url, timeout=60) as page:
        assert page.status == 200
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0
    until(lambda: not _answers(port))
    assert (project / ".grape" / "mlflow.db").is_file()
    assert not (project / "mlruns").exists() and not (project / "mlartifacts").exists()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_parameters_once_found_valid_are_checked_again_when_they_change(project: Path) -> None:
    from grape.pipeline.hooks import Hooks

    (project / ".grape").mkdir()
    path = project / "params.yaml"
    whole = path.read_text()
    Hooks().check(path)
    Hooks().check(path)
    path.write_text(whole.replace("noise: 0.5", "noise: 5.0"))
    for _ in range(2):
        with pytest.raises(GrapeError, match=r"prepare\.noise"):
            Hooks().check(path)
    path.write_text(whole)
    Hooks().check(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "pipeline", "--algorithms", "all"], "belong to `grape run compare`"),
        (["run", "compare", "--seeds", "0,x"], "integers with commas"),
        (["run", "compare", "--algorithms", "grpo,pop"], "unknown algorithm 'pop'"),
        (["run", "compare", "--algorithms", "grpo", "--dry-run"], "--dry-run must not"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(project: Path, arguments: list[str], message: str) -> None:
    before = (project / "params.yaml").read_bytes()
    result = grape(*arguments)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert (project / "params.yaml").read_bytes() == before


def test_an_algorithm_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # also outside a project
    result = grape("explain", "trpo")
    assert result.exit_code == 0
    assert "subject to" in result.stdout and "cg_iterations" in result.stdout and "algorithms/trpo.py" in result.stdout
    result = grape("explain", "troop")
    assert result.exit_code == 2 and "did you mean 'trpo'" in result.stderr
