"""The cards of `inputs/`, which grape keeps before each run, for tests that call stages by themselves."""

from __future__ import annotations

from grape import needed
from grape import params as params_file
from grape.files import write_text
from grape.project import Project


def ask_for(project: Project, algorithm: str, seed: int = 0) -> None:
    """Name this run, and no other, in `inputs/runs.yaml`, whatever params.yaml asks for."""
    changes = [f"rl.algorithms=[{algorithm}]", f"rl.seeds=[{seed}]"]
    runs = needed.answered(params_file.edited(project.params, changes)[1], project.root).runs
    (project.root / needed.FOLDER).mkdir(exist_ok=True)
    write_text(project.root / needed.RUNS, needed.listed(runs))
