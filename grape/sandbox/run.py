"""What is run in a sandbox: a program, whose calls go in and JSON comes back, or a library in its place, which may hang on the text
that it is given, or evaluate it. The parent's side: nothing here runs the model's code."""

from __future__ import annotations

import atexit
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from grape.errors import GrapeError
from grape.sandbox.box import Answer, Ended, HarnessError, Sandbox, quoted
from grape.sandbox.places import Limits
from grape.sandbox.protocol import NotJson, read

Call = tuple[str, Sequence[object]]


@dataclass(frozen=True)
class Run:
    """One program in the sandbox.

    Attributes:
        answers: one per call. ended: why not every call was answered; "": they were.
        clean: nothing of the program was left when the sandbox had been closed.
    """

    answers: tuple[Answer, ...]
    ended: str
    clean: bool


def run(source: str, calls: Sequence[Call], mechanism: str, limits: Limits) -> Run:
    """The answers of a program to calls of its functions. Raises HarnessError: the sandbox could not be started."""
    answers: list[Answer] = []
    ended = ""
    with Sandbox(mechanism, limits) as sandbox:
        sandbox.start({"source": source, "calls": [(name, list(arguments)) for name, arguments in calls]})
        deadline = time.monotonic() + limits.wall
        while len(answers) < len(calls) and not ended:
            try:
                line = sandbox.line(deadline)
                index, returned, value = read(line)
                if returned is not True and index == -1:
                    ended = f"the program cannot be loaded: {quoted(value)}"
                elif type(index) is not int or index != len(answers) or type(returned) is not bool:
                    raise NotJson("an answer to another call")
                else:
                    answers.append(Answer(value) if returned else Answer(None, quoted(value)))
            except (ValueError, TypeError) as error:
                ended = f"wrote what is no answer: {error}"
            except Ended as end:
                ended = str(end)
    missing = [Answer(None, ended)] * (len(calls) - len(answers))
    return Run(tuple(answers + missing), ended, sandbox.clean)


class Library:
    """A library behind walls, started when it is first asked and again after a request that ended it.

    It is loaded once into a sandbox that reads its folder; each request is answered by a fork of that process, which nothing of
    the next request sees.

    name: of the package. program: defines `grade`. extra: grape's extra that installs the package.
    """

    def __init__(self, name: str, program: str, extra: str) -> None:
        self.name, self.program, self.extra = name, program, extra
        self.limits = Limits(seconds=5, wall=20, memory=2048, files=256)
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def require(self) -> None:
        """Raises GrapeError if the package is not installed."""
        if find_spec(self.name) is None:
            what = f"the package {self.name.replace('_', '-')} is not installed"
            raise GrapeError(what, where="environment", mend=f"pip install 'grape[{self.extra}]'")

    def grade(self, held_by: str, *arguments: object) -> Answer:
        """What `grade` says. A request that takes too long or kills the process has an answer with an error.
        Raises GrapeError: the package is not installed. HarnessError: the sandbox or the library in it cannot be started."""
        with self._lock:
            sandbox = self._sandbox or self._opened(held_by)
            try:
                return sandbox.ask("grade", arguments, time.monotonic() + self.limits.wall)
            except Ended as error:
                self._close()
                return Answer(None, str(error))

    def _opened(self, held_by: str) -> Sandbox:
        self.require()
        folders = [path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))]
        sandbox = self._sandbox = Sandbox(held_by, self.limits, folders).__enter__()
        try:
            sandbox.start(self.program)
            line = json.loads(sandbox.line(time.monotonic() + 120))
            if line[:2] != [-1, True]:
                raise Ended(str(line))
        except (HarnessError, Ended, ValueError) as error:
            self._close()
            raise HarnessError(f"{self.name} cannot be loaded in the sandbox: {error}") from error
        return sandbox

    def _close(self) -> None:
        if self._sandbox is not None:
            sandbox, self._sandbox = self._sandbox, None
            sandbox.__exit__()

    def close(self) -> None:
        """End the sandbox; the next request starts a new one."""
        with self._lock:
            self._close()
