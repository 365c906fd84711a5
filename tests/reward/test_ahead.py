"""Judges that are asked while the policy still writes: the same scores, each question once, and what happens when one fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grape.reward.critics.ahead import Ahead, waiting
from grape.reward.critics.panel import PanelCritic
from grape.reward.rubric import load_rubric
from grape.reward.source import RubricReward
from grape.types import Response
from tests import tiny
from tests.reward.critic_server import Reply, benches, by_length, honest

RUBRIC = """version: 1
category: sums
items:
  - {id: right, question: Is it right?, kind: verify, verifier: numeric}
  - {id: kind, question: Is it kind?, kind: critic}
  - {id: brief, question: Is it brief?, kind: critic}
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with benches(monkeypatch) as start:
        yield start


def source(folder: Path, critic: Any) -> RubricReward:
    (folder / "sums.yaml").write_text(RUBRIC)
    return RubricReward({"sums": load_rubric(folder / "sums.yaml")}, critic)


def responses(*texts: str) -> list[Response]:
    prompt = tiny.prompt("3 + 5?", "sums", "8")
    return [Response(prompt, i, (1,), text, True) for i, text in enumerate(texts)]


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_was_asked_ahead_is_not_asked_again_and_scores_are_the_same(bench: Any, tmp_path: Path) -> None:
    given = responses("8", "it is 8", "no idea", "8")
    plain = source(tmp_path, bench(by_length).critic())(given)
    b = bench(by_length)
    scored = source(tmp_path, b.critic(cache=tmp_path / "kept"))
    with scored.ahead() as told:
        assert told is not None
        told(given[1])
        until(lambda: len(b.server.bodies) == 2)  # both items of it, while the others are still being written
        for one in (given[0], given[2]):
            told(one)
        until(lambda: len(b.server.bodies) == 6)
    found = scored(given)
    assert len(b.server.bodies) == 6, "a question was asked twice"
    assert found.score.equal(plain.score) and found.confidence.equal(plain.confidence) and found.reasons == plain.reasons


def test_at_the_end_what_is_under_way_is_waited_for_and_the_rest_is_left_to_scoring(bench: Any, tmp_path: Path) -> None:
    gate = threading.Event()

    def slow(body: Any, number: int) -> Reply:
        gate.wait(20)
        return honest(body)

    b = bench(slow)
    scored, given = source(tmp_path, b.critic(cache=tmp_path / "kept")), responses("1", "2", "3")
    with scored.ahead() as told:
        assert told is not None
        told(given[0])
        until(lambda: b.server.now == 2)
        told(given[1])
        threading.Timer(0.2, gate.set).start()
    assert len(b.server.bodies) == 2  # the block ended when they were answered
    assert bool(scored(given).valid.all()) and len(b.server.bodies) == 6


@pytest.mark.parametrize("failing", [lambda *_: Reply(b"gone", status=404), lambda *_: Reply(b"no reply")])
def test_a_judge_that_fails_is_left_to_scoring(bench: Any, tmp_path: Path, failing: Any) -> None:
    b = bench(failing)
    scored, given = source(tmp_path, b.critic(cache=tmp_path / "kept")), responses("1", "2")
    with scored.ahead() as told:
        assert isinstance(told, Ahead)
        told(given[0])
        told._thread.join(20)
        assert not told._thread.is_alive(), "it would ask about every answer, and every one would fail"
        told(given[1])
    found = scored(given)
    assert found.valid[:, 0].all() and not found.valid[:, 1:].any() and "server" in found.reasons[0][1]


def test_an_interruption_waits_for_no_server(bench: Any, tmp_path: Path) -> None:
    b = bench(lambda *_: Reply(b"gone", status=404))
    b.server.script = lambda *_: b.server.hang()
    scored = source(tmp_path, b.critic(cache=tmp_path / "kept"))
    with pytest.raises(KeyboardInterrupt), scored.ahead() as told:
        assert isinstance(told, Ahead)
        told(responses("1")[0])
        until(lambda: b.server.now > 0)
        raise KeyboardInterrupt
    assert told._thread.is_alive() and told._thread.daemon
    b.server.released.set()


def test_only_judges_who_wait_and_keep_are_asked(bench: Any, tmp_path: Path) -> None:
    b = bench(honest)
    kept, forgetful = b.critic(cache=tmp_path / "kept"), b.critic()
    local = tiny_critic()
    assert waiting(PanelCritic({"a": kept, "b": forgetful, "c": local})) == [kept]
    for critic in (forgetful, local):
        with source(tmp_path, critic).ahead() as told:
            assert told is None
    with RubricReward({}).ahead() as told:
        assert told is None


def tiny_critic() -> Any:
    from grape.reward.critics.calibration import Calibration
    from grape.reward.critics.logits import trained_critic

    return trained_critic(tiny.model(), tiny.chat(), Calibration({}), 4096, "float32")
