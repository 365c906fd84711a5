"""Six harmless attempts to do what a sandbox must prevent, and one honest function that must work.

Runs inside the sandbox, as a program under test does; `tiers` watches from outside what came of it. Standard library only.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable


def honest(numbers: list[float]) -> dict[str, object]:
    """Uses what plain programs use: a sandbox in which this fails would fail every answer."""
    import collections
    import dataclasses
    import decimal
    import hashlib
    import re
    import threading

    seen: list[int] = []
    thread = threading.Thread(target=seen.append, args=(len(re.findall("a", "banana")),))
    thread.start()
    thread.join()
    with open("scratch", "w", encoding="utf-8") as file:
        file.write("kept")
    kind = dataclasses.make_dataclass("Kind", ["total"])
    return {
        "total": kind(sum(numbers)).total,
        "count": collections.Counter("banana")["n"],
        "seen": seen,
        "third": str(decimal.Decimal(1).quantize(decimal.Decimal("0.1"))),
        "hash": hashlib.sha256(b"").hexdigest()[:4],
    }


def _tried(**attempts: Callable[[], object]) -> list[str]:
    """Names of the attempts that the machine allowed."""
    allowed = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception:  # whatever stops it, it is stopped
            continue
        allowed.append(name)
    return allowed


def connect(tcp: int, udp: int, path: str) -> list[str]:
    def reach(family: int, kind: int, address: object) -> None:
        with socket.socket(family, kind) as made:
            made.settimeout(2)
            made.connect(address)  # type: ignore[arg-type]
            made.send(b"reached")

    def unix() -> None:
        here = os.getcwd()
        os.chdir(os.path.dirname(path))  # a socket's address holds some hundred characters, a path may have more
        try:
            reach(socket.AF_UNIX, socket.SOCK_STREAM, os.path.basename(path))
        finally:
            os.chdir(here)

    return _tried(
        tcp=lambda: reach(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", tcp)),
        udp=lambda: reach(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", udp)),
        unix=unix,
    )


def read(paths: list[str]) -> list[str]:
    found = []
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found.append(file.read(10_000))
        except OSError:
            continue
    return found


def write(folder: str, file: str) -> list[str]:
    def append() -> None:
        with open(file, "a", encoding="utf-8") as opened:
            opened.write("changed")

    return _tried(
        create=lambda: os.close(os.open(os.path.join(folder, "new"), os.O_CREAT | os.O_WRONLY)),
        append=append,
        truncate=lambda: os.truncate(file, 0),
        mode=lambda: os.chmod(file, 0),
        times=lambda: os.utime(file, (0, 0)),
        link=lambda: os.link(file, os.path.join(folder, "link")),
        symlink=lambda: os.symlink(file, os.path.join(folder, "symlink")),
        rename=lambda: os.rename(file, os.path.join(folder, "renamed")),
        remove=lambda: os.unlink(file),
    )


def see(pid: int) -> list[str]:
    def trace() -> None:
        import ctypes

        if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, None, None) != 0:  # PTRACE_ATTACH
            raise OSError("refused")

    return _tried(
        signal=lambda: os.kill(pid, 0),
        environment=lambda: read([f"/proc/{pid}/environ"])[0],
        command=lambda: read([f"/proc/{pid}/cmdline"])[0],
        trace=trace,
    )


def daemonise(seconds: float) -> bool:
    """Leave a process in a session of its own that holds the answer pipe: tiers sees it by the pipe that does not end."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(seconds)
        os._exit(0)
    os.wait()
    return True


def fork(most: int) -> int:
    """How many processes could be started beside each other; they sleep until the sandbox ends."""
    for count in range(most):
        try:
            child = os.fork()
        except OSError:
            return count
        if child == 0:
            time.sleep(60)
            os._exit(0)
    return most
