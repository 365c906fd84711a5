"""The spool: every call a run makes to the tracker, kept on disk before MLflow sees it.

A run has a folder `.grape/runs/<stage>-<utc>-<id>/`:

    meta.json        what is known at the start: stage, parameters, tags, parent, process
    events.jsonl     one call a line, in order, with the time it was made
    files/           copies of plots and tables, which may be overwritten before they are delivered
    delivered.json   how far MLflow has it: store, run id, bytes of events.jsonl
    lock             held by the process that delivers

The folder is removed once MLflow has all of it. What is left over is what `sync` replays.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grape.project import Project
from grape.receipt import write_json

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

    @classmethod
    def create(cls, project: Project, stage: str, meta: dict[str, Any]) -> Spool:
        started = time.time()
        utc = time.strftime("%Y%m%dT%H%M%S", time.gmtime(started))
        folder = project.state / "runs" / f"{stage.replace('/', '-')}-{utc}-{uuid.uuid4().hex[:8]}"
        (folder / "files").mkdir(parents=True)
        (folder / "events.jsonl").touch()
        write_json(folder / "meta.json", {**meta, "stage": stage, "started_ms": int(started * 1000)})
        return cls(folder)

    @classmethod
    def pending(cls, project: Project) -> list[Spool]:
        """Spools on disk, oldest first."""
        folders = [path.parent for path in (project.state / "runs").glob("*/meta.json")]
        return sorted((cls(folder) for folder in folders), key=lambda spool: spool.meta["started_ms"])

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        return meta

    def append(self, kind: str, **values: Any) -> None:
        line = json.dumps({"kind": kind, "ms": int(time.time() * 1000), **values}, ensure_ascii=False)
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def keep(self, path: Path) -> str:
        """Copy a file into the spool; its name there."""
        name = f"{uuid.uuid4().hex[:8]}/{path.name}"
        (self.folder / "files" / name).parent.mkdir()
        shutil.copyfile(path, self.folder / "files" / name)
        return name

    def events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """Events from a byte offset on, each with the offset after it. A half-written last line is not there yet."""
        with (self.folder / "events.jsonl").open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield json.loads(line), offset

    @property
    def ended(self) -> bool:
        return any(event["kind"] == "end" for event, _ in self.events())

    @property
    def delivered(self) -> Delivered | None:
        try:
            return Delivered(**json.loads((self.folder / "delivered.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    def acknowledge(self, delivered: Delivered) -> None:
        write_json(self.folder / "delivered.json", delivered.__dict__)

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
