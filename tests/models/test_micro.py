"""The size of micro-batches: what the environment says, what was measured before, what is measured now."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from grape import memory
from grape.errors import GrapeError
from grape.models import micro, shared
from grape.models.encode import collate
from grape.models.forward import language
from grape.types import Batch
from tests import tiny


def rows() -> Batch:
    return Batch.of(collate([([5 + i % 7, 6, 7], [8] * 29) for i in range(128)], 0))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(micro, "LARGE", 0)
    monkeypatch.setattr(shared, "_known", type(shared._known)())
    monkeypatch.delenv(micro.VARIABLE, raising=False)
    return tiny.model()


def asked(model: Any, folder: Path, **facts: object) -> micro.Chosen:
    return micro.chosen(model, partial(language, model), rows, folder, {"stage": "sft", **facts})


def test_what_was_measured_is_kept_and_changes_nothing(large: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, state = [p.clone() for p in large.parameters()], torch.get_rng_state()
    seconds = iter([1.0, 1.0, 1.0, 0.9, 5.0, 5.0])  # of 512, 1024 and 2048 tokens, twice each
    real = micro.seconds
    monkeypatch.setattr(micro, "seconds", lambda *given: (real(*given), next(seconds))[1])
    assert asked(large, tmp_path) == (1024, "measured")
    (file,) = tmp_path.iterdir()
    assert list(json.loads(file.read_text())["tokens_per_second"]) == ["512", "1024", "2048"]
    assert asked(large, tmp_path) == (1024, "measured")  # nothing is left to be measured with
    for parameter, was in zip(large.parameters(), before, strict=True):
        assert torch.equal(parameter, was) and parameter.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="StopIteration"):  # it is measured again
        asked(large, tmp_path, stage="rl")


def test_no_more_is_measured_than_there_are_rows_and_memory_for(large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "seconds", lambda forward, part: 1.0)
    packed = shared.share(large, rows())
    assert max(micro.measured(large, partial(language, large), packed)) == 4096  # all of the rows are in it
    few = packed.select(torch.arange(80))
    kept = micro._kept(large, partial(language, large), few)
    monkeypatch.setattr(memory, "free_bytes", lambda device: kept)
    assert max(micro.measured(large, partial(language, large), packed)) == 1024  # half of it


def test_the_environment_decides_and_small_models_have_a_fixed_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(micro.VARIABLE, raising=False)
    assert asked(tiny.model(), tmp_path) == (1024, "fixed") and micro.fixed() == 1024
    monkeypatch.setenv(micro.VARIABLE, "300")
    assert asked(tiny.model(), tmp_path) == (300, "environment") and micro.fixed() == 300
    for odd in ("0", "-5", "many", "1e3", "\u0663"):
        monkeypatch.setenv(micro.VARIABLE, odd)
        with pytest.raises(GrapeError, match=micro.VARIABLE):
            micro.fixed()
    assert not list(tmp_path.iterdir())
