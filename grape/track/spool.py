"""The spool: every call a run makes to the tracker, kept on disk before MLflow sees it.

A run has a folder `.grape/runs/<stage>-<utc>-<id>/`:

    meta.json        what is known at the start: stage, parameters, tags, parent, process
    events.jsonl     one call a line, in order, with the time it was made
    files/           copies of plots and tables, which may be overwritten before they are delivered
    delivered.json   how far MLflow has it: store, run id, bytes of events.jsonl
    lock             held by the process that delivers

The folder is removed once MLflow has all of it. What is left over is what `sync` replays. A record that cannot be kept, because
the disk is full, is missing and said once: it is never what ends the work that it is of.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grape.files import write_sorted
from grape.project import Project

logger = logging.getLogger("grape.track")
Event = dict[str, Any]


@dataclass(frozen=True)
class Delivered:
    """How much of a spool a store has. `store` has no user or password in it."""

    store: str
    run_id: str
    offset: int = 0
    version: int | None = None


class Spool:
    """One run's folder. Only its owner appends; whoever holds `lock()` may deliver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / "lock", thread_local=False)
        self._torn = self._warned = False

    @classmethod
    def create(cls, project: Project, stage: str, meta: dict[str, Any]) -> Spool:
        started = time.time()
        utc = time.strftime("%Y%m%dT%H%M%S", time.gmtime(started))
        folder = project.state / "runs" / f"{stage.replace('/', '-')}-{utc}-{uuid.uuid4().hex[:8]}"
        (folder / "files").mkdir(parents=True)
        (folder / "events.jsonl").touch()
        write_sorted(folder / "meta.json", {**meta, "stage": stage, "started_ms": int(started * 1000)})
        return cls(folder)

    @classmethod
    def pending(cls, project: Project) -> list[Spool]:
        """Spools on disk, oldest first."""
        spools = [cls(path.parent) for path in (project.state / "runs").glob("*/meta.json")]
        return sorted((spool for spool in spools if spool.whole), key=lambda spool: spool.meta["started_ms"])

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def whole(self) -> bool:
        """Whether it can be read at all; one torn by a power cut is set aside at the next run (grape/pipeline/mend.py)."""
        try:
            meta = self.meta
            kinds = {"started_ms": int, "stage": str, "kind": str, "params": dict, "tags": dict}
            right = all(isinstance(meta[key], kind) for key, kind in kinds.items()) and {"nonce", "parent_run"} <= meta.keys()
            return right and (self.folder / "events.jsonl").is_file()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    @property
    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        return meta

    def append(self, kind: str, **values: Any) -> None:
        line = json.dumps({"kind": kind, "ms": int(time.time() * 1000), **values}, ensure_ascii=False) + "\n"
        # Half a surrogate, which JSON can hold and UTF-8 cannot, is replaced.
        data = line.encode("utf-8", "replace")
        with self._kept(kind), (self.folder / "events.jsonl").open("ab", buffering=0) as file:
            # A line that was cut off by a full disk is ended first, so that it costs no other.
            written = file.write(b"\n" + data if self._torn else data) or 0
            self._torn = written < len(data)
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def keep(self, path: Path) -> str | None:
        """Copy a file into the spool; its name there, None where there is no room for it."""
        name = f"{uuid.uuid4().hex[:8]}/{path.name}"
        place = self.folder / "files" / name
        whole = False
        with self._kept(path.name):
            place.parent.mkdir()
            shutil.copyfile(path, place)
            whole = True
        return name if whole else None

    @contextmanager
    def _kept(self, what: str) -> Iterator[None]:
        """Go on without what cannot be written, and say so once."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                logger.warning("the record of this run is incomplete (%s): %s; the run itself goes on", what, error)
            self._warned = True

    def events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """Events from a byte offset on, each with the offset after it. A half-written last line is not there yet."""
        with (self.folder / "events.jsonl").open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # torn by a full disk or a power cut
                if isinstance(event, dict) and isinstance(event.get("kind"), str) and isinstance(event.get("ms"), int):
                    yield event, offset

    @property
    def ended(self) -> bool:
        return any(event["kind"] == "end" for event, _ in self.events())

    @property
    def delivered(self) -> Delivered | None:
        try:
            return Delivered(**json.loads((self.folder / "delivered.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # then it is all told once more, which changes nothing

    def acknowledge(self, delivered: Delivered) -> None:
        write_sorted(self.folder / "delivered.json", delivered.__dict__)

    def lock(self) -> bool:
        """Take the right to deliver; False when another live process has it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def unlock(self) -> None:
        self._lock.release()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
