"""One sandbox, from its start to its end, as the parent holds it. Nothing in this module runs the model's code."""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape.sandbox import places
from grape.sandbox.places import Limits
from grape.sandbox.protocol import read

MODULES = ("kernel", "work", "launch")
START_SECONDS = 60.0  # a machine under load may take long; a sandbox that needs more is an error of the harness
# Reads its own modules from the control pipe, so that nothing of grape's folder need be visible inside.
BOOT = """
import marshal, os, sys
def take(count):
    data = b""
    while len(data) < count:
        part = os.read(0, count - len(data))
        if not part: os._exit(98)
        data += part
    return data
def receive(): return marshal.loads(take(int.from_bytes(take(8), "little")))
parent, modules = receive()
package = sys.modules[parent] = type(sys)(parent)
for name, code in modules:
    module = sys.modules[parent + "." + name] = type(sys)(name)
    setattr(package, name, module)
    exec(code, module.__dict__)
module.main(receive(), receive)
"""


class HarnessError(Exception):
    """The sandbox itself failed, before the program had a part in it: the score is missing, not 0."""


@dataclass(frozen=True)
class Answer:
    """What one call gave back: a JSON value, or None and the error."""

    value: Any
    error: str | None = None


class Ended(Exception):
    """The program ended, or was ended, before its next answer; says why."""


@functools.cache
def _modules() -> bytes:
    """The child's modules, compiled: the child spends no time on that and sees no path of ours."""
    folder = Path(__file__).parent
    codes = []
    for name in MODULES:
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        codes.append((name, compile(source, f"<sandbox {name}>", "exec", dont_inherit=True)))
    return marshal.dumps((__package__, codes))


def quoted(text: object) -> str:
    """What a program said of itself, short and on one line, as it may end up on a terminal or in a table."""
    if not isinstance(text, str):
        return "an error that is no text"
    return " ".join("".join(c if c.isprintable() else " " for c in text[:400]).split())[:200]


class Sandbox:
    """One process tree behind walls. A context manager: leaving it ends every process and removes every file.
    Raises HarnessError: on entering, or in `start`: it could not be built."""

    def __init__(self, mechanism: str, limits: Limits, path: Sequence[str] = ()) -> None:
        """`path`: library folders a program of grape's own may import from; it then serves requests (see `work.serve`)."""
        self.mechanism, self.limits, self.path = mechanism, limits, tuple(path)
        self.token = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.clean = True
        self._ready = False
        self._buffer, self._taken = b"", 0

    def __enter__(self) -> Sandbox:
        self._folder: str | None = None
        try:
            if self.mechanism in ("landlock", "process"):  # the others have a file system of their own
                self._folder = tempfile.mkdtemp(prefix=f"grape-{os.getpid()}-")
            config = places.config(self.mechanism, self.limits, self._folder, self.path)
            if self._folder is not None and config["uid"] is not None:
                os.chown(self._folder, config["uid"], config["uid"])
            if self.mechanism == "bubblewrap":
                config["command"] = places.bubblewrap(config, BOOT, self.token)
            line, environment, pipe = places.command(BOOT), places.environment(config["work"], self.token), subprocess.PIPE
            self._process = subprocess.Popen(
                line, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/", env=environment, start_new_session=True, bufsize=0
            )
        except OSError as error:
            self._remove()
            raise HarnessError(f"the sandbox could not be started: {error}") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._control, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._said = self._process.stderr
        os.set_blocking(self._answers, False)
        self._config = config
        return self

    def start(self, job: object) -> None:
        """Build the walls, wait until they stand, hand over the job."""
        try:
            self._write(_modules())
            self._send(self._config)
            if self.mechanism == "bubblewrap":  # inside of it another interpreter starts, which needs the same
                self._write(_modules())
                self._send({**self._config, "mechanism": "inside"})
            line = self.line(time.monotonic() + START_SECONDS)
            if line != b"ready":
                raise Ended(f"it said {line[:100]!r}")
            self._send(job)
            self._ready = True
        except (OSError, Ended, ValueError) as error:
            raise HarnessError(f"the sandbox ({self.mechanism}) could not be started: {error}") from error

    def _send(self, value: Any) -> None:
        self._write(marshal.dumps(value))

    def _write(self, data: bytes) -> None:
        data = len(data).to_bytes(8, "little") + data
        while data:
            data = data[os.write(self._control, data) :]

    def ask(self, name: str, arguments: Sequence[object], deadline: float) -> Answer:
        """One request to a program that serves. Raises Ended: it did not answer; the sandbox is of no use any more."""
        self._taken = 0
        try:
            self._send((name, list(arguments)))
            found: Answer | None = None
            while True:
                index, returned, value = read(self.line(deadline))
                if index == -2:
                    return found or Answer(None, str(value))
                found = Answer(value) if returned else Answer(None, quoted(value))
        except (OSError, ValueError, TypeError) as error:
            raise Ended(f"no answer: {error}") from error

    def line(self, deadline: float) -> bytes:
        """The next line from the worker, without its end.
        Raises Ended: no line by the deadline (`time.monotonic`), too much output, or the worker is gone."""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Ended(f"no answer within {self.limits.wall:g} s")
            if not poll.poll(left * 1000):
                continue
            part = os.read(self._answers, 65536)
            if not part:
                raise Ended(self._why())
            self._buffer += part
            self._taken += len(part)
            if self._taken > self.limits.answers * 1024:
                raise Ended(f"more than {self.limits.answers} KiB of answers")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _why(self) -> str:
        """What the first process said on standard error; the worker has no hold on it."""
        said = self._rest(self._said.fileno(), 5.0)[0].decode(errors="replace").strip()
        if not self._ready:
            return quoted(said[-200:]) or "it ended without a word"
        how = quoted(said.rpartition("\n")[2])
        known = {"memory": f"used more than {self.limits.memory} MiB", "disk": f"wrote more than {self.limits.disk} MiB"}
        return known.get(how) or (f"killed by {how}" if how.startswith("signal") else f"ended before it answered ({how})")

    @staticmethod
    def _rest(descriptor: int, seconds: float) -> tuple[bytes, bool]:
        """What is left to read (the last 64 KiB of it), and whether its end came in time: nobody holds the other side then."""
        data, deadline = b"", time.monotonic() + seconds
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                part = os.read(descriptor, 65536)
                if not part:
                    return data, True
                data = (data + part)[-65536:]
        return data, False

    def __exit__(self, *_: object) -> None:
        """Closing the control pipe asks the first process to end everything; what it fails to end is ended from here."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Nobody holds the answer pipe, and who had to end them all did: nothing is left.
        if not self._rest(self._answers, 2.0)[1] or self._process.returncode != 0:
            self.clean = places.sweep(self.token) == 0 and self._rest(self._answers, 2.0)[1]
        self._process.stdout.close()
        self._said.close()
        self._remove()

    def _remove(self) -> None:
        if self._folder is not None:
            for folder, names, _ in os.walk(self._folder):
                for path in (os.path.join(folder, name) for name in names):
                    if not os.path.islink(path):  # the program may have locked its folders
                        os.chmod(path, 0o700)
            shutil.rmtree(self._folder, ignore_errors=True)
