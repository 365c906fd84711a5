"""Every algorithm against a trajectory that was written down: a change of an equation moves it, a change of speed must not.

`python -m tests.learning.test_pinned` writes pinned.json anew, after a change that is meant to move it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from grape.algorithms import grape, grpo, ppo, reinforce
from tests.learning import test_learning as learning

FILE = Path(__file__).with_name("pinned.json")
ROUNDS = 3
PINNED = ("loss", "grad_norm", "reward", "entropy", "accuracy")
NAMES = list(learning.VARIANTS)

# Two ways to say the same, which must give the same numbers.
EQUIVALENT: dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]] = {
    "a clip that never binds and one pass are the plain policy gradient": (
        (grpo, grpo.GRPOParams(advantage="leave_one_out", aggregation="dr_grpo", length=1)),
        (reinforce, reinforce.ReinforceParams()),
    ),
    "the tokens of the round and of its only mini-batch are the same tokens": (
        (grpo, grpo.GRPOParams(aggregation="dapo")),
        (grpo, grpo.GRPOParams(aggregation="bnpo")),
    ),
    "one item judged with certainty is GRPO": (
        (grape, grape.GRAPEParams(advantage="mean_std", aggregation="grpo")),
        (grpo, grpo.GRPOParams()),
    ),
    "a dual clip out of reach is none": (
        (ppo, ppo.PPOParams(value_init="policy", dual_clip=1e6)),
        (ppo, ppo.PPOParams(value_init="policy")),
    ),
}


def trajectory(name: str, folder: Path) -> list[dict[str, float]]:
    # Barely warmed up: after many updates the last bits of another machine would have grown into other samples.
    history = learning.learn(name, learning.start(steps=25), folder, rounds=ROUNDS)
    return [{key: row[key] for key in PINNED if key in row} for row in history]


@pytest.mark.parametrize("name", NAMES)
def test_the_trajectory_is_the_one_written_down(name: str, tmp_path: Path) -> None:
    expected = json.loads(FILE.read_text())[name]
    found = trajectory(name, tmp_path)
    assert len(found) == len(expected) == ROUNDS
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        # PPO with a head differs by 0.57 % in its gradient norm between two kinds of processors.
        assert row == pytest.approx(wanted, rel=1e-2 if name == "ppo-head" else 5e-3, abs=2e-4)


@pytest.mark.parametrize("what", EQUIVALENT)
def test_equivalent_configurations_have_one_trajectory(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for module, params in EQUIVALENT[what]:
        monkeypatch.setitem(learning.VARIANTS, "one", (module, params))
        found.append(trajectory("one", tmp_path))
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def rounded(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: round(value, 6) for key, value in row.items()} for row in rows]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        pinned = {name: rounded(trajectory(name, Path(scratch) / name)) for name in NAMES}
    FILE.write_text(json.dumps(pinned, indent=1) + "\n")
