"""`grape tune` for real, DVC, its run cache, Optuna and MLflow included; only what the stages compute is a toy.

The tests build on each other's state of one project, in the order they stand in.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from grape import tuned
from grape.commands import tune
from grape.errors import GrapeError
from grape.params import set_values
from grape.pipeline import Screen, preflight
from grape.project import Project
from grape.slot import SFT
from grape.tune import run
from grape.tune.search import Tuning
from grape.tune.study import Study
from tests.pipeline.harness import until
from tests.report.conftest import evaluation

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(900)  # some thirty dvc processes, on a machine that may be busy


class Tuned:
    """A project of the toy's, tuned from outside or in this process."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.project, self.switches = Project(folder / "project"), folder / "switches"
        self.environment = {"TOY_SWITCHES": str(self.switches), "PYTHONPATH": str(root)}
        here = self.project.root
        here.mkdir()
        self.switches.mkdir()
        shutil.copytree(root / "rubrics", here / "rubrics")
        shutil.copy(root / "params.yaml", here)
        shutil.copy(HERE / "toy.py", here)
        shutil.copy(HERE / "stages.yaml", here / "dvc.yaml")
        (here / "mine").mkdir()
        (here / "mine" / "evaluation.json").write_text(json.dumps(evaluation("grpo", 0, gold=True)))
        set_values(here / "params.yaml", ["prepare.source=mine", "reward.when=needed", "rl.algorithms=[grpo]"])
        (here / ".gitignore").write_text("/.grape/\n/data/\n/models/\n/reports/\n")
        subprocess.run(["git", "init", "--quiet"], cwd=here, check=True)

    def tune(self, algorithms: str, trials: int, seeds: str = "1000", workers: int = 1) -> str:
        """What was said on the screen."""
        os.environ.update(self.environment)
        said = io.StringIO()
        try:
            tune.tune(self.project, algorithms, trials, 0.25, seeds, workers, None, (), Screen(said))
        finally:
            self.said = said.getvalue()
        return self.said

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        env = os.environ | self.environment
        command = [sys.executable, "-m", "grape.cli", "tune", *arguments]
        return subprocess.Popen(command, cwd=self.project.root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ran(self, kind: str) -> list[str]:
        """What the toy was started for, as often as it was."""
        path = self.switches / "log"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line for line in lines if line.startswith(f"{kind} ")]

    def kept(self) -> dict[str, bytes]:
        return {name: (self.project.root / name).read_bytes() for name in ("params.yaml", "dvc.lock", "dvc.yaml")}

    def runs(self) -> list[tuple[Any, ...]]:
        """Of MLflow: name, state, score and the parent's name, in the order of time."""
        sql = (
            "select r.name, r.status, (select value from latest_metrics m where m.run_uuid = r.run_uuid and m.key = 'score'), "
            "(select p.name from runs p join tags t on t.value = p.run_uuid where t.run_uuid = r.run_uuid and "
            "t.key = 'mlflow.parentRunId') from runs r order by r.start_time"
        )
        with closing(sqlite3.connect(self.project.state / "mlflow.db")) as connection:
            return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return Tuned(tmp_path_factory.mktemp("tuned"), HERE.parents[1])


def test_a_killed_tuning_goes_on_where_it_was(toy: Tuned) -> None:
    (toy.switches / "slow").touch()
    process = toy.start("--algorithms", "grpo", "--trials", "2", "--workers", "1")
    until(lambda: len(toy.ran("rl")) == 2, patience=600)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (toy.switches / "slow").unlink()
    cut_off = toy.ran("rl")[1]

    said = toy.tune("grpo", 2)
    assert toy.ran("rl")[2:] == [cut_off], "the trial that was cut off has the settings it had, and no other is run again"
    assert "1 trials are there from before" in said and len(toy.ran("evaluate")) == 2
    found = tuned.read(toy.project.root)["grpo"]
    assert (found.complete, found.pruned, found.failed, found.steps, found.seeds) == (2, 0, 0, 12, [1000])
    assert {line.split()[3] for line in toy.ran("rl")} == {"12"}, "a quarter of the 48 rounds"


def test_settings_that_were_tried_before_train_nothing_and_more_trials_go_on(toy: Tuned) -> None:
    before, kept = toy.ran("rl"), toy.kept()
    (toy.project.state / "tune" / "studies.db").unlink()
    said = toy.tune("grpo,reinforce", 3, workers=2)
    new = toy.ran("rl")[len(before) :]
    assert sorted(line.split()[1] for line in new) == ["grpo", "reinforce", "reinforce", "reinforce"]
    assert said.count("from the cache") == 2, "DVC's run cache knows what Optuna has forgotten"
    first = next(line for line in new if "reinforce" in line)
    assert first.split()[2] == "0.0003" and "reinforce-0" in said, "the present settings come first"
    found = tuned.read(toy.project.root)
    assert {name: entry.trials for name, entry in found.items()} == {"grpo": 3, "reinforce": 3}
    assert all(entry.present == found["grpo"].present and entry.spread.best >= entry.present for entry in found.values())
    rate = float(found["grpo"].knobs["learning_rate"] or 0)
    assert max(found["grpo"].scores) == pytest.approx(0.5 - 0.1 * abs(math.log10(rate / 1e-3)), abs=1e-6)
    assert toy.kept() == kept, "neither the project's settings nor its dvc.lock change"
    assert not list((toy.project.state / "tune" / "trials").iterdir()), "a trial's copy goes when it has ended"


def test_mlflow_has_a_run_of_every_trial_below_the_tuning(toy: Tuned) -> None:
    runs = {name: (status, score, parent) for name, status, score, parent in toy.runs()}
    assert runs["tune"][0] == "FINISHED"
    found = tuned.read(toy.project.root)
    for name, entry in found.items():
        told = [runs[f"{name}-{number}"] for number in range(3)]
        assert [score for _, score, _ in told] == pytest.approx(entry.scores, abs=1e-6)
        assert {parent for _, _, parent in told} == {"tune"}


def test_sft_is_tuned_by_its_own_updates_and_scored_beside_the_projects_model(toy: Tuned) -> None:
    kept, others, model = toy.kept(), tuned.read(toy.project.root), (toy.project.root / "models/sft/weights.json").read_text()
    trained, evaluated = len(toy.ran("sft")), len(toy.ran("evaluate"))
    said = toy.tune("sft", 2, seeds="1000,1001")
    new = [line.split()[1:] for line in toy.ran("sft")[trained:]]
    assert [knobs[1:] for knobs in new] == [["15", "1", "1000"], ["15", "1", "1001"]] * 2, "a quarter of 60 updates"
    rates = [float(knobs[0]) for knobs in new[::2]]
    assert rates[0] == 5e-4 and rates == [float(knobs[0]) for knobs in new[1::2]]
    found = tuned.read(toy.project.root)
    scores = [0.5 - 0.1 * abs(math.log10(rate / 1e-3)) for rate in rates]
    assert found[SFT].scores == pytest.approx(scores, abs=1e-6) and found[SFT].present == found[SFT].scores[0]
    assert found[SFT].knobs["learning_rate"] == rates[scores.index(max(scores))] and found[SFT].steps == 15
    assert {name: found[name] for name in others} == others
    assert [line.split()[-1] for line in toy.ran("evaluate")[evaluated:]] == ["0.0005"] * 4, "beside the project's SFT model"
    assert toy.kept() == kept and (toy.project.root / "models/sft/weights.json").read_text() == model
    assert "15 of 60 updates of sft" in said and "sft-0" in said
    assert {status for name, status, _, _ in toy.runs() if name.startswith("sft-")} == {"FINISHED"}
    curves = "select r.name, m.value from metrics m join runs r on r.run_uuid = m.run_uuid where m.key = 'loss'"
    with closing(sqlite3.connect(toy.project.state / "mlflow.db")) as connection:
        assert sorted(connection.execute(curves).fetchall()) == [("sft-0", 2.0), ("sft-1", 2.0)]


def test_a_hopeless_trial_is_ended_and_a_score_that_is_no_number_fails_its_trial(
    toy: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy.switches / "slow").touch()
    (toy.switches / "nan-reinforce").touch()
    points: list[tuple[int, float]] = []
    monkeypatch.setattr(Study, "report", lambda self, trial: lambda point: trial.number > 0 and not points.append(point))
    before = len(toy.ran("evaluate"))
    with pytest.raises(GrapeError, match="not one of the 2 trials of reinforce has a score") as refusal:
        toy.tune("grpo,reinforce", 2, seeds="1001")
    (toy.switches / "slow").unlink()
    assert points == [(2, 0.1)] * 2 and "grpo-1  pruned at 0.1000 (proxy)" in toy.said
    assert len(toy.ran("evaluate")) == before + 2, "of a pruned trial nothing more is run"
    assert "policy.gold.mean" in str(refusal.value) and "reinforce-0  failed: no finite score" in toy.said
    found = tuned.read(toy.project.root)
    assert (found["grpo"].complete, found["grpo"].pruned, len(found["grpo"].scores)) == (1, 1, 1)
    assert found["grpo"].seeds == [1001] and found["reinforce"].seeds == [1000], "what was found stands, the rest as it was"
    assert [status for name, status, _, _ in toy.runs() if name == "reinforce-0"][-1] == "FAILED"


def test_the_test_prompts_were_never_read(toy: Tuned) -> None:
    assert not toy.ran("test") and toy.ran("rl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("grpo", 1, 1.5, "1000"), "1.5 is no share of the budget"),
        (("grpo", 1, 0.0, "1000"), "0.0 is no share"),
        (("grop", 1, 0.5, "1000"), "did you mean 'grpo'"),
        (("sft", 1, 0.5, "1000", 1, None, ("sft.steps=0",)), "there is no SFT to tune"),
        (("grpo", 1, 0.5, "one"), "cannot read 'one'"),
        (("grpo", 1, 0.5, "3,3"), "twice"),
    ],
)
def test_what_is_refused_before_anything_runs(toy: Tuned, arguments: tuple[Any, ...], said: str) -> None:
    before = len(toy.ran("prepare")) + len(toy.ran("rl"))
    with pytest.raises(GrapeError, match=said):
        tune.tune(toy.project, *arguments, *(1, None, ())[len(arguments) - 4 :], Screen(io.StringIO()))
    assert len(toy.ran("prepare")) + len(toy.ran("rl")) == before


def test_one_tuning_at_a_time(toy: Tuned) -> None:
    wanted = Tuning({"grpo": {}}, 1, 0.25, (1000,), 1)
    with preflight.lock(Project(toy.project.state / "tune"), print), pytest.raises(GrapeError, match="under way"):
        run.tune(toy.project, wanted, "", Screen(io.StringIO()))
