"""Calibration of any backend's evidence, held out; and the settings that say which backend it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from grape.errors import GrapeError
from grape.reward.critics.calibration import (
    Calibration,
    Isotonic,
    calibrate,
    ece_floor,
    expected_calibration_error,
    fit_calibration,
    measured,
)
from grape.reward.critics.judge import CACHE, Judge, load_critic, make_critic
from grape.reward.critics.logits import certainty
from grape.reward.critics.openai import ServerCritic


def judge(n: int, slope: float = 3.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-odds that are `slope` times too large, and labels from the true ones."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(n, generator=generator) * 2
    return slope * true, (torch.rand(n, generator=generator) < torch.sigmoid(true)).long()


def sure_of_all(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A judge that is bent, not only stretched: nine in ten of its verdicts are 95 % sure, and little more than half are right."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, generator=generator) < 0.5).long()
    right = torch.rand(n, generator=generator) < 0.6
    verdict = torch.where(right, label, 1 - label)
    z = (2.0 * verdict - 1) * 3 + 0.2 * torch.randn(n, generator=generator)
    return z + 2, label


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@pytest.mark.parametrize("made", [judge, sure_of_all])
def test_held_out_the_ece_falls_to_what_luck_leaves(method: Any, made: Any) -> None:
    z, label = made(8000)
    names = ["a/b"] * 4000 + ["a/c"] * 4000
    fit, measure = [i for i in range(8000) if i % 2], [i for i in range(8000) if i % 2 == 0]
    calibration, report = calibrate(names, z, label, fit, measure, method)
    assert set(calibration.items) == {"", "a/b", "a/c"}
    for prefix in ("", "a/b/", "a/c/"):
        assert report[f"{prefix}ece_before"] > 0.1 and report[f"{prefix}ece"] < report[f"{prefix}ece_floor"] + 0.03
        assert report[f"{prefix}brier"] < report[f"{prefix}brier_before"]
    assert report["judged"] == 4000 and report["missing"] == 0
    assert report["agreement"] >= report["agreement_before"] - 0.01


def test_agreement_and_ece_are_of_the_held_out_judgements_alone() -> None:
    z, label = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0]), torch.tensor([1, 0, 1, 0, 0])
    _, report = calibrate(["a/b"] * 5, z, label, [0, 1], [2, 3, 4])
    assert report["agreement_before"] == pytest.approx(2 / 3) and report["judged"] == 3
    p = 1 / (1 + math.exp(-2))
    # three judgements, one per bin: 1 - p(yes) where right, p(yes) where wrong
    assert report["ece_before"] == pytest.approx(((1 - p) + (1 - p) + p) / 3, abs=1e-6)


def test_missing_judgements_are_counted_and_left_out() -> None:
    z, label = judge(400)
    z[::4] = torch.nan
    halves = list(range(200)), list(range(200, 400))
    calibration, report = calibrate(["a/b"] * 400, z, label, *halves)
    there = torch.isfinite(z)
    clean, same = calibrate(["a/b"] * 300, z[there], label[there], list(range(150)), list(range(150, 300)))
    assert clean.items == calibration.items and (report["judged"], report["missing"]) == (150, 50)
    assert {**same, "missing": 50.0} == report
    assert calibration.apply(["a/b"] * 400, z).isnan().tolist() == (~there).tolist()


def test_nothing_held_out_reports_nothing_and_nothing_fitted_changes_nothing() -> None:
    z, label = judge(20)
    assert calibrate(["a/b"] * 20, z, label, range(20), [])[1] == {"judged": 0.0, "missing": 0.0}
    calibration, report = calibrate(["a/b"] * 20, z, label, [], range(20))
    assert calibration.items == {} and report["ece"] == report["ece_before"]
    assert Calibration({}).apply([], torch.tensor([])).shape == (0,)


@pytest.mark.parametrize(("z", "label"), [
    (torch.zeros(2000), torch.arange(2000) % 2), (torch.full((2000,), 7.0), (torch.arange(2000) % 4 == 0).long()),
    (torch.linspace(-9, 9, 2000), (torch.arange(2000) >= 1000).long()),
    (torch.linspace(9, -9, 2000), (torch.arange(2000) >= 1000).long()),
])  # fmt: skip
@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_constant_separable_and_reversed_judges_are_no_trouble(z: torch.Tensor, label: torch.Tensor, method: Any) -> None:
    p = fit_calibration(["a/b"] * 2000, z, label, method=method).apply(["a/b"] * 2000, z)
    assert bool(((p >= 0) & (p <= 1)).all())
    assert method == "platt" or bool(((p > 0) & (p < 1)).all()), "steps of labels of one kind are no proof of certainty"
    assert float(p.mean()) == pytest.approx(float(label.float().mean()), abs=0.02)


def test_isotonic_keeps_the_order_and_needs_many_labels() -> None:
    z, label = judge(3000)
    names = ["a/many"] * 2500 + ["a/few"] * 500
    calibration = fit_calibration(names, z, label, method="isotonic")
    kinds = {name: isinstance(curve, Isotonic) for name, curve in calibration.items.items()}
    assert kinds == {"": True, "a/many": True, "a/few": False}
    grid = torch.linspace(-30, 30, 500)
    assert bool((calibration.apply(["a/many"] * 500, grid).diff() >= 0).all())


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    z, label = judge(3000)
    made = fit_calibration(["a/b"] * 2900 + ["a/c"] * 100, z, label, method="isotonic")
    made.write(tmp_path)
    assert Calibration.read(tmp_path) == made and not list(tmp_path.glob("*.partial"))
    (tmp_path / "calibration.json").write_text('{"": [0.5, 1], "a/b": {"x": [0, 1], "y": [0.2, 0.4]}}')
    read = Calibration.read(tmp_path)
    assert read.apply(["a/b"] * 4, torch.tensor([-5, 0.5, 1, 5])).tolist() == pytest.approx([0.2, 0.3, 0.4, 0.4])
    assert read.apply(["other"], torch.tensor([0.0])).item() == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("text", [
    "[]", '{"": 1}', '{"": [1]}', '{"": [1, "a"]}', '{"": [1, NaN]}', '{"": {"x": [1]}}', '{"": {"x": [1, 0], "y": [0, 1]}}',
    '{"": {"x": [0, 1], "y": [1, 0]}}', '{"": {"x": [0, 1], "y": [0, 2]}}',
    '{"": {"x": [], "y": []}}', '{"": {"x": [0], "y": [0, 1]}}',
    '{"": null}',
])  # fmt: skip
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(GrapeError, match="calibration"):
        Calibration.read(tmp_path)


def test_the_floor_is_the_ece_of_a_calibrated_judge() -> None:
    z, label = judge(500, slope=1.0)
    p = torch.sigmoid(z)
    floor = ece_floor(p)
    assert 0.015 < floor < 0.05 and floor == ece_floor(p), "about 0.03 with 500 labels, and no draw of luck"
    assert expected_calibration_error(p, label) < 2 * floor
    assert ece_floor(torch.sigmoid(judge(8000)[0])) < floor / 2


def test_per_item_numbers_are_of_the_item() -> None:
    z, label = torch.tensor([3.0, 3.0, -3.0, 3.0]), torch.tensor([1, 1, 1, 0])
    report = measured(["a/x", "a/x", "a/y", "a/y"], z, label, Calibration({}))
    assert report["a/x/agreement"] == 1 and report["a/y/agreement"] == 0 and report["agreement"] == 0.5


def test_certainty_is_a_chance_or_a_margin() -> None:
    p = torch.tensor([0.0, 0.5, 0.9])
    assert certainty(p, "right").tolist() == pytest.approx([1, 0.5, 0.9])
    assert certainty(p, "margin").tolist() == pytest.approx([1, 0, 0.8])
    assert np.isnan(certainty(torch.tensor([math.nan]), "right").item())


def test_the_settings_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(backend="openai", model="m", url="http://127.0.0.1:9/v1", key="MY_KEY", extra={"seed": 1}, temperature=0.5)
    monkeypatch.setenv("MY_KEY", "sk-never-on-disk")
    judge.write(tmp_path)
    Calibration({"": (2.0, 0.0)}).write(tmp_path)
    assert Judge.read(tmp_path) == judge
    monkeypatch.setenv("GRAPE_CRITIC_CONCURRENCY", "3")
    monkeypatch.setenv("GRAPE_CRITIC_TIMEOUT", "0.5")
    critic = load_critic(tmp_path, tmp_path)
    assert isinstance(critic, ServerCritic) and critic.cache is not None and critic.cache.folder == tmp_path / CACHE
    assert (critic.endpoint.concurrency, critic.endpoint.timeout, critic.endpoint.attempts) == (3, 0.5, 5)
    assert critic.options == {"temperature": 0.5, "max_tokens": 512, "seed": 1} and critic.calibration.items == {"": (2.0, 0.0)}
    assert "never" not in "".join(path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize("given", [
    {"backend": "local"}, {"backend": "openai"}, {"model": "m"}, {"backend": "guess"}, {"key": "a b"}, {"temperature": -1},
    {"temperature": math.nan}, {"max_tokens": 0}, {"confidence": "high"}, {"score": "hard"}, {"calibration": "none"},
    {"api_key": "sk-1"},
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Judge.model_validate(given)


@pytest.mark.parametrize("text", ["{", '{"backend": "local"}', "[]", '{"unknown": 1}'])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "judge.json").write_text(text)
    with pytest.raises(GrapeError, match="judge.json"):
        Judge.read(tmp_path)


@pytest.mark.parametrize("value", ["0", "-1", "many", "nan", "inf"])
def test_what_the_machine_says_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GRAPE_CRITIC_CONCURRENCY", value)
    judge = Judge(backend="openai", model="m", url="http://127.0.0.1:9/v1")
    with pytest.raises(GrapeError, match="GRAPE_CRITIC_CONCURRENCY"):
        make_critic(judge, Calibration({}), tmp_path, tmp_path)
