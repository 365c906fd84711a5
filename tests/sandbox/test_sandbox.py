"""The sandbox against programs that attack it and for those that do not: no false pass, survivor, trace or false failure."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from grape.reward.verifiers import build, libraries, python_tests
from grape.reward.verifiers.cases import judge, parse
from grape.sandbox import tiers
from grape.sandbox.box import Sandbox
from grape.sandbox.run import Answer, run
from tests import tiny
from tests.sandbox import machine

CORPUS = Path(__file__).parent / "corpus"
REPO = Path(__file__).parents[2]
# What the hostile programs would have to return. Also in a file that they can read if the walls are not there.
EXPECTED = [random.SystemRandom().getrandbits(60) for _ in range(3)]


def corpus(name: str) -> dict[str, str]:
    _, *sections = (CORPUS / f"{name}.txt").read_text(encoding="utf-8").split("\n#### ")
    return {title: body.rstrip("\n") + "\n" for title, _, body in (section.partition("\n") for section in sections)}


HOSTILE, HONEST = corpus("hostile"), corpus("honest")


@pytest.fixture(scope="module", autouse=True)
def alone() -> None:
    """A library that other tests of this process have left in its sandbox is no survivor."""
    for library in (libraries.MATH_VERIFY, libraries.REASONING_GYM):
        library.close()


@pytest.fixture(params=["namespaces", "bubblewrap", "landlock"])
def mechanism(request: pytest.FixtureRequest) -> str:
    """Every mechanism that holds here; the others cannot be tested on this machine."""
    if machine.why_not(request.param):
        pytest.skip(f"{request.param} is not to be had here: {machine.why_not(request.param)[:200]}")
    return str(request.param)


@dataclass
class Outside:
    """What the hostile programs could damage."""

    folder: Path
    listening: socket.socket

    def state(self) -> list[tuple[str, int, int, bytes]]:
        return sorted(
            (str(p), p.lstat().st_mode, p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
            for p in self.folder.rglob("*")
        )

    def reached(self) -> bool:
        try:
            self.listening.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def outside() -> Iterator[Outside]:
    folder = Path(tempfile.mkdtemp(prefix="outside-"))  # not tmp_path, whose parents let nobody else in
    (folder / "kept").mkdir()
    for path, text in ((folder / "tests.json", json.dumps(EXPECTED)), (folder / "kept" / "notes", "notes")):
        path.write_text(text)
        path.chmod(0o666)
    for path in (folder, folder / "kept"):
        path.chmod(0o777)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield Outside(folder, listening)
    shutil.rmtree(folder)


def survivors() -> list[int]:
    """Processes of any sandbox of this test process."""
    found = []
    for pid in psutil.pids():
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"GRAPE_SANDBOX={os.getpid()}-".encode() in text:
            found.append(pid)
    return found


def traces() -> set[Path]:
    places_to_look = [Path(tempfile.gettempdir()), Path("/tmp"), REPO, Path.home(), Path("/")]
    patterns = ("hostile-was-here", f"grape-{os.getpid()}-*")
    return {path for folder in places_to_look for pattern in patterns for path in folder.glob(pattern)}


def ownership() -> tuple[object, ...]:
    return (resource.getrlimit(resource.RLIMIT_NOFILE), os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0))


def test_the_corpora_are_large_enough() -> None:
    assert len(HOSTILE) >= 100 and len(HONEST) >= 70


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_scores_zero_and_leaves_no_trace(name: str, mechanism: str, outside: Outside) -> None:
    source = HOSTILE[name]
    for place, value in (
        ("__OUTSIDE__", outside.folder),
        ("__PARENT__", os.getpid()),
        ("__REPO__", REPO),
        ("__PORT__", outside.listening.getsockname()[1]),
    ):
        source = source.replace(place, str(value))
    cases = parse({"function": "solve", "cases": [[[i], value] for i, value in enumerate(EXPECTED)]}).mixed(0.5, name)
    before = outside.state(), ownership(), traces()
    # Anything but a Run would be a missing score, which is a way out as well.
    done = run(source, [(cases.function, case.arguments) for case in cases.cases], mechanism, machine.SHORT)
    verdict = judge(cases.cases, done, 1e-9, partial=True)
    assert verdict == 0 and verdict.metrics["impossible_passed"] == 0, verdict.reason
    assert done.clean and survivors() == []
    assert (outside.state(), ownership(), traces()) == before
    assert not outside.reached()
    assert not any(str(value) in verdict.reason for value in EXPECTED) and verdict.reason.isprintable()


def check_honest(name: str, mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marked, _, response = HONEST[name].partition("\n")
    assert marked.startswith("#: ")
    hold_by(mechanism, monkeypatch)
    if name.startswith("tabs"):
        response = response.replace("\n", "\r\n")
    verdict = build("python_tests", {"impossible": 0.5, "allow_weak": True})(tiny.prompt(name, answer=marked[3:]), response)
    assert verdict == 1, (name, verdict.reason)  # type: ignore[attr-defined]


def hold_by(mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiers.Tier(mechanism, dict.fromkeys(tiers.CANARIES, True))  # type: ignore[arg-type]
    monkeypatch.setattr(python_tests, "tier", lambda: found)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_solution_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_honest(name, machine.strongest(), monkeypatch)


def test_honest_solutions_pass_behind_every_mechanism(mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(HONEST)[::3]:
        check_honest(name, mechanism, monkeypatch)


def test_limits_alone_hold_what_needs_no_kernel() -> None:
    """The weakest tier too has a verdict that the program cannot reach, and ends what the program leaves."""
    mechanism = machine.weakest_that_runs()
    for name in (
        "os._exit 0 in the call",
        "equal to everything",
        "patches json",
        "writes answers to the pipe",
        "endless loop",
        "much memory",
        "flood of answers",
        "daemon that holds the pipe",
        "walks the frames",
    ):
        done = run(HOSTILE[name], [("solve", [i]) for i in range(3)], mechanism, machine.SHORT)
        assert all(answer.error is not None or answer.value not in EXPECTED for answer in done.answers), name
        assert survivors() == [], name


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def add(a, b): return a - b", "another value"),
        ("def add(a, b): return 1 / 0", "ZeroDivisionError"),
        ("def plus(a, b): return a + b", "defines no 'add'"),
        ("def add(a, b) return", "cannot be loaded: SyntaxError"),
        ("import numpy\ndef add(a, b): return numpy.add(a, b)", "ModuleNotFoundError"),
        ("def add(a, b): return bytes([a + b])", "not JSON serializable"),
        ("def add(a, b):\n    while True: pass", "no answer within|signal"),
        ("import os\ndef add(a, b): os._exit(0)", "ended before it answered"),
        ("def add(a, b): return 'x' * 3_000_000", "KiB of answers"),
        ("import time\ndef add(a, b): time.sleep(60)", "no answer within"),
        ("def add(a, b): return bytearray(4 << 30)", "MemoryError"),
        ("I do not know.", "SyntaxError"),
        ("", "no Python"),
        ("```js\nfunction add(a, b) {}\n```", "no Python"),
    ],
)
def test_a_program_that_fails_scores_zero_and_says_why(
    source: str, reason: str, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_by(mechanism, monkeypatch)
    monkeypatch.setattr(python_tests, "Limits", lambda **limits: machine.SHORT)
    verdict = build("python_tests", {"seconds": 1})(tiny.prompt("q", answer=machine.ADD), source)
    assert verdict == 0 and re.search(reason, verdict.reason), verdict.reason  # type: ignore[attr-defined]


def test_the_program_is_told_nothing_but_its_calls(mechanism: str) -> None:
    """Environment, arguments, descriptors, folder, user: all there is to see."""
    source = (
        "import os, sys\ndef look():\n    return {'env': sorted(os.environ), 'files': os.listdir('.'), 'argv': sys.argv, "
        "'fds': [fd for fd in range(256) if open_(fd)], 'path': sys.path, 'uid': os.getuid()}\n"
        "def open_(fd):\n    try: os.fstat(fd)\n    except OSError: return False\n    return True\n"
    )
    os.environ["SOME_API_KEY"] = "secret"
    try:
        seen = run(source, [("look", [])], mechanism, machine.SHORT).answers[0].value
    finally:
        del os.environ["SOME_API_KEY"]
    assert set(seen["env"]) <= {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "LC_CTYPE",
        "PYTHONHASHSEED",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "GRAPE_SANDBOX",
        "LD_LIBRARY_PATH",
        "PWD",
    }
    assert seen["files"] == [] and seen["argv"] == ["-c"] and seen["fds"] == [0, 1, 2, 3] and seen["uid"] != 0
    assert not any("site-packages" in path or path.startswith(str(REPO)) for path in seen["path"])


def test_hashes_are_the_same_each_time(mechanism: str) -> None:
    source = "def order(): return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    one, two = (run(source, [("order", [])], mechanism, machine.SHORT).answers for _ in range(2))
    assert one == two and one[0].error is None


def test_many_runs_leave_no_descriptor_no_zombie_and_no_file(mechanism: str) -> None:
    def held() -> tuple[int, int, set[Path]]:
        return len(os.listdir("/proc/self/fd")), len(psutil.Process().children()), traces()

    run("def f(): return 1", [("f", [])], mechanism, machine.SHORT)
    before = held()
    for _ in range(12):
        assert run("def f(): return 1", [("f", [])], mechanism, machine.SHORT).answers == (Answer(1),)
    assert held() == before


def test_a_sandbox_ends_with_the_process_that_started_it(mechanism: str) -> None:
    """kill -9 of grape in the middle of a program: nothing of it is left running."""
    script = (
        "import sys\nfrom grape.sandbox.box import Sandbox\nfrom grape.sandbox.places import Limits\n"
        f"with Sandbox({mechanism!r}, Limits(seconds=60, wall=60)) as sandbox:\n"
        "    sandbox.start({'source': 'def f():\\n    while True: pass', 'calls': [('f', [])]})\n"
        "    print(sandbox.token, sandbox._folder or '', flush=True)\n    sandbox.line(1e9)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert parent.stdout is not None
    token, _, folder = parent.stdout.readline().strip().partition(" ")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while (left := _carrying(token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    assert token and not left


def _carrying(token: str) -> list[int]:
    found = []
    for pid in psutil.pids():
        try:
            if token.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def test_leaving_the_sandbox_by_an_exception_ends_it(mechanism: str) -> None:
    with pytest.raises(KeyboardInterrupt), Sandbox(mechanism, machine.SHORT) as sandbox:
        sandbox.start({"source": "import time\ntime.sleep(600)", "calls": []})
        raise KeyboardInterrupt
    assert sandbox.clean and survivors() == []
