"""Runs of rl wait for their rehearsal: a real one, of a tiny project whose earlier stages are done, in processes of its own."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grape import dvc, needed, pipeline
from grape import params as params_file
from grape.cli import app
from grape.commands.rehearse import examine
from grape.errors import GrapeError
from grape.pipeline import closing, rehearsal
from grape.pipeline.execute import Executor, Outcome
from grape.pipeline.rehearsal import LONG, Rehearsals, expected
from grape.project import Project
from grape.rehearsal.record import Rehearsal
from grape.stages.__main__ import main as stage
from tests.pipeline.harness import until
from tests.pipeline.test_end_to_end import PARTS
from tests.stages.test_rehearsal import KNOBS, ending, endless, judged_by
from tests.stages.test_stages import MINIATURE, run, strengthen

ROOT = Path(__file__).resolve().parents[2]
SETS = ["rl.algorithms=[grpo, grape, dpo]", "rl.max_new_tokens=4", "rl.steps=1", "preferences.samples=8"]


class Deaf(pipeline.Hooks):
    """Without MLflow."""

    def __init__(self) -> None:
        self.told: list[Rehearsal] = []

    def open(self, project: Project, nonce: str, plan: object, name: str) -> str:
        return "parent"

    def link(self, project: Project, parent: str | None, stage: str) -> None: ...

    def close(self, project: Project, parent: str | None, status: str, summary: str) -> None: ...

    def rehearsed(self, project: Project, rehearsal: Rehearsal) -> None:
        self.told.append(rehearsal)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """All that rl reads is made and in dvc.lock; SFT's answers have no end."""
    before, here = (dict(os.environ), os.getcwd()), Project(tmp_path_factory.mktemp("rehearsals").resolve())
    for name in PARTS:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        more = {"ignore": shutil.ignore_patterns("__pycache__"), "symlinks": True} if source.is_dir() else {}
        copy(source, here.root / name, **more)  # type: ignore[operator]
    os.chdir(here.root)
    here.enter()
    params_file.set_values(here.params, [*MINIATURE, *KNOBS, *SETS])
    judged_by(here, "verifier: length, options: {unit: characters, high: 1}")
    needed.write(here, needed.unneeded(here))
    for kind in ("prepare", "base", "sft"):
        run(here, kind)
    strengthen(here)
    ending(here)
    assert stage(["critic"]) == 0, "nobody needs it, and it says so"
    run(here, "preferences")
    shutil.copytree(here.root / "models/sft", here.state / "ending")
    endless(here)
    subprocess.run(["git", "init", "--quiet"], check=True)
    dvc.ask(here, "init", "--quiet").answer()
    dvc.ask(here, "commit", "--force", "--quiet", "prepare", "base", "sft", "critic", "preferences").answer()
    yield here
    os.chdir(before[1])
    os.environ.clear()
    os.environ.update(before[0])


@cache
def planned(project: Project) -> pipeline.Plan:
    """Every run of rl would run."""
    drawn = pipeline.look(project, pipeline.Request(("rl@grpo-0", "rl@grape-0")), Deaf())
    assert drawn is not None
    return drawn


def gate(project: Project, wanted: bool | None, *sets: str) -> tuple[Rehearsals, Executor, StringIO]:
    """What lets runs begin, as for a run of the pipeline that comes to rl."""
    drawn, stream = planned(project), StringIO()
    params_file.set_values(project.params, sets)
    return Rehearsals(project, drawn, wanted), Executor(project, pipeline.Screen(stream), {}, "nonce"), stream


def test_stop_keeps_back_what_samples_and_nothing_else(project: Project) -> None:
    hooks, stream = Deaf(), StringIO()
    request = pipeline.Request(("rl",), workers=1, rehearsal=True)
    result = pipeline.run(project, request, pipeline.Threads(), pipeline.Screen(stream), hooks)
    said = stream.getvalue()
    ended = {stage: (outcome.status, outcome.code) for stage, outcome in result.outcomes.items() if stage.startswith("rl@")}
    assert ended == {"rl@grpo-0": ("stopped", 2), "rl@grape-0": ("stopped", 2), "rl@dpo-0": ("ran", 0)}, said
    assert result.exit_code == 2 and "Go on?" not in said
    assert said.count("two rounds first") == 1 and said.count("grape: error: rehearsal of grpo-0, grape-0") == 1
    assert "of the answers of SFT were cut at rl.max_new_tokens" in said and "`--no-rehearsal` goes on regardless" in said
    assert [each.passed for each in hooks.told] == [False] and result.as_json()["rehearsals"][0]["readings"]
    assert sorted(path.name for path in (project.root / "models/policy").iterdir()) == ["dpo-0"]
    assert not [*(project.state / "running").iterdir()]


def test_the_command_says_the_same_by_itself(project: Project) -> None:
    def called(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["rehearse", *arguments])

    stopped = called("--json")
    (told,) = json.loads(stopped.stdout)
    assert stopped.exit_code == 2 and not told["passed"] and told["runs"] == ["grpo-0", "grape-0"]
    assert {"answers cut": "stop"}.items() <= {reading["name"]: reading["level"] for reading in told["readings"]}.items()
    params_file.set_values(project.params, ["rl.algorithms=[dpo]"])
    nothing = called()
    assert nothing.exit_code == 0 and "nothing to rehearse" in nothing.stdout
    params_file.set_values(project.params, SETS[:1])


def test_the_command_wants_what_rl_reads_to_be_up_to_date(project: Project) -> None:
    params_file.set_values(project.params, ["sft.learning_rate=0.5"])
    with pytest.raises(GrapeError, match="stage sft: it is not up to date(.|\n)*grape run --rehearsal"):
        examine(project)
    params_file.set_values(project.params, ["sft.learning_rate=5.0e-4"])


def test_runs_begin_after_a_rehearsal_that_passed_and_it_is_not_repeated(project: Project) -> None:
    shutil.copytree(project.state / "ending", project.root / "models/sft", dirs_exist_ok=True)
    rehearsals, executor, stream = gate(project, True, "rl.max_new_tokens=32")
    given: list[Outcome | None] = []
    threads = [
        threading.Thread(target=lambda stage=stage: given.append(rehearsals.before(executor, stage)))
        for stage in ("rl@grpo-0", "rl@grape-0", "rl@dpo-0")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = stream.getvalue()
    assert given == [None, None, None] and said.count("two rounds first") == 1, said
    assert "[rehearsal@" in said and "answers cut" in said and rehearsals.held[0].passed
    again, executor, stream = gate(project, True, "rl.learning_rate=0.02")
    assert again.before(executor, "rl@grpo-0") is None and "two rounds" not in stream.getvalue()
    assert "rehearsed before" in stream.getvalue() and again.held == rehearsals.held


def test_none_without_a_wish_before_a_short_run_and_none_against_it(project: Project) -> None:
    for wanted in (None, False):
        rehearsals, executor, stream = gate(project, wanted, "rl.samples=4")
        assert rehearsals.before(executor, "rl@grpo-0") is None and not stream.getvalue() and not rehearsals.held


def test_an_interruption_ends_it(project: Project) -> None:
    rehearsals, executor, _ = gate(project, True, "rl.temperature=0.5")
    given: list[Outcome | None] = []
    thread = threading.Thread(target=lambda: given.append(rehearsals.before(executor, "rl@grpo-0")))
    thread.start()
    record = project.state / "running" / "rehearsal@grpo-0.json"
    until(record.exists)
    executor.stop(interrupted=True)
    thread.join()
    assert given == [Outcome("rl@grpo-0", "stopped")] and not record.exists() and not rehearsals.held


def test_somebody_at_a_terminal_is_asked_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, agreed in ((b"y\n", True), (b"\n", False), (b"no\n", False)):
        here, there = pty.openpty()
        with os.fdopen(there, closefd=True) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            os.write(here, typed)
            stream = StringIO()
            executor = Executor(project, pipeline.Screen(stream), {}, "nonce")
            assert rehearsal._agreed(executor) is agreed and stream.getvalue().count("Go on? [y/N]") == 1
            executor.stop(interrupted=True)
            assert rehearsal._agreed(executor) is False, "Ctrl-C is an answer, too"
        os.close(here)


def test_a_run_is_long_by_its_tokens_and_the_size_of_its_model(tmp_path: Path) -> None:
    """The default world is not, nor with three seeds; SmolLM2-135M is, and so is what only a hub knows."""
    project, folder = Project(tmp_path), tmp_path / "models/sft"
    shutil.copy(ROOT / "params.yaml", tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(1_600_000)
    assert expected(project, 1) < expected(project, 3) < LONG < expected(project, 18)
    sets = ["rl.steps=20", "rl.prompts=8", "rl.samples=6", "rl.max_new_tokens=56"]
    params_file.set_values(project.params, sets)
    assert expected(project, 1) < 10
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(538_000_000)
    assert LONG < expected(project, 1) < 1000
    for budget, at_most in (("seconds: 100", 100), ("samples: 10", 10), ("tokens: 100", 10), ("updates: 1", 100)):
        params_file.set_values(project.params, [f"rl.budget={{{budget}}}"])
        assert 0 < expected(project, 1) <= at_most < expected(project, 100)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "same_as.json").write_text('{"model": "org/name", "revision": "abc"}')
    assert expected(project, 1) == float("inf")


def test_the_table_says_who_stopped_what() -> None:
    graph = dvc.Graph({"rl@grpo-0": (), "evaluate@grpo-0": ("rl@grpo-0",)})
    outcomes = {
        "rl@grpo-0": Outcome("rl@grpo-0", "stopped", code=2, because="the rehearsal"),
        "evaluate@grpo-0": Outcome("evaluate@grpo-0", "blocked", because="the rehearsal"),
    }
    rows = [" ".join(row.split()) for row in closing.table(graph, outcomes, {})]
    assert rows[1:] == ["rl@grpo-0 stopped by the rehearsal", "evaluate@grpo-0 blocked after the rehearsal failed"]
