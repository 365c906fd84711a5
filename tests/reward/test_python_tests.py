"""A sandbox that is too weak, or fails, is a missing score, never a zero."""

from __future__ import annotations

import subprocess

import pytest

from grape.errors import GrapeError
from grape.reward.rubric import Item, Rubric
from grape.reward.source import RubricReward
from grape.reward.verdict import Undecidable
from grape.reward.verifiers import build, python_tests
from grape.sandbox import tiers
from grape.sandbox.run import run
from grape.types import Response
from tests import tiny
from tests.sandbox import machine


def weak(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = tiers.Tier(name, {"read": False}, {"namespaces": "unshare: refused"})  # type: ignore[arg-type]
    monkeypatch.setattr(python_tests, "tier", lambda: found)


def test_a_tier_that_is_too_low_is_a_missing_score_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = machine.weakest_that_runs()
    weak(monkeypatch, "process")
    prompt, code = tiny.prompt("q", answer=machine.ADD), "def add(a, b): return a + b"
    with pytest.raises(Undecidable, match="tier 'process'.*read.*unshare: refused") as caught:
        build("python_tests", {})(prompt, code)
    assert caught.value.mend is not None and "allow_weak" in caught.value.mend
    monkeypatch.setattr(python_tests, "run", lambda source, calls, mechanism, limits: run(source, calls, runs, limits))
    assert build("python_tests", {"allow_weak": True})(prompt, code) == 1
    weak(monkeypatch, "none")
    with pytest.raises(Undecidable, match="none"):
        build("python_tests", {"allow_weak": True})(prompt, code)


def test_a_machine_out_of_processes_is_a_missing_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(python_tests, "tier", lambda: tiers.Tier("namespaces", dict.fromkeys(tiers.CANARIES, True)))
    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(Undecidable, match="temporarily unavailable"):
        build("python_tests", {})(tiny.prompt("q", answer=machine.ADD), "def add(a, b): return a + b")


def test_the_rubric_gives_a_missing_score_and_refuses_bad_cases_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item(id="works", question="Does it work?", kind="verify", verifier="python_tests")
    source = RubricReward({"code": Rubric(version=1, category="code", items=(item,))})
    weak(monkeypatch, "process")
    response = Response(tiny.prompt("q", "code", machine.ADD), 0, (2,), "def add(a, b): return a + b", True)
    scores = source([response])
    assert not scores.valid.any() and "tier 'process'" in scores.reasons[0][0]
    with pytest.raises(GrapeError, match="tier 'process'"):
        source.check([response.prompt])
    with pytest.raises(GrapeError, match="no strict JSON"):
        source.check([tiny.prompt("q", "code", "42 or so")])
