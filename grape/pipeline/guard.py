"""Runs one command and ends it, with all it started, when whoever holds the other end of our stdin is gone.

The orchestrator keeps the write end. It closes it to stop the stage; the kernel closes it when the orchestrator is
killed, by whatever signal. So a training process never outlives the run that wanted it. Standard library only, and
started with `python -I -S`: it costs a few hundredths of a second.

Usage: guard.py GRACE_SECONDS COMMAND...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time


def command(words: list[str], grace: float) -> list[str]:
    """`words`, under the guard. Start it with start_new_session=True and stdin=PIPE; close stdin to stop it."""
    return [sys.executable, "-I", "-S", __file__, str(grace), *words]


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end(group: int, grace: float) -> None:
    """Interrupt (stages close their MLflow run, DVC releases its locks), then terminate, then kill."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if not alive(group):
            return
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + grace
        while alive(group) and time.monotonic() < until:
            time.sleep(0.05)


def watch(group: int, grace: float) -> None:
    while os.read(0, 1024):
        pass
    end(group, grace)


def main() -> int:
    grace, command = float(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler, not SIG_IGN: that one the command would inherit
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=watch, args=(child.pid, grace), daemon=True).start()
    code = child.wait()
    end(child.pid, grace)  # nothing the command left in the background goes on
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())
