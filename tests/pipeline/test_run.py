"""A run brings everything up to date, runs nothing twice, and says what it does."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from grape.errors import GrapeError
from grape.pipeline.schedule import Threads, Work
from tests.pipeline.harness import Toy

ALL = ("first", "branch@left", "branch@right", "last")


class Idle:
    """An engine that must not be needed."""

    def prepare(self, project: object) -> None:
        raise AssertionError("there was nothing to do")

    def __call__(self, work: Work) -> None:
        raise AssertionError("there was nothing to do")

    def close(self) -> None: ...


def test_a_fresh_clone_runs_everything(fresh: Toy) -> None:
    result = fresh.run()
    assert fresh.statuses(result) == dict.fromkeys(ALL, "ran")
    assert result.exit_code == 0
    assert fresh.dvc_status() == {}
    assert "prepared this repository for DVC" in fresh.said
    assert "first         will run: it never ran here" in fresh.said
    assert {fresh.receipt(stage)["nonce"] for stage in ALL} == {fresh.receipt("first")["nonce"]}
    assert fresh.receipt("last")["parent"] == "parent"
    assert "[branch@left] made out/branch/left" in fresh.said
    assert "made out/branch/left" in (fresh.project.state / "logs" / "branch@left.log").read_text()


def test_the_second_time_nothing_runs(toy: Toy) -> None:
    result = toy.run(engine=Idle())
    assert result.plan is None and result.exit_code == 0
    assert "everything is up to date" in toy.said


def test_what_dvc_repro_did_is_up_to_date(fresh: Toy) -> None:
    from grape import dvc

    dvc.ask(fresh.project, "init", "--quiet").answer()
    dvc.ask(fresh.project, "repro", "--quiet").answer()
    assert fresh.run(engine=Idle()).plan is None


def test_one_knob_runs_its_branch_and_what_follows(toy: Toy) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    result = toy.run()
    assert toy.statuses(result) == {"first": "cached", "branch@left": "ran", "branch@right": "cached", "last": "ran"}
    assert "branch@left   will run: knobs.left.high 0.3 -> 0.4" in toy.said
    assert "branch@right  up to date" in toy.said
    assert "last          follows: after branch@left" in toy.said

    toy.edit("high: 0.4", "high: 0.3")
    back = toy.run()
    assert toy.statuses(back) == dict.fromkeys(ALL, "cached")
    assert toy.dvc_status() == {}


def test_a_branch_that_was_dropped_and_comes_back_is_a_cache_hit(toy: Toy) -> None:
    toy.edit("[left, right]", "[left]")
    assert toy.statuses(toy.run()) == {"first": "cached", "branch@left": "cached", "last": "ran"}
    toy.edit("[left]", "[left, right]")
    assert toy.statuses(toy.run()) == dict.fromkeys(ALL, "cached")


def test_set_edits_the_parameters_first(toy: Toy) -> None:
    result = toy.run(sets=("high: 0.3=>high: 0.5",))
    assert toy.statuses(result)["branch@left"] == "ran"
    assert "high: 0.5" in (toy.root / "params.yaml").read_text()


def test_what_comes_out_the_same_stops_there(toy: Toy) -> None:
    (toy.root / "code" / "left.txt").write_text("another wording\n")
    result = toy.run()
    assert "branch@left   will run: code/left.txt changed" in toy.said
    assert toy.statuses(result) == {"first": "cached", "branch@left": "ran", "branch@right": "cached", "last": "cached"}


def test_one_target_runs_with_what_it_needs(fresh: Toy) -> None:
    result = fresh.run("branch@right")
    assert fresh.statuses(result) == {"first": "ran", "branch@right": "ran"}
    both = fresh.run("branch")
    assert fresh.statuses(both) == {"first": "cached", "branch@left": "ran", "branch@right": "cached"}


def test_an_unknown_target_is_refused(toy: Toy) -> None:
    with pytest.raises(GrapeError, match="no stage 'brunch'.*\n.*branch@left"):
        toy.run("brunch", engine=Idle())


def test_deleted_results_come_back_from_the_cache(toy: Toy) -> None:
    receipts = {stage: toy.receipt(stage) for stage in ALL}
    shutil.rmtree(toy.root / "out")
    shutil.rmtree(toy.root / "reports")
    result = toy.run()
    assert "first         will be restored: out/first is not here" in toy.said
    assert toy.statuses(result) == dict.fromkeys(ALL, "cached")
    assert {stage: toy.receipt(stage) for stage in ALL} == receipts
    assert toy.dvc_status() == {}


def test_a_damaged_result_is_restored(toy: Toy) -> None:
    path = toy.root / "out" / "first"
    whole = path.read_text()
    path.unlink()
    path.write_text(whole[:3])
    result = toy.run()
    assert "first         will be restored: out/first is damaged or was edited" in toy.said
    assert path.read_text() == whole
    assert toy.statuses(result) == dict.fromkeys(ALL, "cached")


def test_without_the_cache_the_plan_explains(toy: Toy) -> None:
    shutil.rmtree(toy.root / "out")
    shutil.rmtree(toy.root / ".dvc" / "cache")
    result = toy.run()
    assert "out/first is not in DVC's cache (a fresh clone?" in toy.said
    assert toy.statuses(result) == dict.fromkeys(ALL, "ran")


def test_a_failing_branch_leaves_the_other_alone(toy: Toy) -> None:
    toy.edit("  value: 1\nknobs", "  value: 2\nknobs")
    toy.order("branch@left", "fail")
    result = toy.run()
    assert toy.statuses(result) == {"first": "cached", "branch@left": "failed", "branch@right": "ran", "last": "blocked"}
    assert result.exit_code == 1
    assert "after branch@left failed" in toy.said
    assert "    the toy broke" in toy.said and ".grape/logs/branch@left.log" in toy.said
    toy.release()
    again = toy.run()
    assert toy.statuses(again) == {"first": "cached", "branch@left": "ran", "branch@right": "cached", "last": "ran"}


def test_a_stage_that_refuses_its_input_gives_code_2(toy: Toy) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    toy.order("branch@left", "refuse")
    assert toy.run().exit_code == 2


def test_invalid_parameters_change_nothing(toy: Toy) -> None:
    (toy.root / "params.yaml").write_text("broken: 1\n")
    lock = (toy.root / "dvc.lock").read_bytes()
    with pytest.raises(GrapeError, match=r"params\.yaml:1"):
        toy.run(engine=Idle())
    assert (toy.root / "dvc.lock").read_bytes() == lock


def test_an_edit_during_the_run_is_told(toy: Toy) -> None:
    class Editing(Threads):
        def __call__(self, work: Work) -> None:
            super().__call__(work)
            toy.edit("low: 0.2", "low: 0.15")

    toy.edit("high: 0.3", "high: 0.4")
    result = toy.run(engine=Editing())
    assert result.changed_since and "was something edited while it ran?" in toy.said


def test_without_git_nothing_is_begun(fresh: Toy) -> None:
    shutil.rmtree(fresh.root / ".git")
    with pytest.raises(GrapeError, match="not a git repository"):
        fresh.run(engine=Idle())
    assert not (fresh.root / ".dvc").exists()


def test_a_full_disk_is_refused(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPE_MIN_FREE_MB", "1e12")
    with pytest.raises(GrapeError, match="MB are free"):
        toy.run(engine=Idle())


def test_a_sub_folder_of_a_repository_becomes_its_own_project(fresh: Toy) -> None:
    shutil.rmtree(fresh.root / ".git")
    subprocess.run(["git", "init", "--quiet"], cwd=fresh.root.parent, check=True)
    assert fresh.run("first").exit_code == 0
