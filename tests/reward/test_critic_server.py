"""The server critic against a real HTTP server that misbehaves: what is missing is missing, the rest is what it was."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import torch

from grape.reward.critics.openai import ServerCritic
from grape.reward.critics.transport import Endpoint, Exchange, Failure
from tests.reward.critic_server import (
    KEY,
    JudgeServer,
    Reply,
    answer_of,
    benches,
    by_length,
    chat,
    honest,
    judged,
    names,
    questions,
    verdict,
)  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with benches(monkeypatch) as start:
        yield start


def test_score_confidence_and_reason_are_the_judges(bench: Any) -> None:
    b = bench(by_length)
    verdicts = judged(b.critic(), "a", "bbb", "a", "")
    assert verdicts.score.tolist() == pytest.approx([0.01, 0.03, 0.01, 0.0])
    assert verdicts.confidence.tolist() == [0.5] * 4 and verdicts.reasons == ("my own",) * 4 and bool(verdicts.valid.all())
    assert len(b.server.bodies) == 3, "the same question is asked once"
    assert all(body["model"] == "judge" and body["temperature"] == 0 for body in b.server.bodies)
    assert {h["Authorization"] for h in b.server.headers} == {f"Bearer {KEY}"}


def test_the_items_system_prompt_is_the_judges(bench: Any) -> None:
    b = bench(honest)
    b.critic(extra={"seed": 3}).judge(names(1), questions("tea", system="You judge manners."))
    system, user = b.server.bodies[0]["messages"]
    assert system["role"] == "system" and system["content"].startswith("You judge manners.") and user["role"] == "user"
    assert user["content"].count("Is it polite?") == 2 and b.server.bodies[0]["seed"] == 3


def test_nothing_asked_nothing_done(bench: Any) -> None:
    b = bench(honest)
    assert judged(b.critic()).score.shape == (0,) and not b.server.bodies


def test_429_waits_as_long_as_asked_and_a_little_longer(bench: Any) -> None:
    b = bench(lambda body, n: Reply(b"busy", 429, {"Retry-After": "7"}) if n == 1 else honest(body))
    assert judged(b.critic(), "tea").score.tolist() == [0.25]
    assert len(b.waits) == 1 and 7 <= b.waits[0] <= 7.25


def test_retry_after_may_be_a_date(bench: Any) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    b = bench(lambda body, n: Reply(b"", 503, {"Retry-After": date}) if n == 1 else honest(body))
    assert bool(judged(b.critic(), "tea").valid) and 20 < b.waits[0] <= 30.3


@pytest.mark.parametrize(("given", "least"), [("soon", 0.5), ("-3", 0.5), ("nan", 0.5), ("", 0.5)])
def test_a_retry_after_that_makes_no_sense_is_not_obeyed(bench: Any, given: str, least: float) -> None:
    b = bench(lambda body, n: Reply(b"", 429, {"Retry-After": given}) if n == 1 else honest(body))
    assert bool(judged(b.critic(), "tea").valid) and least <= b.waits[0] <= 0.75


@pytest.mark.parametrize("given", ["3600", "inf"])
def test_a_server_that_asks_for_too_much_patience_is_not_asked_again(bench: Any, given: str) -> None:
    b = bench(lambda body, n: Reply(b"later", 429, {"Retry-After": given}))
    verdicts = judged(b.critic(), "tea")
    assert not verdicts.valid.any() and not b.waits and "asks for" in verdicts.reasons[0]


def test_pauses_double_and_do_not_come_in_step(bench: Any) -> None:
    b = bench(lambda body, n: Reply(b"oops", 500))
    verdicts = judged(b.critic(concurrency=1), "a", "b")
    assert len(b.server.bodies) == 10 and "HTTP 500" in verdicts.reasons[0] and "attempt 5" in verdicts.reasons[0]
    for waits in (b.waits[:4], b.waits[4:]):
        assert all(0.5 * 2**i <= wait <= 0.75 * 2**i for i, wait in enumerate(waits))
    assert b.waits[:4] != b.waits[4:]


def test_what_cannot_be_had_is_missing_and_never_0(bench: Any) -> None:
    b = bench(lambda body, n: Reply(b"oops", 500) if "bad" in answer_of(body) else by_length(body))
    critic = b.critic()
    verdicts = judged(critic, "good", "bad", "fine!")
    assert verdicts.valid.tolist() == [True, False, True] and math.isnan(verdicts.score[1]) and math.isnan(verdicts.evidence[1])
    assert verdicts.score[[0, 2]].tolist() == pytest.approx([0.04, 0.05]) and critic.counts["missing"] == 1


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_what_would_fail_again_is_not_tried_again(bench: Any, status: int) -> None:
    b = bench(lambda body, n: Reply(b"no", status, {"Location": "http://127.0.0.1:9/"}))
    assert not judged(b.critic(), "tea").valid.any() and len(b.server.bodies) == 1


def completion(message: Any) -> Reply:
    return Reply({"choices": [{"message": message, "finish_reason": "stop"}]})


@pytest.mark.parametrize("broken", [
    Reply(b"<html>gateway</html>"), Reply(b"[1]"), Reply(b""), Reply(b'{"choices": [{"mess'), Reply(honest, cut=True),
    Reply(drop=True), Reply({"error": "?"}), Reply({"choices": []}), Reply({"choices": [{"message": None}]}),
    completion({"content": None}), completion({"content": 3}), completion({"content": " "}), Reply(b"\xff\xfe{"),
    Reply(b"[" * 100_000), Reply(b"not gzip", headers={"Content-Encoding": "gzip"}),
])  # fmt: skip
def test_a_broken_answer_is_asked_for_again(bench: Any, broken: Reply) -> None:
    def script(body: Any, n: int) -> Reply:
        if n > 1:
            return honest(body)
        return Reply(honest(body).body, cut=True) if broken.cut else broken

    b = bench(script)
    assert judged(b.critic(), "tea").score.tolist() == [0.25] and len(b.server.bodies) == 2


def test_content_in_parts_is_read(bench: Any) -> None:
    b = bench(lambda body, n: chat([{"type": "text", "text": verdict(body)}, {"type": "image"}]))
    assert judged(b.critic(), "tea").score.tolist() == [0.25]


def test_a_hanging_server_is_left_after_the_timeout(bench: Any) -> None:
    b = bench(lambda body, n: b.server.hang() if n == 1 else honest(body))
    assert judged(b.critic(timeout=0.2), "tea").score.tolist() == [0.25]
    b = bench(lambda body, n: b.server.hang())
    assert "no answer within 0.05 s" in judged(b.critic(timeout=0.05, attempts=2), "tea").reasons[0]


def test_a_dripping_server_is_left_too(bench: Any) -> None:
    """Every piece comes in time, the whole does not: httpx alone would wait for ever."""
    b = bench(lambda body, n: Reply(parts=[b" "] * 50))
    hours = iter(range(0, 10**6, 3600))
    with Exchange(Endpoint(b.server.url, attempts=1), clock=lambda: float(next(hours))) as exchange:
        with pytest.raises(Failure, match="no whole answer"):
            exchange.post("/chat/completions", {"messages": []})


def test_an_endless_body_is_not_read_to_its_end(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.reward.critics.transport.LARGEST_BODY", 1000)
    b = bench(lambda body, n: Reply(b" " * 2000))
    assert "larger than" in judged(b.critic(attempts=1), "tea").reasons[0]


def test_answers_that_come_out_of_order_go_where_they_belong(bench: Any) -> None:
    later = threading.Event()

    def script(body: Any, n: int) -> Reply:
        if answer_of(body) == "first":
            assert later.wait(10)
        else:
            later.set()
        return by_length(body)

    b = bench(script)
    verdicts = judged(b.critic(concurrency=2), "first", "second one")
    assert verdicts.score.tolist() == pytest.approx([0.05, 0.10])


def test_as_many_requests_at_a_time_as_allowed_and_no_more(bench: Any) -> None:
    together = threading.Barrier(3)

    def script(body: Any, n: int) -> Reply:
        together.wait(10)  # passes only when three requests are there at once
        return honest(body)

    b = bench(script)
    assert bool(judged(b.critic(concurrency=3), *map(str, range(12))).valid.all())
    assert b.server.peak == 3 and len(b.server.bodies) == 12


def test_a_server_that_is_gone_does_not_cost_every_judgement_all_attempts(bench: Any) -> None:
    b = bench(lambda body, n: Reply(b"", 503))
    verdicts = judged(b.critic(concurrency=2, attempts=3, patience=4), *map(str, range(50)))
    assert not verdicts.valid.any() and len(b.server.bodies) <= (4 + 1) * 3
    assert sum("in a row" in reason for reason in verdicts.reasons) >= 45 and "HTTP 503" in verdicts.reasons[-1]


def test_refused_answers_are_no_reason_to_give_the_server_up(bench: Any) -> None:
    b = bench(lambda body, n: Reply(b"too long", 400) if len(answer_of(body)) == 1 else honest(body))
    verdicts = judged(b.critic(concurrency=1, patience=3), *"abcdefgh", "whole")
    assert verdicts.valid.tolist() == [False] * 8 + [True]


def test_who_waits_for_another_attempt_is_woken_when_the_exchange_ends(bench: Any) -> None:
    """Ctrl-C must not have to wait for a busy server."""
    asked = threading.Event()

    def script(body: Any, n: int) -> Reply:
        asked.set()
        return Reply(b"", 429, {"Retry-After": "50"})

    b, failures = bench(script), list[str]()
    with Exchange(Endpoint(b.server.url)) as exchange:

        def post() -> None:
            with pytest.raises(Failure) as error:
                exchange.post("/chat/completions", {"messages": []})
            failures.append(error.value.reason)

        thread = threading.Thread(target=post)
        thread.start()
        assert asked.wait(10)
        exchange.over.set()
        thread.join(10)
    assert failures == ["HTTP 429: "] and len(b.server.bodies) == 1


def test_nobody_listening_is_missing_with_the_reason() -> None:
    server = JudgeServer(honest)
    server.http.server_close()
    critic = ServerCritic(Endpoint(server.url, attempts=2), "judge", sleep=lambda _: None)
    assert "ConnectError" in judged(critic, "tea").reasons[0]


def test_misbehaviour_leaves_every_other_score_as_it_was(bench: Any) -> None:
    """The acceptance test of the issue: a third of all requests fail in some way, and what is judged is judged the same."""
    faults = [Reply(b"", 429), Reply(b"", 500), Reply(drop=True), Reply(b"garbage"), chat("no JSON"), chat('{"score": 7}')]
    texts = ["x" * n for n in range(40)]
    well = judged(bench(by_length).critic(), *texts)
    b = bench(lambda body, n: faults[n // 3 % len(faults)] if n % 3 == 0 else by_length(body))
    ill = judged(b.critic(), *texts)
    assert ill.valid.float().mean() > 0.9
    torch.testing.assert_close(ill.score[ill.valid], well.score[ill.valid], rtol=0, atol=0)
