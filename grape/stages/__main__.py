"""`python3 -m grape.stages NAME [--algorithm A --seed S]`: run one stage. This is what the commands of dvc.yaml call."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grape.project import Project
    from grape.stages.inputs import Inputs

STAGES = ("prepare", "base", "sft", "critic", "preferences", "reward", "rl", "evaluate", "test", "report")


def _use_the_projects_python() -> None:
    """Go on in `.venv` when this Python lacks the packages: `.venv/bin/dvc repro` runs `python3`, which need not be the venv's."""
    from importlib.util import find_spec

    # Looked for, not imported: libraries read their environment variables when they load, and `enter()` sets some below.
    if find_spec("pydantic") and find_spec("torch"):
        return
    venv = os.path.join(os.getcwd(), ".venv")
    python = os.path.join(venv, "bin", "python3")
    if os.path.exists(python) and os.path.realpath(sys.prefix) != os.path.realpath(venv):
        os.execv(python, [python, "-m", "grape.stages", *sys.argv[1:]])
    raise SystemExit("grape: error: the packages are not installed in this Python\n  -> run `make pipeline`, or `pip install -e .`")


def _run(name: str, kind: str, algorithm: str | None, seed: int | None) -> None:
    import shutil

    from grape.project import Project

    project = Project.find()
    project.enter()
    # Only now: the variables of enter() must be set before any library reads them.
    from grape import needed
    from grape.stages import unneeded
    from grape.stages.inputs import Inputs

    inputs = Inputs.read(project, name)
    inputs.refuse_untrue_cards()
    if reason := needed.left_out(project, name, inputs.hashes):
        unneeded.leave_out(project, name, inputs, reason)
    else:
        _compute(project, inputs, kind, algorithm, seed)
    # What a checkpoint was for is done: a forced re-run starts from the beginning.
    shutil.rmtree(project.checkpoints / name, ignore_errors=True)


def _compute(project: Project, inputs: Inputs, kind: str, algorithm: str | None, seed: int | None) -> None:
    import importlib

    from grape import params as params_file
    from grape.project import NONCE
    from grape.stages import unneeded
    from grape.stages.inputs import resolved
    from grape.stages.watched import refuse_imports, refuse_loaded
    from grape.track import StageRun

    name = inputs.name
    params = params_file.load(project.params, [algorithm] if kind == "rl" and algorithm else [])
    refuse_imports(project, params, name)
    module = importlib.import_module(f"grape.stages.{kind}")
    from grape.stages.stage import Stage

    unneeded.forget(project, name)
    values, own_seed = resolved(project, params, name), params.seed if seed is None else seed
    with StageRun(project, name, values, own_seed, deliver=NONCE not in os.environ) as run:
        stage = Stage(name, kind, params, project, run, algorithm or "", seed or 0, inputs)
        module.run(stage)
        refuse_loaded(project, params, name)
        inputs.refuse_changes()
    inputs.refuse_changes()  # once more: telling MLflow may have taken minutes


def main(arguments: list[str]) -> int:
    import argparse
    import traceback
    from pathlib import Path

    from grape import disk, memory, net
    from grape.errors import GrapeError
    from grape.progress import any_terminal

    parser = argparse.ArgumentParser(prog="python3 -m grape.stages")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--algorithm")
    parser.add_argument("--seed", type=int)
    given = parser.parse_args(arguments)
    name = given.stage if given.algorithm is None else f"{given.stage}@{given.algorithm}-{given.seed}"
    any_terminal()
    try:
        _run(name, given.stage, given.algorithm, given.seed)
    except GrapeError as error:
        print(f"grape: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"grape: {name} was stopped", file=sys.stderr)
        return 130
    except Exception as error:  # boundary: a full disk has one message, and no traceback shows a password
        refusal = memory.refusal(error, name) or disk.refusal(error, Path.cwd())
        print(f"grape: error: {refusal}" if refusal else net.scrub(traceback.format_exc()), file=sys.stderr)
        return 2 if refusal else 1
    return 0


if __name__ == "__main__":
    _use_the_projects_python()
    sys.exit(main(sys.argv[1:]))
