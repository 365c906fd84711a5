"""dvc.yaml against params.yaml: a knob that no stage declares would change results without anything being re-run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from grape import dvc, needed
from grape.commands import init
from grape.needed import REASONS, card
from grape.project import Project

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> Any:
    return YAML(typ="safe").load((ROOT / name).read_text(encoding="utf-8"))


DAG, PARAMS = dvc.stages(Project(ROOT)), load("params.yaml")


def declared(stage: str) -> set[str]:
    return set(DAG[stage]["params"])


def test_there_is_one_pipeline() -> None:
    """DVC reads every dvc.yaml below the project, and a second one would be part of ours, or break it."""
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    tracked = [path for path in found if path.rpartition("/")[2] == "dvc.yaml" or path.endswith(".dvc")]
    assert tracked == ["dvc.yaml"]
    for ignored in ((ROOT / ".dvcignore").read_text(), init.DVCIGNORE):
        assert "/.grape/" in ignored.splitlines(), "copies of the project that trials run in are there"


def test_every_rl_knob_is_a_parameter_of_rl() -> None:
    knobs = {f"rl.{name}" for name in PARAMS["rl"]} - {"rl.algorithms", "rl.seeds"}
    assert {name for name in declared("rl") if name.startswith("rl.")} == knobs
    assert "algorithms.${item.algorithm}" in declared("rl")


def test_every_reward_knob_is_a_parameter_of_reward_but_when_it_is_made() -> None:
    """The card `inputs/reward` has the answer to that: another setting with the same answer trains nothing again."""
    knobs = {f"reward.{name}" for name in PARAMS["reward"]}
    assert {name for name in declared("reward") if name.startswith("reward.")} == knobs - {"reward.when"}


def test_what_may_be_left_out_depends_on_its_card_and_nothing_else_does() -> None:
    cards = {
        (stage, dep) for stage, entry in DAG.items() for dep in entry["deps"] if dep.split("/")[-1] in REASONS and "inputs" in dep
    }
    assert cards == {(stage, f"inputs/{stage}") for stage in REASONS}
    assert all((ROOT / path).read_text() == card(stage, ()) for stage, path in cards)  # as params.yaml has it


def test_the_cards_of_the_checkout_are_true() -> None:
    """Else the first run would leave git a changed file."""
    project = Project(ROOT)
    before = {path: path.read_bytes() for path in (ROOT / "inputs").rglob("*") if path.is_file()}
    assert not needed.write(project, needed.unneeded(project))
    assert {ROOT / path for path in (needed.RUNS, *needed.WITHOUT.values())} <= before.keys()


def test_every_stage_declares_its_own_section() -> None:
    for stage in DAG.keys() - {"rl", "reward", "evaluate", "test"}:
        assert stage in declared(stage), stage
    knobs = {f"evaluate.{name}" for name in PARAMS["evaluate"]} - {"evaluate.benchmarks"}
    assert {name for name in declared("evaluate") if name.startswith("evaluate")} == knobs
    assert "evaluate" in declared("test")


def test_every_declared_parameter_exists() -> None:
    for stage in DAG:
        for key in declared(stage) - {"algorithms.${item.algorithm}"}:
            value = PARAMS
            for part in key.split("."):
                assert part in value, f"{stage}: {key}"
                value = value[part]


def test_every_listed_code_file_exists() -> None:
    for stage, entry in DAG.items():
        for path in entry["deps"]:
            if path.startswith("grape/"):
                names = [path.replace("${item.algorithm}", name) for name in PARAMS["rl"]["algorithms"]]
                assert all((ROOT / name).exists() for name in names), f"{stage}: {path}"


def test_every_stage_leaves_a_receipt_that_nobody_depends_on() -> None:
    for stage, entry in DAG.items():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in entry["outs"]]
        assert any(out.startswith(f"reports/receipts/{stage}") for out in outs), stage
        assert not any(dep.startswith("reports/receipts") for dep in entry["deps"]), stage


def test_machine_facts_stay_out_of_commands() -> None:
    for entry in DAG.values():
        assert not any(word in entry["cmd"] for word in ("--device", "--worker", "--port", "--thread"))
