"""The lineage: from dvc.lock and receipts alone, and what of it is no longer so."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grape import dvc
from grape.cli import app
from grape.export.lineage import ABOUT, Records, hub_data, of_path
from grape.files import write_json
from grape.project import Project
from grape.track import digest
from tests.export.conftest import record, run

POLICY = "models/policy/grpo-0"


def trace(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["trace", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_a_policy_is_followed_back_to_every_data_set(whole: Project) -> None:
    found = trace(POLICY)
    assert found == trace("rl@grpo-0") == trace(f"{POLICY}/model.safetensors") and found["problems"] == []
    names = [stage["stage"] for stage in found["stages"]]
    assert names[0] == "rl@grpo-0" and set(names) == {"rl@grpo-0", "critic", "sft", "base", "prepare"}  # it reads no pair
    place = {name: i for i, name in enumerate(names)}
    for stage in found["stages"]:
        assert all(place[maker] > place[stage["stage"]] for item in stage["inputs"] for maker in item["made_by"])
        assert {item["path"]: item["md5"] for item in stage["inputs"]}.keys() == {
            dep["path"] for dep in dvc.read_lock(whole.root / "dvc.lock")[stage["stage"]]["deps"]
        } - stage["code"].keys()
        receipt = json.loads(whole.receipt(stage["stage"]).read_text())
        assert stage["params"] == receipt["params"] and stage["run"]["spool"] == receipt["spool"]
    assert found["artifact"]["md5"] == digest.computed(whole.root / POLICY)
    sources = {source["path"]: source for source in found["sources"]}
    assert set(sources) == {
        "grape/world.py",
        "rubrics",
        "inputs/model.base",
        "inputs/critic.judge.model",
        "inputs/evaluate.benchmarks.folder",
    }
    assert sources["grape/world.py"]["md5"] == digest.computed(whole.root / "grape/world.py")
    one = next(whole.root.glob("rubrics/*.yaml"))
    assert sources["rubrics"]["files"][one.name] == digest.computed(one)


def test_what_has_changed_since_is_said(project: Project) -> None:
    (project.root / "rubrics/new.yaml").write_text("version: 1\n")
    with (project.root / "data/sft/train.jsonl").open("a") as file:
        file.write("\n")
    shutil.rmtree(project.root / "models/critic")
    receipt = project.receipt("sft")
    receipt.write_text(receipt.read_text().replace('"seed": 0', '"seed": 1'))
    (project.root / "grape/sampling/own.py").write_text("# edited\n")
    found = trace(POLICY, code=1)
    said = "\n".join(found["problems"])
    for words in (
        "data/sft is no longer",
        "models/critic is not on disk",
        "rubrics is no longer",
        "sft: its receipt is not the one",
    ):
        assert words in said, said
    rl = found["stages"][0]
    assert rl["code_changed"] == ["grape/sampling"] and POLICY not in said
    text = CliRunner().invoke(app, ["trace", POLICY])
    assert "models/critic" in text.stdout and "1 changed since" in text.stdout and text.exit_code == 1


def test_an_input_that_was_made_anew_is_not_taken_for_the_one_that_was_read(project: Project) -> None:
    before = trace("models/reward")["stages"]
    with (project.root / "data/preferences/train.jsonl").open("a") as file:
        file.write("\n")
    record(project, "preferences")
    reward = trace("models/reward", code=1)["stages"][0]
    item = next(item for item in reward["inputs"] if item["path"] == "data/preferences")
    assert item["state"] == "remade" and item["made_by"] == ["preferences"]
    assert item["md5"] == next(i["md5"] for i in before[0]["inputs"] if i["path"] == "data/preferences")


def test_a_run_of_mlflow_is_found_by_its_id(project: Project) -> None:
    """A receipt may know its run by the spool alone; the project's own database says which run that became."""
    spool, run_id = json.loads(project.receipt("sft").read_text())["spool"], "0123456789abcdef" * 2
    with sqlite3.connect(project.state / "mlflow.db") as database:
        database.execute("CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT)")
        database.execute("INSERT INTO tags VALUES ('grape.spool', ?, ?)", (spool, run_id))
    database.close()
    found = trace(run_id)
    assert found["artifact"]["path"] == "models/sft" and found["stages"][0]["run"]["run_id"] == run_id
    result = CliRunner().invoke(app, ["trace", "f" * 32])
    assert result.exit_code == 2 and "no receipt is of the run" in result.stderr


def test_an_exported_folder_carries_its_lineage(whole: Project, tmp_path: Path, monkeypatch: Any) -> None:
    lineage = of_path(Records(whole), "models/sft")
    place = tmp_path / "out"
    shutil.copytree(whole.root / "models/sft", place)
    files = {path.name: digest.computed(path) for path in place.iterdir()}
    write_json(place / ABOUT, {"stage": "sft", "dtype": "float32", "replay": "8 of 8", "files": files, "lineage": lineage})
    monkeypatch.chdir(tmp_path)  # outside of any project
    found = trace(str(place))
    assert found["stages"] == lineage["stages"] and found["exported"]["replay"] == "8 of 8"
    (place / "config.json").write_text("{}")
    assert trace(str(place), code=1)["problems"] == ["config.json is no longer what was exported"]
    (place / ABOUT).write_text("{}")
    result = CliRunner().invoke(app, ["trace", str(place)])
    assert result.exit_code == 2 and "not what `grape export` writes" in result.stderr


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("models/policy/ppo-9", "nothing here is called"),
        ("params.yaml", "no stage made params.yaml"),
        ("rl@ppo-0", "nothing here is"),
    ],
)
def test_what_nobody_made_is_refused(whole: Project, what: str, message: str) -> None:
    result = CliRunner().invoke(app, ["trace", what])
    assert result.exit_code == 2 and message in result.stderr


def test_a_damaged_lock_is_refused(project: Project) -> None:
    lock = project.root / "dvc.lock"
    lock.write_text(lock.read_text()[:-40])
    result = CliRunner().invoke(app, ["trace", POLICY])
    assert result.exit_code == 2 and "dvc.lock: cannot be read" in result.stderr


def test_the_files_of_a_folder_of_ones_own_are_named(project: Project) -> None:
    from grape import params as params_file

    folder = project.root / "mine"
    folder.mkdir()
    for name in ("prompts", "sft"):
        source = {"prompts": "prompts/train", "sft": "sft/train"}[name]
        shutil.copy(project.root / f"data/{source}.jsonl", folder / f"{name}.jsonl")
    shutil.copy(project.root / "data/corpus/train.jsonl", folder / "corpus.jsonl")
    params_file.set_values(project.params, ["prepare.source=mine"])
    run(project, "prepare")
    lock = project.root / "dvc.lock"
    lock.write_text(lock.read_text().replace("grape/world.py", "mine"))
    found = trace("prepare", code=1)  # the md5 of the world stands there still
    assert "mine is no longer what it was" in found["problems"][0]
    stage = dvc.read_lock(lock)["prepare"]
    old = next(dep["md5"] for dep in stage["deps"] if dep["path"] == "mine")
    lock.write_text(lock.read_text().replace(old, digest.computed(folder)))
    sources = {source["path"]: source for source in trace("prepare")["sources"]}
    assert sources["mine"]["files"] == {path.name: digest.computed(path) for path in folder.iterdir()}


def test_data_sets_of_the_hub_are_named_with_their_commit() -> None:
    given = {
        "prompts": {"hub": "openai/gsm8k", "config": "main", "split": "train", "revision": "a" * 40},
        "sft": {"file": "sft.jsonl"},
    }
    assert hub_data({"params": {"prepare": {"files": given}}}) == {"prompts": f"openai/gsm8k at {'a' * 40}, split train"}
    assert hub_data({"params": {"prepare.files": {"sft": "sft.jsonl"}}}) == {}
