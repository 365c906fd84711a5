"""Copies of a project that trials run in: nothing of the project is written through them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from grape.errors import GrapeError
from grape.project import Project
from grape.tune import workspace


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Project:
    here = tmp_path / "project"
    here.mkdir()
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(root / name, here / name)
    for name in ("rubrics", "inputs"):
        shutil.copytree(root / name, here / name)
    shutil.copytree(root / "algorithms", here / "algorithms", symlinks=True)
    shutil.copytree(root / "grape", here / "grape", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data/prompts/train.jsonl", "models/sft/model.safetensors", "secret.txt", "dvc.lock"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    return Project(here)


def made(project: Project, text: str | None = None) -> Project:
    place = workspace.folder(project) / "base"
    return workspace.make(project, place, project.root / ".dvc" / "cache", text or project.params.read_text())


def test_a_copy_has_what_stages_read_and_nothing_that_they_make(project: Project) -> None:
    here = made(project)
    assert (here.root / "grape" / "cli.py").is_file() and (here.root / "rubrics" / "courtesy.yaml").is_file()
    assert (here.root / "algorithms" / "grpo.py").resolve() == here.root / "grape" / "algorithms" / "grpo.py"
    assert not any((here.root / name).exists() for name in ("data", "models", "reports", "secret.txt", ".git"))
    assert str(project.root / ".dvc" / "cache") in (here.root / ".dvc" / "config").read_text()


def test_files_are_not_there_twice(project: Project) -> None:
    here = made(project)
    assert (here.root / "grape" / "cli.py").samefile(project.root / "grape" / "cli.py")


def test_what_is_written_in_place_is_a_copy(project: Project) -> None:
    """DVC opens dvc.lock and writes into it."""
    here = made(project, "seed: 1\n" + project.params.read_text().partition("seed: 0")[2])
    before = {name: (project.root / name).read_bytes() for name in ("dvc.lock", "params.yaml")}
    for name in before:
        with (here.root / name).open("a") as file:
            file.write("# trial\n")
    assert {name: (project.root / name).read_bytes() for name in before} == before


def test_a_trial_is_a_copy_of_a_copy_and_goes_with_its_results(project: Project) -> None:
    base = made(project)
    (base.root / "models" / "sft").mkdir(parents=True)
    (base.root / "models" / "sft" / "model.safetensors").write_text("weights")
    place = workspace.folder(project) / "trials" / "grpo-0"
    trial = workspace.make(project, place, Path("/cache"), base.params.read_text(), base)
    assert (trial.root / "models" / "sft" / "model.safetensors").samefile(base.root / "models" / "sft" / "model.safetensors")
    workspace.remove(place)
    assert (base.root / "models" / "sft" / "model.safetensors").read_text() == "weights"
    assert (project.root / "grape" / "cli.py").is_file()


def test_answers_are_kept_for_all_trials_and_checkpoints_for_their_own(project: Project) -> None:
    here = made(project)
    (here.state / "answers" / "one.json").write_text("{}")
    (here.checkpoints / "rl@grpo-1000").mkdir(parents=True)
    here = made(project)
    assert (project.state / "answers" / "one.json").is_file() and not (project.state / "checkpoints").exists()
    assert (here.checkpoints / "rl@grpo-1000").is_dir(), "a trial that was cut off goes on from its checkpoint"


def test_a_file_that_went_is_not_left_from_before(project: Project) -> None:
    (project.root / "rubrics" / "more.txt").write_text("")
    made(project)
    (project.root / "rubrics" / "more.txt").unlink()
    assert not (made(project).root / "rubrics" / "more.txt").exists()


def test_links_out_of_the_project_still_lead_there(project: Project, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text("shared")
    os.symlink("../../shared.yaml", project.root / "rubrics" / "shared.txt")
    assert (made(project).root / "rubrics" / "shared.txt").read_text() == "shared"


def test_a_path_out_of_the_project_is_refused_unless_absolute(project: Project, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = project.params.read_text()
    project.params.write_text(text.replace("base: scratch ", "base: ../model "))
    with pytest.raises(GrapeError, match="../model lies outside the project"):
        made(project)
    project.params.write_text(text.replace("base: scratch ", f"base: {tmp_path}/model "))
    made(project)


def test_old_trials_are_swept_but_not_those_that_go_on(project: Project) -> None:
    trials = workspace.folder(project) / "trials"
    for name in ("grpo-0", "grpo-1"):
        (trials / name / "data").mkdir(parents=True)
    workspace.sweep(project, [trials / "grpo-1"])
    assert [path.name for path in trials.iterdir()] == ["grpo-1"]
