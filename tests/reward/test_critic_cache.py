"""What the server critic keeps and what it must never keep: the cache, the key; and what it makes of a calibration."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grape.errors import GrapeError
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.openai import ServerCritic
from grape.reward.critics.reply import Cache, Opinion
from grape.reward.critics.transport import Endpoint
from grape.reward.verdict import Question
from tests.reward.critic_server import (
    KEY,
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


def test_what_was_judged_is_not_asked_again(bench: Any, tmp_path: Path) -> None:
    b = bench(by_length)
    first = judged(b.critic(cache=tmp_path), "a", "bb")
    count = len(b.server.bodies)
    critic = b.critic(cache=tmp_path)
    second = judged(critic, "bb", "a")
    assert len(b.server.bodies) == count == 2 and critic.counts["cached"] == 2
    assert second.score.tolist() == first.score.tolist()[::-1] and second.reasons == first.reasons
    assert not list(tmp_path.rglob("*.partial"))


def test_everything_that_decides_an_answer_decides_the_cache(bench: Any, tmp_path: Path) -> None:
    b = bench(honest)
    one = questions("tea")[0]
    others = [Question(**{**vars(one), **change}) for change in (
        {"version": 2}, {"question": "Is it short?"}, {"prompt": "Ask."}, {"response": "tea "}, {"system": "S"},
        {"template": "{response}"},
    )]  # fmt: skip
    b.critic(cache=tmp_path).judge(names(7), [one, *others])
    b.critic(cache=tmp_path).judge(["courtesy/other"], [one])
    b.critic(cache=tmp_path, model="other").judge(names(1), [one])
    b.critic(cache=tmp_path, temperature=0.5).judge(names(1), [one])
    b.critic(cache=tmp_path, extra={"seed": 1}).judge(names(1), [one])
    assert len(b.server.bodies) == 11 == len(list(tmp_path.rglob("*.json")))


def test_another_process_finds_what_was_judged(bench: Any, tmp_path: Path) -> None:
    b = bench(by_length)
    first = judged(b.critic(cache=tmp_path), "abc")
    script = (
        "import sys\nfrom pathlib import Path\nfrom grape.reward.verdict import Question\n"
        "from grape.reward.critics.openai import ServerCritic\nfrom grape.reward.critics.transport import Endpoint\n"
        "critic = ServerCritic(Endpoint(sys.argv[1]), 'judge', cache=Path(sys.argv[2]))\n"
        "v = critic.judge(['courtesy/polite'], [Question('Is it polite?', 'Ask for tea.', 'abc')])\n"
        "print(repr(v.score.item()), critic.counts['cached'])\n"
    )
    run = subprocess.run([sys.executable, "-c", script, b.server.url, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [repr(first.score.item()), "1"] and len(b.server.bodies) == 1


@pytest.mark.parametrize("damage", [
    "", "{", "[]", "null", '{"score": 2, "confidence": 1}', '{"score": NaN, "confidence": 1}', '{"score": 1}',
])  # fmt: skip
def test_a_damaged_entry_is_asked_for_again(bench: Any, tmp_path: Path, damage: str) -> None:
    b = bench(honest)
    judged(b.critic(cache=tmp_path), "tea")
    (entry,) = tmp_path.rglob("*.json")
    entry.write_text(damage)
    entry.with_name("left.behind.partial").write_text('{"score": 1')  # by a process that was killed
    assert judged(b.critic(cache=tmp_path), "tea").score.tolist() == [0.25] and len(b.server.bodies) == 2
    assert Cache(tmp_path).get(entry.stem) == Opinion(0.25, 0.5, "my own")


def test_errors_are_never_kept(bench: Any, tmp_path: Path) -> None:
    b = bench(lambda body, n: Reply(b"", 400) if n == 1 else chat("junk") if n < 4 else honest(body))
    critic = b.critic(cache=tmp_path)
    assert [bool(judged(critic, "tea").valid) for _ in range(3)] == [False, False, True]


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_cache(
    bench: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    b = bench(honest)
    with caplog.at_level(logging.WARNING):
        assert judged(b.critic(cache=tmp_path / "file"), "tea").score.tolist() == [0.25]
    assert "could not be kept" in caplog.text


def test_the_key_is_nowhere(
    bench: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(body: Any, n: int) -> Reply:
        told = {"1": Reply(f"wrong key {KEY}".encode(), 401), "2": Reply(f"{KEY} is busy".encode(), 500), "3": Reply(drop=True)}
        return told.get(answer_of(body)) or chat(f"Your key is {KEY}. " + verdict(body, reason=f"because {KEY}"))

    b = bench(script)
    critic = b.critic(cache=tmp_path, attempts=2)
    with caplog.at_level(logging.DEBUG):
        verdicts = judged(critic, "1", "2", "3", "4")
    assert b.server.headers[0]["Authorization"].endswith(KEY) and verdicts.valid.tolist() == [False, False, False, True]
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    seen = [kept, *verdicts.reasons, caplog.text, *capfd.readouterr(), repr(vars(critic)), repr(critic.endpoint)]
    assert "because [key]" in kept and "[key]" in verdicts.reasons[0] and not any(KEY in text for text in seen)
    assert not any(KEY in str(body) for body in b.server.bodies)


def test_a_placeholder_for_a_key_is_not_searched_for(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "1")
    b = bench(lambda body, n: chat(verdict(body, score=1)))
    assert judged(b.critic(key="MY_KEY"), "tea").score.tolist() == [1.0]
    assert b.server.headers[0]["Authorization"] == "Bearer 1"


def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-first line\nX-Evil: 1")
    with pytest.raises(GrapeError, match="OPENAI_API_KEY") as error:
        ServerCritic(Endpoint("http://127.0.0.1:9/v1"), "judge")
    assert "first" not in str(error.value)


def test_a_far_server_needs_a_key_and_a_near_one_does_not(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(GrapeError, match="set OPENAI_API_KEY"):
        ServerCritic(Endpoint("https://example.org/v1"), "judge")
    b = bench(honest)
    assert bool(judged(b.critic(), "tea").valid) and "Authorization" not in b.server.headers[0]


@pytest.mark.parametrize(
    "url", ["", "example.org/v1", "file:///etc/passwd", "http://", "http://me:secret@host/v1", "http://h/v1?key=secret"]
)
def test_an_address_that_is_none_is_refused_and_no_secret_is_shown(url: str) -> None:
    with pytest.raises(GrapeError, match="address") as error:
        Endpoint(url)
    assert "secret" not in str(error.value)


def test_calibration_moves_the_confidence_and_leaves_the_score(bench: Any) -> None:
    b = bench(lambda body, n: chat(verdict(body, score=0.9, confidence=1.0)))
    p = 1 / (1 + math.exp(-0.5 * math.log(0.9 / 0.1)))
    for certainty, expected in (("right", p), ("margin", 2 * p - 1)):
        verdicts = judged(b.critic(calibration=Calibration({"": (0.5, 0.0)}), certainty=certainty), "tea")
        assert verdicts.score.item() == pytest.approx(0.9) and verdicts.confidence.item() == pytest.approx(expected, abs=1e-5)
        hard = judged(b.critic(calibration=Calibration({"": (0.5, 0.0)}), certainty=certainty, scoring="verdict"), "tea")
        assert hard.score.item() == 1 and hard.confidence.equal(verdicts.confidence)
    only = Calibration({"other/item": (0.5, 0.0)})
    assert judged(b.critic(calibration=only), "tea").confidence.item() == 1, "no curve for this item: as the judge said"
    wrong = Calibration({"": (-1.0, 0.0)})
    assert judged(b.critic(calibration=wrong), "tea").confidence.item() == 0, "a judge that is mostly wrong is not to be trusted"


def test_evidence_follows_score_and_confidence(bench: Any) -> None:
    said = iter([(1, 1), (1, 0.5), (1, 0), (0.5, 1), (0, 0.5), (0, 1)])
    b = bench(lambda body, n: chat(verdict(body, *next(said))))
    z = judged(b.critic(concurrency=1), *"abcdef").evidence
    assert bool((z[:-1] > z[1:]).all()) and bool(torch.isfinite(z).all())
    assert z[1].item() == pytest.approx(math.log(3), abs=1e-5) and z[3].item() == 0 and z[2] > 0


def test_the_counts_say_what_happened(bench: Any, tmp_path: Path) -> None:
    b = bench(lambda body, n: Reply(b"", 500) if n == 1 else chat("junk") if n == 2 else honest(body))
    critic = b.critic(cache=tmp_path)
    judged(critic, "tea")
    judged(critic, "tea")
    assert critic.counts == {"requests": 3, "retries": 1, "malformed": 1, "tokens": 14, "cached": 1}
    assert json.loads(next(tmp_path.rglob("*.json")).read_text())["model"] == "judge"
