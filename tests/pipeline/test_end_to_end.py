"""grape's own pipeline in miniature: Prefect, DVC and MLflow together, in a copy of this checkout.

The tests build on each other's state of one project, in the order they stand in.
"""

from __future__ import annotations

import json
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
from ruamel.yaml import YAML

from grape import looks
from grape.closure import inert
from grape.needed import RUNS
from tests.architecture.test_closure import reached
from tests.pipeline.harness import until

pytestmark = pytest.mark.timeout(1800)  # eleven processes that import torch, on a machine that may be busy

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("grape", "flows", "rubrics", "algorithms", "inputs", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore")
MINIATURE = (
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.positions=128",
    "prepare.documents=300",
    "prepare.demonstrations=160",
    "prepare.prompts=60",
    "prepare.validation=8",
    "prepare.test=12",
    "prepare.judgements=160",
    "base.steps=4",
    "base.batch_size=16",
    "sft.steps=3",
    "sft.batch_size=16",
    "critic.steps=3",
    "critic.batch_size=16",
    "preferences.prompts=24",
    "preferences.samples=6",
    "preferences.margin=0.0",
    "reward.steps=3",
    "reward.batch_size=8",
    "rl.algorithms=[grpo, reinforce]",
    "rl.seeds=[0]",
    "rl.steps=2",
    "rl.prompts=4",
    "rl.samples=4",
    "rl.max_new_tokens=32",
    "rl.warmup_steps=1",
    "rl.checkpoint_every=1",
    "evaluate.samples=2",
    "report.samples=2",
)
STAGES = (
    "prepare",
    "base",
    "sft",
    "critic",
    "preferences",
    "reward",
    "rl@grpo-0",
    "rl@reinforce-0",
    "evaluate@grpo-0",
    "evaluate@reinforce-0",
    "test@grpo-0",
    "test@reinforce-0",
    "report",
)


class Copy:
    """A copy of the checkout, used from outside as a user does."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "project", folder / "home"
        self.home.mkdir(parents=True)
        self.root.mkdir()
        for name in PARTS:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                shutil.copy(source, self.root / name)
        subprocess.run(["git", "init", "--quiet"], cwd=self.root, check=True)
        self.env = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "OMP_NUM_THREADS", "PYTHONPATH")}
        self.env |= {"HOME": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}
        self.watched = folder / "watched"
        self.watched.mkdir()
        watch = {"PYTHONPATH": str(Path(__file__).with_name("watch")), "GRAPE_TEST_WATCH": str(self.watched)}
        self.watch = {**self.env, **watch}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self.watch,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def grape(self, *arguments: str) -> str:
        process = self.start("grape.cli", *arguments)
        out, _ = process.communicate()
        assert process.returncode == 0, out
        return out

    def dvc(self, *arguments: str) -> str:
        env = self.env | {
            "DVC_SITE_CACHE_DIR": str(self.root / ".grape" / "dvc"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=self.root, env=env, check=True, capture_output=True, text=True
        ).stdout

    def plan(self) -> dict[str, tuple[str, list[str]]]:
        plan = json.loads(self.grape("plan", "--json"))
        return {step["stage"]: (step["action"], step["reasons"]) for step in plan["stages"]}

    def receipt(self, stage: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / "reports" / "receipts" / f"{stage}.json").read_text())
        return value

    def query(self, database: str, sql: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.root / ".grape" / database)) as connection:
            return connection.execute(sql, values).fetchall()

    def parent(self) -> str:
        """MLflow's id of the latest pipeline run."""
        rows = self.query(
            "mlflow.db",
            "select r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid where "
            "t.key = 'grape.kind' and t.value = 'pipeline' order by r.start_time desc",
        )
        return str(rows[0][0])

    def headlines(self) -> dict[str, float]:
        return dict(self.query("mlflow.db", "select key, value from latest_metrics where run_uuid = ?", self.parent()))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("end_to_end"))


def test_one_command_runs_everything(copy: Copy) -> None:
    out = copy.grape("run", "pipeline", *(word for value in MINIATURE for word in ("--set", value)))
    assert all(f"{stage:<20}  ran" in out for stage in STAGES), out
    assert "is empty" not in out  # DVC's warning of an output without a byte
    assert copy.dvc("status", "--json").strip() == "{}"
    assert "# rollout-update rounds" in (copy.root / "params.yaml").read_text()  # --set keeps the comments
    metrics = json.loads((copy.root / "reports" / "metrics.json").read_text())
    assert set(metrics["policies"]) == {"grpo-0", "reinforce-0"}
    assert (copy.root / "reports" / "index.html").stat().st_size > 10_000
    assert (copy.root / "reports" / "report.md").is_file()


# Declared, and not looked at in this run; dvc.yaml says why.
OTHERS = {"preferences": {"data/labelled", "models/base"}, "reward": {"models/base"}, "rl": {"models/base"}}
# Read where others say so: of a model that is loaded.
UNASKED = {"prepare": {"model.revision"}, "base": {"model.revision", "model.quantise"}}
# Read by the process that runs any stage, before it comes to the stage.
BEFORE = reached("grape/stages/__main__.py") | {"params.yaml", "dvc.yaml", RUNS, "dvc.lock", ".dvcignore", "pyproject.toml"}

LOOKS = {looks.FILE, f"{looks.FILE}.partial"}  # a record of what was done, which no result depends on but the count of looks


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_opened_and_read_is_what_dvc_compares(copy: Copy, stage: str) -> None:
    seen = json.loads((copy.watched / f"{stage}.json").read_text())
    lock = YAML(typ="safe").load(copy.root / "dvc.lock")["stages"][stage]
    deps, outs = ([item["path"] for item in lock[kind]] for kind in ("deps", "outs"))
    mine = [Path(path).relative_to(copy.root) for path in seen["opened"] if Path(path).is_relative_to(copy.root)]
    opened = {path.as_posix() for path in mine if path.parts[0] not in (".grape", ".git", ".dvc") and path.suffix != ".pyc"}

    def below(path: str, roots: list[str]) -> bool:
        return any(path == root or path.startswith((f"{root}/", f"{root}.partial")) for root in roots)

    linked = [os.path.relpath(os.path.realpath(copy.root / dep), copy.root) for dep in deps]  # algorithms/NAME.py is one
    counted = LOOKS if stage.split("@")[0] in ("test", "report") else set()
    assert not {path for path in opened - BEFORE - counted if not below(path, deps + linked + outs) and not inert(path)}
    data = {dep for dep in deps if not dep.startswith("grape/")}
    assert {dep for dep in data if not any(below(path, [dep]) for path in opened)} == OTHERS.get(stage.split("@")[0], set())
    unread = {key for key in seen["declared"] if not any(f"{read}.".startswith(f"{key}.") for read in seen["read"])}
    assert unread == UNASKED.get(stage, set())


def test_prefect_saw_every_stage(copy: Copy) -> None:
    assert copy.query("prefect/prefect.db", "select state_name from flow_run") == [("Completed",)]
    tasks = dict(copy.query("prefect/prefect.db", "select name, state_name from task_run"))
    assert tasks == dict.fromkeys(STAGES, "Completed")


def test_mlflow_has_a_parent_with_a_child_per_stage(copy: Copy) -> None:
    parent = copy.parent()
    children = copy.query(
        "mlflow.db",
        "select r.name, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
        "where t.key = 'mlflow.parentRunId' and t.value = ?",
        parent,
    )
    assert dict(children) == dict.fromkeys(STAGES, "FINISHED")
    assert copy.query("mlflow.db", "select status from runs where run_uuid = ?", parent) == [("FINISHED",)]
    lock = YAML(typ="safe").load(copy.root / "dvc.lock")["stages"]
    known = {item["path"]: item["md5"] for stage in lock.values() for item in stage["deps"] + stage["outs"]}
    digests = dict(copy.query("mlflow.db", "select name, digest from datasets"))
    prompts = {f"data/prompts/{split}.jsonl" for split in ("train", "validation", "test")}
    assert {"data/corpus", "data/sft", "data/preferences", *prompts} <= digests.keys()
    assert {name: known[name] for name in digests} == digests


def test_a_policy_is_traced_to_its_data_with_every_run(copy: Copy) -> None:
    """By what DVC and MLflow have written themselves."""
    found = json.loads(copy.grape("trace", "models/policy/grpo-0", "--json"))
    assert found["problems"] == []
    runs = {stage["stage"]: stage["run"]["run_id"] for stage in found["stages"]}
    assert runs.keys() == set(STAGES[:7]) - {"preferences", "reward"}  # of which it reads nothing
    assert set(copy.query("mlflow.db", "select name, run_uuid from runs")) >= runs.items()


def test_the_numbers_of_evaluations_stand_on_the_pages_of_the_models(copy: Copy) -> None:
    rows = copy.query(
        "mlflow.db",
        "select t.tag_value, m.metric_value, m.dataset_name from logged_model_metrics m join logged_model_tags t "
        "on t.model_id = m.model_id where m.metric_name = 'test/policy' and t.tag_key = 'grape.path'",
    )
    own = {f"models/policy/{name}": copy.receipt(f"test@{name}")["headline"]["test/policy"] for name in ("grpo-0", "reinforce-0")}
    assert {path: value for path, value, _ in rows} == own and {name for *_, name in rows} == {"data/prompts/test.jsonl"}


def test_nothing_was_written_outside(copy: Copy) -> None:
    assert not list(copy.home.rglob("*"))
    tracked = subprocess.run(
        ["git", "status", "--short", "--untracked-files=all"], cwd=copy.root, check=True, capture_output=True, text=True
    ).stdout
    assert not [line for line in tracked.splitlines() if ".grape/" in line or "/.partial" in line]


def test_the_second_time_nothing_runs_for_either_tool(copy: Copy) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "grape.cli", "run", "pipeline", "--json"],
        cwd=copy.root,
        env=copy.env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(run.stdout) | {"seconds": 0} == {
        "up_to_date": True,
        "exit_code": 0,
        "seconds": 0,
        "plan": [],
        "stages": {},
        "changed_since": [],
        "rehearsals": [],
    }
    assert "everything is up to date" in run.stderr
    assert "Data and pipelines are up to date" in copy.dvc("repro")


def test_one_knob_concerns_its_algorithm_only(copy: Copy) -> None:
    copy.grape("run", "prepare", "--set", "algorithms.grpo.clip_low=0.1")  # runs nothing: prepare does not read it
    plan = copy.plan()
    assert plan["rl@grpo-0"] == ("run", ["algorithms.grpo.clip_low 0.2 -> 0.1"])
    assert plan["evaluate@grpo-0"] == ("check", ["after rl@grpo-0"])
    stages = {"rl@grpo-0", "evaluate@grpo-0", "test@grpo-0", "report"}
    assert {stage for stage, (action, _) in plan.items() if action != "ready"} == stages


def test_killed_in_the_middle_of_rl_and_all_models_deleted(copy: Copy) -> None:
    """In a run that needs no pair and no reward model, as neither GRPO nor REINFORCE reads one; the next has both again, and all
    that was there before, from the cache."""
    others = [stage for stage in STAGES if "grpo" not in stage and stage != "report"]
    before = {stage: copy.receipt(stage) for stage in others}
    run = copy.start("grape.cli", "run", "pipeline", "--engine", "dvc", "--workers", "1", "--set", "reward.when=needed")
    log = copy.root / ".grape" / "logs" / "rl@grpo-0.log"
    log.unlink()
    until(lambda: log.exists() and "1/2" in log.read_text())
    os.killpg(run.pid, signal.SIGKILL)
    out, _ = run.communicate()
    assert out.count("not needed: no algorithm") == 4 and "is empty" not in out  # the plan, and what the two stages say
    assert [path.name for path in (copy.root / "models/reward").iterdir()] == ["NOT_NEEDED.json"]
    assert "no algorithm" in copy.receipt("preferences")["facts"]["grape.not_needed"]
    shutil.rmtree(copy.root / "models")
    out = copy.grape("run", "pipeline", "--set", "reward.when=always")
    assert "rl@grpo-0             ran" in out and all(f"{stage:<20}  cached" in out for stage in others), out
    assert copy.dvc("status", "--json").strip() == "{}"
    assert copy.query("mlflow.db", "select name from runs where status = 'RUNNING'") == []
    assert {stage: copy.receipt(stage) for stage in others} == before
    headline, shown = before["rl@reinforce-0"]["headline"], copy.headlines()
    assert headline and {name: shown[f"rl/reinforce-0/{name}"] for name in headline} == headline
