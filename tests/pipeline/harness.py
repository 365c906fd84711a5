"""A small DVC project whose stages take no time, to drive the orchestrator with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TypeVar

from grape import pipeline
from grape.pipeline.schedule import Engine, Threads
from grape.pipeline.screen import Screen
from grape.project import Project
from tests.pipeline.toy.drive import Untracked

T = TypeVar("T")
TOY = Path(__file__).with_name("toy")


@dataclass
class Toy:
    """The toy project at `root`."""

    root: Path
    said: str = ""

    @property
    def project(self) -> Project:
        return Project(self.root)

    def run(self, *targets: str, engine: Engine | None = None, sets: tuple[str, ...] = (), wait: bool = True) -> pipeline.Result:
        stream = StringIO()
        request = pipeline.Request(targets=targets, sets=sets, workers=2, wait=wait)
        try:
            return pipeline.run(self.project, request, engine or Threads(), Screen(stream), Untracked())
        finally:
            self.said = stream.getvalue()

    def start(self, *args: str) -> subprocess.Popen[str]:
        """The same in a process of its own, in its own process group."""
        return subprocess.Popen(
            [sys.executable, str(self.root / "drive.py"), *args],
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def order(self, stage: str, what: str) -> None:
        """fail | refuse | wait: what `stage` does when it runs next."""
        (self.root / "switch").mkdir(exist_ok=True)
        (self.root / "switch" / stage).write_text(what)

    def waiting_pid(self, stage: str) -> int:
        """The process of a stage that was ordered to wait, once it does."""
        path = self.root / "switch" / f"{stage}.pid"
        return int(until(lambda: path.exists() and path.read_text()))

    def release(self) -> None:
        shutil.rmtree(self.root / "switch", ignore_errors=True)

    def edit(self, old: str, new: str) -> None:
        path = self.root / "params.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def statuses(self, result: pipeline.Result) -> dict[str, str]:
        return {name: outcome.status for name, outcome in result.outcomes.items()}

    def dvc_status(self) -> object:
        out = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=self.root,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **self.project.environment()},
        )
        return json.loads(out.stdout)

    def receipt(self, stage: str) -> dict[str, object]:
        value: dict[str, object] = json.loads(self.project.receipt(stage).read_text())
        return value


def unpack(root: Path) -> Toy:
    """A clone of the toy in which nothing has run, in git but not yet in DVC."""
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))
    # Under their real names they would be part of this repository's own pipeline.
    (root / "dag.yaml").rename(root / "dvc.yaml")
    (root / "gitignore").rename(root / ".gitignore")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return Toy(root)


def until(condition: Callable[[], T], patience: float = 120) -> T:
    """Wait for something to become true; the limit only ends a test that would hang."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it never became true")
