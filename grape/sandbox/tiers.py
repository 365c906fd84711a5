"""How well this machine can hold a program: tried, not believed. The strongest mechanism whose six canaries all hold is taken."""

from __future__ import annotations

import functools
import os
import platform
import secrets
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grape.sandbox.box import HarnessError
from grape.sandbox.places import Limits
from grape.sandbox.run import Call, Run, run

Name = Literal["namespaces", "bubblewrap", "landlock", "process", "none"]
# By strength. `process`: limits and a session of its own alone, files and network open: only where it is allowed by name.
MECHANISMS: tuple[Name, ...] = ("namespaces", "bubblewrap", "landlock", "process")
CANARIES = ("connect", "read", "write", "daemonise", "fork", "see")
FORKS = 200


@dataclass(frozen=True)
class Tier:
    """What holds a program on this machine.

    Attributes:
        name: the mechanism in use; "none": not even a child process with limits works.
        canaries: name -> whether the attempt was stopped. tried: stronger mechanisms -> why they are not in use.
    """

    name: Name
    canaries: Mapping[str, bool] = field(default_factory=dict)
    tried: Mapping[str, str] = field(default_factory=dict)

    @property
    def strong(self) -> bool:
        """Whether the machine's kernel, not good will, holds files, network and processes."""
        return self.name not in ("process", "none") and all(self.canaries.get(name, False) for name in CANARIES)

    def receipt(self) -> dict[str, object]:
        """For the receipt of a stage: a score is worth as much as what held the program that earned it."""
        found = {"tier": self.name, "strong": self.strong, "canaries": dict(self.canaries), "tried": dict(self.tried)}
        return {**found, "kernel": platform.release(), "root": os.geteuid() == 0}

    def why(self) -> str:
        """One sentence for people: what is missing here."""
        weak = [name for name in CANARIES if not self.canaries.get(name, False)]
        text = "; ".join(f"{name}: {reason}" for name, reason in self.tried.items())
        through = f", which lets through: {', '.join(weak)}" if weak else ""
        return f"the sandbox reaches tier {self.name!r} here{through}" + (f" ({text})" if text else "")


@functools.cache
def tier() -> Tier:
    """The tier of this machine, found once per process (under a second)."""
    tried: dict[str, str] = {}
    for name in MECHANISMS:
        try:
            found = Tier(name, canaries(name), dict(tried))
        except HarnessError as error:
            tried[name] = str(error)[:300]
            continue
        if found.strong or name == "process":
            return found
        tried[name] = found.why()
    return Tier("none", {}, tried)


def canaries(mechanism: str) -> dict[str, bool]:
    """Run the six canaries behind `mechanism`; name -> stopped, by what could be seen from outside wherever that is possible.
    Raises HarnessError: the mechanism is not there, or an honest function does not work behind it."""
    source = Path(__file__).with_name("canaries.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="grape-canaries-") as name:
        folder = Path(name)
        folder.chmod(0o777)  # nothing but the sandbox shall stop the canaries
        secret, door, token = folder / "secret", folder / "door", secrets.token_hex(16)
        secret.write_text(token, encoding="utf-8")
        secret.chmod(0o666)
        door.mkdir()
        door.chmod(0o777)
        before = _state(folder)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
            tcp.bind(("127.0.0.1", 0))
            udp.bind(("127.0.0.1", 0))
            _bind(unix, door / "socket")
            for each in (tcp, udp, unix):
                each.setblocking(False)
            (door / "socket").chmod(0o777)
            tcp.listen()
            unix.listen()
            calls: list[Call] = [
                ("honest", [[1, 2.5]]),
                ("read", [[str(secret), "/etc/passwd", f"/proc/{os.getpid()}/environ"]]),
                ("write", [str(door), str(secret)]),
                ("connect", [tcp.getsockname()[1], udp.getsockname()[1], str(door / "socket")]),
                ("see", [os.getpid()]),
                ("daemonise", [30.0]),
                ("fork", [FORKS]),
            ]
            done = run(source, calls, mechanism, Limits(seconds=5, wall=20))
            reached = any(_arrived(each) for each in (tcp, udp, unix))
        (door / "socket").unlink(missing_ok=True)
        changed = _state(folder) != before
    return _judge(done, token, changed, reached)


def _bind(unix: socket.socket, path: Path) -> None:
    """A socket's address holds some hundred characters; the folder of a project, and so of what is temporary, may have more."""
    if len(os.fsencode(path)) < 100:
        unix.bind(str(path))
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        unix.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _judge(done: Run, token: str, changed: bool, reached: bool) -> dict[str, bool]:
    honest, read, write, connect, see, daemonise, fork = done.answers
    if honest.value != {"total": 3.5, "count": 2, "seen": [3], "third": "1.0", "hash": "e3b0"}:
        raise HarnessError(f"an honest program does not work in it: {honest.error or honest.value}")
    return {
        "connect": connect.value == [] and not reached,
        "read": isinstance(read.value, list) and token not in str(read.value) and not any("root:" in text for text in read.value),
        "write": write.value == [] and not changed,
        "daemonise": daemonise.value is True and done.clean,
        "fork": type(fork.value) is int and fork.value < FORKS,
        "see": see.value == [],
    }


def _arrived(listening: socket.socket) -> bool:
    try:
        if listening.type == socket.SOCK_DGRAM:
            listening.recv(16)
        else:
            listening.accept()[0].close()
    except OSError:
        return False
    return True


def _state(folder: Path) -> list[tuple[str, int, int, int]]:
    """Names, modes, sizes and times below the folder; not of the socket, which is ours."""
    return sorted(
        (str(path), path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.name not in ("socket", "door")
    )
