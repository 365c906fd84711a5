"""The toy project of harness.py as fixtures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.harness import Toy, unpack

# What programs take for the end of a path, a variable, a code: the project's state must lie inside all the same.
ODD = "tóy ?a%20b#c$HOME"


@pytest.fixture
def fresh(tmp_path: Path) -> Toy:
    """A clone in which nothing has run, in git but not yet in DVC."""
    return unpack(tmp_path / ODD)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy = unpack(tmp_path_factory.mktemp("finished") / "toy")
    before = dict(os.environ)
    assert toy.statuses(toy.run()) == dict.fromkeys(("first", "branch@left", "branch@right", "last"), "ran"), toy.said
    os.environ.clear()
    os.environ.update(before)
    return toy.root


@pytest.fixture
def toy(_finished: Path, tmp_path: Path) -> Iterator[Toy]:
    """The project after a whole run. Nothing may be written beside it."""
    shutil.copytree(_finished, tmp_path / ODD, symlinks=True)
    yield Toy(tmp_path / ODD)
    assert [path.name for path in tmp_path.iterdir()] == [ODD]
