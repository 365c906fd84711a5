"""A process that does one step of its loop whenever it is told to, and says how long it took.

The two sides run the loops that their users run. What they call at the end of each step (`track` of grape's, a callback of TRL's)
leads here: the clock stops, a line of JSON goes out, and nothing goes on until a line comes in.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO


class Gate:
    """
    Args:
        out, into: where results go, and where the word to go on comes from; its end ends the process.
    """

    def __init__(self, out: TextIO, into: TextIO) -> None:
        self.out, self.into = out, into
        self.noted: dict[str, Any] = {}
        self.began = time.perf_counter()

    @classmethod
    def of_process(cls) -> Gate:
        """Over this process's own pipes. What libraries print goes to stderr."""
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        return cls(out, sys.stdin)

    def note(self, **said: Any) -> None:
        """Goes out with the next result."""
        self.noted |= said

    def wait(self, **said: Any) -> None:
        """The end of a step, and the beginning of the next. The first call: everything is ready."""
        seconds = time.perf_counter() - self.began
        self.out.write(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), **self.noted, **said}) + "\n")
        self.out.flush()
        self.noted = {}
        if not self.into.readline():
            raise SystemExit(0)
        self.began = time.perf_counter()


def peak_mb() -> float:
    """The peak of this process's memory, MiB. Linux hands getrusage's on from the process that started it, VmHWM not."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)
