"""What the user sees while stages run: plain lines, each with the stage it comes from."""

from __future__ import annotations

import sys
import threading
from typing import TextIO

# What DVC tells after every stage about git and remotes; it stays in the log.
_NOISE = (
    "Use `dvc push`", "To track the changes with git", "To enable auto staging", "\tgit add", "\tdvc config",
    "Updating lock file", "Generating lock file", "Running stage",
)  # fmt: skip


class Screen:
    """Lines from several threads, to stdout unless another stream is given."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._open = True

    def say(self, text: str = "") -> None:
        with self._lock:
            if not self._open:
                return
            stream = self._stream or sys.stdout
            try:
                encoding = getattr(stream, "encoding", None) or "utf-8"
                print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
            except (BrokenPipeError, ValueError):  # the reader went away (`| head`); the run goes on, the logs have all
                self._open = False

    def line(self, stage: str, text: str) -> None:
        """One line of a stage's output."""
        text = text.rstrip("\n")
        if text.strip() and not text.startswith(_NOISE):
            self.say(f"[{stage}] {text}")
