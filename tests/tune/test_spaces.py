"""What is tried of which knobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grape.algorithms import ALGORITHMS
from grape.errors import GrapeError
from grape.params import edited, load
from grape.schema import Params
from grape.slot import SFT
from grape.tune import spaces
from grape.tune.spaces import DEFAULTS, OneOf, Range


@pytest.fixture
def params(root: Path) -> Params:
    return load(root / "params.yaml")


TUNED = [SFT, *ALGORITHMS]


@pytest.mark.parametrize("name", TUNED)
def test_every_algorithm_has_a_space_within_the_ranges_of_its_knobs(params: Params, name: str) -> None:
    """Both ends of every range and every choice are values that the schema takes, with the default of all else."""
    check = spaces.KnobCheck.of(params, name)
    for knob, dimension in DEFAULTS[name].items():
        check.knob(knob, name)
        for value in dimension.ends:
            check.value(knob, value, name)
        assert len(set(dimension.ends)) > 1


def test_no_space_is_of_an_algorithm_that_is_not_there() -> None:
    assert [*DEFAULTS] == TUNED


def test_equal_chances_begin_with_spaces_of_like_size() -> None:
    assert {len(space) for space in DEFAULTS.values()} <= {3, 4}


@pytest.mark.parametrize("name", TUNED)
def test_the_present_settings_lie_within(params: Params, name: str) -> None:
    space = spaces.of(params, name)
    for knob, value in spaces.present(params, name, space).items():
        found = space[knob]
        assert value in found.options if isinstance(found, OneOf) else found.low <= value <= found.high, knob


def test_a_space_is_widened_to_the_present_settings(root: Path) -> None:
    params = edited(root / "params.yaml", ["algorithms.grpo.learning_rate=0.1", "algorithms.grpo.advantage=batch"])[1]
    space = spaces.of(params, "grpo")
    assert space["learning_rate"] == Range(5.0e-5, 0.1, log=True)
    assert space["advantage"] == OneOf(("batch", "group", "leave_one_out"))


def test_a_rate_that_comes_from_elsewhere_is_written_out(params: Params) -> None:
    assert spaces.present(params, "grpo", ["learning_rate"]) == {"learning_rate": params.rl.learning_rate}


def test_an_algorithm_of_ones_own_is_tried_with_other_rates(root: Path) -> None:
    text = ["algorithms.rloo.use=algorithms.rloo:ALGORITHM", "rl.algorithms=[rloo]"]
    params = edited(root / "params.yaml", text)[1]
    assert spaces.of(params, "rloo").keys() == {"learning_rate"}


def test_the_knobs_of_sft_stand_in_its_section(root: Path) -> None:
    params = edited(root / "params.yaml", ["sft.learning_rate=0.02"])[1]
    assert spaces.section(SFT) == "sft" and spaces.section("grpo") == "algorithms.grpo"
    assert spaces.present(params, SFT, ["learning_rate", "turns"]) == {"learning_rate": 0.02, "turns": "all"}
    assert spaces.of(params, SFT)["learning_rate"] == Range(5.0e-5, 0.02, log=True)


def test_rounds_stay_as_large_as_they_will_be(params: Params) -> None:
    """TRPO's twelve rounds of 48: a quarter of the budget is three of them, not twelve small ones."""
    assert params.algorithm("trpo").rounds == 12  # type: ignore[attr-defined]
    assert spaces.scaled(params, "trpo", {"delta": 0.1}, 12) == {"delta": 0.1, "rounds": 3}
    assert [spaces.scaled(params, "trpo", {}, steps)["rounds"] for steps in (48, 24, 15, 13, 1)] == [12, 6, 3, 1, 1], (
        "evenly spread"
    )
    assert spaces.scaled(params, "grpo", {"beta": 0.1}, 12) == {"beta": 0.1}


def test_spaces_of_ones_own(params: Params, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "grpo:\n  learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}\n  epochs: {low: 1, high: 4}\n  kl: [loss_k3, loss_k2]\n"
    )
    space = spaces.of(params, "grpo", spaces.read(file, ["grpo"]), file.name)
    assert space == {"learning_rate": Range(1e-5, 1e-3, True), "epochs": Range(1, 4), "kl": OneOf(("loss_k3", "loss_k2"))}
    assert space["epochs"].whole and not space["learning_rate"].whole  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grpo: {clip_hihg: [0.1, 0.2]}", "did you mean 'clip_high'"),
        ("grpo: {clip_low: {low: 0.1, high: 1.5}}", "grpo.clip_low: 1.5"),
        ("grpo: {advantage: [group, median]}", "'median'"),
        ("grpo: {advantage: []}", "nothing to choose from"),
        ("grpo: {clip_low: {low: 0.3, high: 0.1}}", "0.3 to 0.1 is no range"),
        ("grpo: {clip_low: {low: 0.1, high: high}}", "0.1 to high is no range"),
        ("grpo: {beta: {low: 0, high: 1, log: true}}", "0 to 1 is no range"),
        ("grpo: {clip_low: {low: 0.1, high: 0.2, step: 0.1}}", "nothing to choose from"),
        ("grpo: {epochs: {low: 1.5, high: 2.5}}", "1.5"),
        ("grpo: {}", "grpo is not a mapping of knobs"),
        ("sft: {steps: [30, 60]}", "sft.steps: it is the budget"),
        ("sft: {batch_size: {low: 8, high: 64}}", "sft.batch_size: it is the budget"),
        ("sft: {warmup_steps: [0, 5]}", "sft.warmup_steps: it is the budget"),
        ("sft: {rate: [0.1, 0.2]}", "sft.rate: there is no such knob"),
        ("sft: {weight_decay: [0.1, -1.0]}", "sft.weight_decay: -1.0"),
        ("ppo: {lam: [0.9, 1.0]}", "'ppo' is not tuned here"),
        ("[grpo]", "not a mapping of algorithms"),
        ("", "not a mapping of algorithms"),
        ("grpo: {a: [1, 2}", "not valid YAML"),
    ],
)
def test_spaces_that_are_refused(params: Params, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(GrapeError) as refusal:
        name = SFT if text.startswith(SFT) else "grpo"
        spaces.of(params, name, spaces.read(file, [name]), file.name)
    assert said in str(refusal.value) and "mine.yaml" in str(refusal.value) and refusal.value.mend


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GrapeError, match="cannot be read"):
        spaces.read(tmp_path / "none.yaml", ["grpo"])


@pytest.mark.parametrize("value", [None, True, "auto"])
def test_a_range_around_what_is_no_number(value: Any) -> None:
    assert Range(0.1, 0.3).holding(value) == OneOf((value, 0.1, 0.3))
