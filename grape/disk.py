"""A disk that is full and other refusals of the file system, as the one message that says which path and how much room."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from grape.errors import GrapeError, causes

MIN_FREE_MB = 500  # below this a run would fail halfway; GRAPE_MIN_FREE_MB overrides it
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the machine or somebody's hand does to a path. A file that is not there is not among them: that may be a defect of ours.
_NAMES = "ENOSPC EDQUOT EACCES EPERM EROFS EISDIR ENOTDIR EIO EMFILE ENFILE ENAMETOOLONG ELOOP EEXIST ENOTEMPTY"
_MACHINE = [getattr(errno, name) for name in _NAMES.split()]
# safetensors, torch and sqlite have exceptions of their own for it.
_WORDS = ("no space left on device", "os error 28", "storagefull", "database or disk is full", "disk quota exceeded")
_TORCH = ("failed writing file", "iostream error", "unexpected pos")


def wanted_mb() -> float:
    """Megabytes that must be free before a run.

    Raises:
        GrapeError: GRAPE_MIN_FREE_MB is no number.
    """
    text = os.environ.get("GRAPE_MIN_FREE_MB") or str(MIN_FREE_MB)
    try:
        return float(text)
    except ValueError as error:
        raise GrapeError(f"{text!r} is not a number", where="GRAPE_MIN_FREE_MB", mend="megabytes, e.g. 500") from error


def free_mb(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 1e6


def says_full(text: str) -> bool:
    return any(word in text.lower() for word in _WORDS)


def refusal(error: BaseException, folder: Path) -> GrapeError | None:
    """The message for an error of the file system; None for any other error.

    Args:
        folder: the project's, whose free room is told, and whose name the path is told without.
    """
    chain = list(causes(error))
    own = next((e for e in chain if isinstance(e, OSError) and e.errno in _MACHINE), None)
    path = own.filename if own is not None and isinstance(own.filename, (str, bytes, os.PathLike)) else None
    where = os.path.relpath(os.fsdecode(path), folder) if path else str(folder)
    where = os.fsdecode(path) if path and where.startswith("..") else where
    if any(isinstance(e, OSError) and e.errno in _FULL or says_full(str(e)) or _torch(e, folder) for e in chain):
        return full(where, folder)
    if own is None:
        return None
    return GrapeError(f"cannot be used: {own.strerror}", where=where, mend="see to that path, then run the same command again")


def full(where: str, folder: Path) -> GrapeError:
    what = f"the disk is full: {free_mb(folder):.1f} MB are free, a run wants {wanted_mb():.0f} MB"
    mend = "make room (`dvc gc --workspace` drops old versions), then run the same command again"
    return GrapeError(what, where=where, mend=mend)


def _torch(error: BaseException, folder: Path) -> bool:
    """torch says that writing failed, not why."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH) and free_mb(folder) < 1
