"""A library behind walls: it may hang on the text that it is given, or evaluate it.

It is loaded once into a sandbox that reads its folder; each request is answered by a fork of that process, which nothing of the
next request sees.
"""

from __future__ import annotations

import atexit
import json
import sys
import threading
import time
from importlib.util import find_spec

from grape.errors import GrapeError
from grape.sandbox.box import Answer, Ended, HarnessError, Sandbox
from grape.sandbox.places import Limits


class Library:
    """A library behind walls, started when it is first asked and again after a request that ended it.

    Args:
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
            raise GrapeError(
                f"the package {self.name.replace('_', '-')} is not installed",
                where="environment",
                mend=f"pip install 'grape[{self.extra}]'",
            )

    def grade(self, held_by: str, *arguments: object) -> Answer:
        """What `grade` says. A request that takes too long or kills the process has an answer with an error.

        Raises:
            GrapeError: the package is not installed. HarnessError: the sandbox or the library in it cannot be started.
        """
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
