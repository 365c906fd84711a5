"""Results kept by content: what is slow to make and follows from its key alone is made once, whoever asks for it next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grape.files import write_text


def key(parts: Mapping[str, object]) -> str:
    """Another text for any other content, whatever the order of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def kept(path: Path, make: Callable[[], Any], worth: Callable[[Any], bool] = lambda _: True) -> Any:
    """The JSON value that `make` gives, from `path` where it stands there. NaN and infinity may be in it.

    A fresh value is handed out as the file would give it back, so that nothing can depend on which of the two it was. A file that
    is not whole, or that anything but this has written, is made again. Of processes that want the same at once, one makes it and
    the others wait; the kernel lets go of the lock when its holder dies.

    Args:
        worth: whether a value is to be kept; one that is not is made again by the next who asks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another process is making the same answers; waiting for them", flush=True)
        lock.acquire()
    try:
        text = _read(path)
        if text is not None and worth(found := json.loads(text)):
            return found
        text = json.dumps(make())
        found = json.loads(text)
        if worth(found):
            write_text(path, f"{_sum(text)}\n{text}\n", shared=True)
        return found
    finally:
        lock.release()


def _read(path: Path) -> str | None:
    """The JSON text of a file that is whole."""
    try:
        written, text, end = path.read_bytes().decode().split("\n")
    except (OSError, ValueError):
        return None
    return text if end == "" and written == _sum(text) else None


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
