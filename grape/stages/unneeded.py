"""What a stage that nobody needs leaves behind: outputs that say why, a receipt and a run, in the time of starting Python.

The words are those of its card, so that the outputs change when the answer does and at no other time.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from grape import dvc
from grape.files import replacing, write_json, write_lines
from grape.needed import KEY, NOTE, UNMADE
from grape.project import NONCE, Project
from grape.stages.inputs import Inputs, entry
from grape.track import StageRun


def leave_out(project: Project, name: str, inputs: Inputs, reason: str) -> None:
    """Write every output of stage `name` as what it is: not needed."""
    with StageRun(project, name, inputs.values, int(inputs.values["seed"]), deliver=NONCE not in os.environ) as run:
        run.tag({f"grape.{KEY}": reason})
        for out in outputs(project, name):
            if PurePosixPath(out).suffix:
                write_lines(project.root / out, [{"step": 0, KEY: reason}])
            else:
                with replacing(project.root / out) as folder:
                    write_json(folder / NOTE, {"stage": name, "reason": reason})
        print(f"{name}: not needed: {reason}", flush=True)
    inputs.refuse_changes()


def outputs(project: Project, name: str) -> list[str]:
    """What stage `name` makes, its receipt aside."""
    receipt = project.receipt(name).relative_to(project.root).as_posix()
    return [out for out in dvc.outputs(entry(project, "", name)) if out != receipt]


def forget(project: Project, name: str) -> None:
    """The stage is run after all: what said that it made nothing goes. (DVC has removed its outputs; nobody does by hand.)"""
    for folder in (project.root / out for out in outputs(project, name)):
        if folder.is_dir():
            for note in (NOTE, UNMADE):
                (folder / note).unlink(missing_ok=True)
