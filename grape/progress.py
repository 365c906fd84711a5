"""Progress of long work on the screen: step, what matters, time left. One line rewritten on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from io import TextIOWrapper

SHOWN = ("reward", "loss", "accuracy", "kl")


def any_terminal() -> None:
    """A character that the terminal has no sign for becomes a `?`; it must not cost the rest of the output."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


class Progress:
    """Say how far `what` is, at most once every `every` seconds (and at the first and last step)."""

    def __init__(self, what: str, total: int, every: float = 5.0) -> None:
        self.what, self.total, self.every = what, total, every
        self.began = time.monotonic()
        self.first: int | None = None
        self.last = -every
        self.terminal = sys.stderr.isatty()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic() - self.began
        # A resumed run replays its history at once: the time per step counts from there.
        self.first = step - 1 if self.first is None or now < 0.05 else self.first
        if step < self.total and now - self.last < (0.2 if self.terminal else self.every):
            return
        self.last = now
        done = max(step - self.first, 1)
        left = now / done * (self.total - step)
        shown = "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)
        line = f"{self.what}  {step}/{self.total}  {shown}  {now:.0f} s, {left:.0f} s left"
        if self.terminal:
            print(f"\r\x1b[K{line}", end="" if step < self.total else "\n", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
