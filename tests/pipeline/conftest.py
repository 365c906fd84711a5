"""The toy project of harness.py as fixtures."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.harness import Toy, unpack


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Project.enter` sets variables of the process; give them back."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = None


@pytest.fixture
def fresh(tmp_path: Path) -> Toy:
    """A clone in which nothing has run, in git but not yet in DVC."""
    return unpack(tmp_path / "toy")


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy = unpack(tmp_path_factory.mktemp("finished") / "toy")
    before = dict(os.environ)
    assert toy.statuses(toy.run()) == dict.fromkeys(("first", "branch@left", "branch@right", "last"), "ran"), toy.said
    os.environ.clear()
    os.environ.update(before)
    return toy.root


@pytest.fixture
def toy(_finished: Path, tmp_path: Path) -> Toy:
    """The project after a whole run."""
    shutil.copytree(_finished, tmp_path / "toy", symlinks=True)
    return Toy(tmp_path / "toy")
