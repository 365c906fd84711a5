"""Which settings are tried next, and that a kill changes nothing about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from grape.project import sqlite_address
from grape.tune.spaces import Knobs, OneOf, Range
from grape.tune.study import RANDOM, Study
from grape.tune.trial import TrialEnd

SPACE = {"learning_rate": Range(1e-5, 1e-2, log=True), "epochs": Range(1, 4), "length": OneOf((None, 32))}
NOW: Knobs = {"learning_rate": 0.00030000001, "epochs": 1, "length": None}


def opened(folder: Path, key: int = 0, now: Knobs = NOW) -> Study:
    return Study.open(sqlite_address("sqlite", folder / "studies.db"), "grpo-1", "grpo", SPACE, now, (key, "tune"))


def go(study: Study, trials: int) -> list[Knobs]:
    """Run so many, better with a smaller rate."""
    drawn = []
    for _ in range(trials):
        asked = study.ask()
        drawn.append(study.knobs(asked))
        study.tell(asked, TrialEnd("complete", 1 - float(drawn[-1]["learning_rate"] or 0), "gold"))
    return drawn


def test_the_first_trial_is_the_present_settings_to_the_last_digit(tmp_path: Path) -> None:
    assert go(opened(tmp_path), 2)[0] == NOW


def test_drawn_numbers_are_what_params_yaml_will_say(tmp_path: Path) -> None:
    rates = [float(knobs["learning_rate"] or 0) for knobs in go(opened(tmp_path), 6)[1:]]
    assert all(rate == float(f"{rate:.4g}") for rate in rates) and len(set(rates)) == 5
    study = opened(tmp_path)
    best = study.best()
    assert best is not None and float(study.settled(best.params)["learning_rate"] or 0) == min(rates + [0.00030000001])


def test_a_study_that_was_cut_off_goes_on_as_it_would_have_gone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    straight = go(opened(tmp_path / "one"), RANDOM + 4)
    first = go(opened(tmp_path / "two"), RANDOM + 1)
    again = opened(tmp_path / "two")
    assert len(again.ended) == RANDOM + 1
    assert first + go(again, 3) == straight


def test_what_was_running_is_run_again_with_the_settings_it_had(tmp_path: Path) -> None:
    study = opened(tmp_path)
    go(study, 1)
    asked = study.ask()
    had = study.knobs(asked)
    again = opened(tmp_path)
    (begun,) = again.begun()
    assert begun.number == 1 and again.knobs(begun) == had
    again.tell(begun, TrialEnd("complete", 0.5, "gold"))
    assert not again.begun() and again.counts() == {"complete": 2, "pruned": 0, "failed": 0}


def test_a_kill_before_anything_was_drawn(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    straight = go(opened(tmp_path / "one"), 2)
    study = opened(tmp_path / "two")
    go(study, 1)
    study.ask()
    again = opened(tmp_path / "two")
    assert again.knobs(again.begun()[0]) == straight[1]


def test_a_stopped_trial_stays_begun(tmp_path: Path) -> None:
    study = opened(tmp_path)
    asked = study.ask()
    study.knobs(asked)
    study.tell(asked, TrialEnd("stopped"))
    assert not study.ended and len(opened(tmp_path).begun()) == 1


def test_settings_that_were_edited_since_are_tried_too(tmp_path: Path) -> None:
    go(opened(tmp_path), 2)
    edited: Knobs = {**NOW, "epochs": 3}
    assert go(opened(tmp_path, now=edited), 1) == [edited]


def test_another_seed_draws_other_settings(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert go(opened(tmp_path / "one"), 3)[1:] != go(opened(tmp_path / "two", key=1), 3)[1:]


def test_what_lies_below_the_median_of_the_others_is_hopeless(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for value in (0.4, 0.5, 0.6, 0.7):
        asked = study.ask()
        study.knobs(asked)
        assert not study.report(asked)((3, value)), "nothing is pruned before there are others to compare with"
        study.tell(asked, TrialEnd("complete", value, "gold"))
    poor, good = study.ask(), study.ask()
    for asked in (poor, good):
        study.knobs(asked)
    assert study.report(poor)((3, 0.45)) and not study.report(good)((3, 0.65))
    study.tell(poor, TrialEnd("pruned", 0.45))
    assert study.counts() == {"complete": 4, "pruned": 1, "failed": 0} and study.scores() == [0.4, 0.5, 0.6, 0.7]
    best = study.best()
    assert best is not None and best.value == 0.7


def test_the_present_settings_are_never_pruned(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for value in (0.4, 0.5, 0.6, 0.7):
        asked = study.ask()
        study.knobs(asked)
        study.report(asked)((3, value))
        study.tell(asked, TrialEnd("complete", value, "gold"))
    edited = opened(tmp_path, now={**NOW, "epochs": 3})
    asked = edited.ask()
    edited.knobs(asked)
    assert not edited.report(asked)((3, 0.0))


def test_a_point_that_is_told_again_after_a_kill_changes_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    study = opened(tmp_path)
    asked = study.ask()
    study.knobs(asked)
    study.report(asked)((3, 0.5))
    again = opened(tmp_path)
    again.report(again.begun()[0])((3, 0.5))
    assert not recwarn.list


def test_failed_trials_have_a_reason_and_no_score(tmp_path: Path) -> None:
    study = opened(tmp_path)
    asked = study.ask()
    study.knobs(asked)
    study.tell(asked, TrialEnd("failed", reason="rl@grpo-1000: no memory"))
    assert study.best() is None and study.ended[0].user_attrs["reason"] == "rl@grpo-1000: no memory"


def test_what_failed_is_tried_again_the_next_time_and_counts_once(tmp_path: Path) -> None:
    study = opened(tmp_path)
    go(study, 1)
    asked = study.ask()
    had = study.knobs(asked)
    study.tell(asked, TrialEnd("failed", reason="no memory"))
    again = opened(tmp_path)
    again.retry()
    assert len(again.ended) == 1, "it is yet to run"
    assert go(again, 1) == [had]
    assert again.counts() == {"complete": 2, "pruned": 0, "failed": 0}
    opened(tmp_path).retry()
    assert len(opened(tmp_path).ended) == 2
