"""A project with data of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from grape import params as params_file
from grape.project import Project
from tests.odd_inputs.own_data import FILES, RUBRICS


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path / name)
    for folder, files in (("rubrics", {f"{k}.yaml": v.encode() for k, v in RUBRICS.items()}), ("mine", FILES)):
        (tmp_path / folder).mkdir()
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(data)
    shutil.copytree(root / "inputs", tmp_path / "inputs")
    params_file.set_values(tmp_path / "params.yaml", ["prepare.source=mine"])
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)
