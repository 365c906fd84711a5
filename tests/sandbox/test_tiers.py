"""What the sandbox is worth on a machine, and that its own failures are no answers of the program."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from grape.sandbox import box, canaries, places, tiers
from grape.sandbox.box import HarnessError
from grape.sandbox.run import Answer, Run, run
from tests.sandbox import machine


def test_the_tier_is_what_its_canaries_prove() -> None:
    found = tiers.tier()
    assert set(found.canaries) == set(tiers.CANARIES) or found.name == "none"
    assert json.loads(json.dumps(found.receipt()))["tier"] == found.name
    assert all(machine.why_not(name) for name in found.tried)
    if found.name in ("namespaces", "bubblewrap", "landlock"):
        assert found.strong


HELD = Run(
    (
        Answer({"total": 3.5, "count": 2, "seen": [3], "third": "1.0", "hash": "e3b0"}),
        Answer([""]),
        Answer([]),
        Answer([]),
        Answer([]),
        Answer(True),
        Answer(12),
    ),
    "",
    True,
)


@pytest.mark.parametrize(
    ("canary", "place", "answer"),
    [
        ("read", 1, ["", "the token"]),
        ("read", 1, ["root:x:0:0"]),
        ("read", 1, None),
        ("write", 2, ["mode"]),
        ("write", 2, None),
        ("connect", 3, ["udp"]),
        ("see", 4, ["signal"]),
        ("daemonise", 5, None),
        ("fork", 6, 200),
        ("fork", 6, None),
    ],
)
def test_a_canary_that_gets_through_or_does_not_answer_is_not_held(canary: str, place: int, answer: object) -> None:
    assert all(tiers._judge(HELD, "the token", False, False).values())
    done = Run((*HELD.answers[:place], Answer(answer), *HELD.answers[place + 1 :]), "", True)
    held = tiers._judge(done, "the token", False, False)
    assert [name for name, ok in held.items() if not ok] == [canary]


def test_canaries_are_believed_less_than_what_is_seen_from_outside() -> None:
    assert not tiers._judge(HELD, "t", changed=True, reached=False)["write"]
    assert not tiers._judge(HELD, "t", changed=False, reached=True)["connect"]
    assert not tiers._judge(Run(HELD.answers, "", clean=False), "t", False, False)["daemonise"]
    with pytest.raises(HarnessError, match="honest"):
        tiers._judge(Run((Answer(None, "MemoryError"), *HELD.answers[1:]), "", True), "t", False, False)


def test_without_walls_the_canaries_get_through() -> None:
    """The canaries can fail: with limits alone files are open."""
    try:
        held = tiers.canaries("process")
    except HarnessError as error:
        pytest.skip(f"not even limits alone: {error}")
    assert not held["read"] and not held["write"] and held["fork"] and held["daemonise"]


def test_a_long_path_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's address is shorter than a path may be: the canary must neither fail over it nor be held by it alone."""
    name = tiers.tier().name
    if name == "none":
        pytest.skip("no sandbox can be had here")
    deep = tmp_path / ("d" * 100) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert tiers.canaries(name) == tiers.tier().canaries
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        tiers._bind(unix, deep / "socket")
        tcp.listen()
        unix.listen()
        before = os.getcwd()
        assert canaries.connect(tcp.getsockname()[1], udp.getsockname()[1], str(deep / "socket")) == ["tcp", "udp", "unix"]
        assert os.getcwd() == before


@pytest.mark.parametrize(
    "command",
    [
        ["/nonexistent/python"],
        [sys.executable, "-c", "raise SystemExit('no such walls')"],
        [sys.executable, "-c", "import os; os.read(0, 1); print('hello', flush=True); os.read(0, 9)"],
    ],
)
def test_a_sandbox_that_does_not_start_is_an_error_of_the_harness(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "command", lambda boot: command)
    with pytest.raises(HarnessError, match="could not be started"):
        run("def f(): return 1", [("f", [])], "process", machine.SHORT)


def test_walls_that_cannot_be_built_are_an_error_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.weakest_that_runs()
    real = places.config
    monkeypatch.setattr(places, "config", lambda *a: {**real(*a), "work": "/nonexistent"})
    monkeypatch.setattr(box.os, "chown", lambda *a: None)
    with pytest.raises(HarnessError, match="nonexistent"):
        run("def f(): return 1", [("f", [])], "process", machine.SHORT)
