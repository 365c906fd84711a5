"""Runs the report stage on made-up inputs, and reads what it made."""

from __future__ import annotations

import json
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from grape.project import Project
from grape.report import plots
from grape.schema import Report
from grape.stages import report
from grape.track import Candidate

KNOBS = Report(samples=6, unsure=0.65, saturated=0.95, redundant=0.9, length=0.5, missing=0.05)


class Run:
    """Keeps what the stage gives to its run."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.numbers: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.inputs: list[str] = []
        self.candidates: list[Candidate] = []

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.files[f"{folder}/{path.name}" if folder else path.name] = path.read_bytes()

    def headline(self, metrics: dict[str, float]) -> None:
        self.numbers |= metrics

    def tag(self, values: dict[str, str]) -> None:
        self.tags |= values

    def dataset(self, path: str, context: str) -> None:
        self.inputs.append(path)

    def champion(self, candidates: list[Candidate]) -> None:
        self.candidates = candidates


def write(
    root: Path,
    algorithms: list[str],
    seeds: list[int],
    samples: int = 6,
    budget: dict[Any, float] | None = None,
    drawn: bool = False,
) -> Run:
    """Run the stage on root/reports. drawn: with the figures, which are most of the time."""
    run = Run()
    params = SimpleNamespace(
        rl=SimpleNamespace(algorithms=algorithms, seeds=seeds, budget=budget),
        evaluate=SimpleNamespace(confidence=0.95),
        report=KNOBS.model_copy(update={"samples": samples}),
    )
    with nullcontext() if drawn else patch.object(plots, "draw", lambda *_: {}):
        report.run(SimpleNamespace(params=params, project=Project(root), run=run))  # type: ignore[arg-type]
    return run


def read(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "reports" / "metrics.json").read_text()))


class Page(HTMLParser):
    """Elements of a page, and its text; `details` has the text within closed ones."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.captions: list[tuple[str, bool]] = []  # a figure's, and whether one has to open something to see it
        self.text = ""
        self._closed = 0
        self.feed((root / "reports" / "index.html").read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self._closed += tag == "details" and "open" not in values
        if tag == "img":
            self.captions.append((values["alt"] or "", self._closed > 0))

    def handle_endtag(self, tag: str) -> None:
        self._closed -= tag == "details" and self._closed > 0

    def handle_data(self, data: str) -> None:
        self.text += data
