"""Digests are DVC's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from grape import dvc
from grape.errors import GrapeError
from grape.project import Project
from grape.receipt import read
from grape.track.digest import computed, tracked

STAGES = """
stages:
  make:
    cmd: "true"
    outs:
    - data:
        persist: true
    - one.txt:
        persist: true
"""


def test_a_computed_digest_is_the_one_dvc_computes(project: Project) -> None:
    for name in ("b.txt", "a/z.txt", "a b.txt", "a.txt", "ä.txt"):
        path = project.root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (project.root / "one.txt").write_text("one")
    (project.root / "dvc.yaml").write_text(STAGES)
    for command in (["init", "--no-scm", "--quiet"], ["repro", "--quiet"]):
        subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=project.root,
            check=True,
            env={**project.environment(), "PATH": "/usr/bin:/bin"},
        )
    lock = dvc.locked(project)
    assert set(lock) == {"data", "one.txt"}
    for path, md5 in lock.items():
        assert computed(project.root / path) == md5
    assert tracked(project, "data/a/z.txt") == lock["data"]


def test_a_path_dvc_does_not_know_yet_is_hashed(project: Project) -> None:
    (project.root / "x.txt").write_text("")
    assert tracked(project, "x.txt") == "d41d8cd98f00b204e9800998ecf8427e"
    (project.root / "dvc.lock").write_text("stages:\n  a: {outs: [")  # cut off by a kill
    assert tracked(project, "x.txt") == "d41d8cd98f00b204e9800998ecf8427e"


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "sft"}'])
def test_a_broken_receipt_is_named(project: Project, content: str) -> None:
    path = project.receipt("sft")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(GrapeError, match="sft.json"):
        read(path)
