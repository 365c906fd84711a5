"""`grape init DIR`: a working project for someone who installed grape as a package.

The stages are grape's own; what is the user's (parameters, rubrics, the world) is written into the folder. Grape's code
is not there to be tracked file by file, so its version stands for it: `grape.version`, kept true at every run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import grape
from grape import dvc, needed
from grape.errors import GrapeError
from grape.files import write_text
from grape.pipeline.preflight import algorithm_files, named_files, version_text
from grape.project import Project

GITIGNORE = "/.venv/\n/.grape/\n/data/\n/models/\n/reports/\n__pycache__/\n"
DVCIGNORE = "__pycache__\n*.pyc\n# Half-written artifacts: renamed into place when complete.\n*.partial\n.*.tmp\n"
WELCOME = ("params.yaml", "dvc.yaml", "rubrics/", "algorithms/", "world.py", "grape.version")


def template() -> Path:
    """Where params.yaml, dvc.yaml and rubrics/ lie: in the installed package, or the checkout we run from."""
    package = Path(grape.__path__[0])
    packed = package / "template"
    return packed if (packed / "dvc.yaml").is_file() else package.parent


def make(folder: Path) -> Iterator[str]:
    """Write the project; yields what was done.

    Raises:
        GrapeError: the folder holds something, or git is missing.
    """
    if folder.exists() and (not folder.is_dir() or any(p.name != ".git" for p in folder.iterdir())):
        raise GrapeError("it is not an empty folder", where=str(folder), mend="name a new or an empty one")
    if shutil.which("git") is None:
        raise GrapeError("git is not installed", mend="install it: DVC keeps versions with it")
    folder.mkdir(parents=True, exist_ok=True)
    source, project = template(), Project(folder.resolve())
    project.enter()
    shutil.copytree(source / "rubrics", folder / "rubrics", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(grape.__path__[0]) / "world.py", folder / "world.py")
    text = (source / "params.yaml").read_text(encoding="utf-8")
    write_text(folder / "params.yaml", text.replace("source: grape/world.py", "source: world.py      "))
    _write_dag(source / "dvc.yaml", folder / "dvc.yaml")
    algorithm_files(project)
    named_files(project)
    needed.write(project, needed.unneeded(project))
    for name, text in (("grape.version", version_text()), (".gitignore", GITIGNORE), (".dvcignore", DVCIGNORE)):
        write_text(folder / name, text)
    yield f"{folder}: wrote {', '.join(WELCOME)}"
    inside = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True)
    if inside.returncode:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True, capture_output=True)
        yield "made it a git repository"
    top = inside.stdout.strip()
    within = [] if inside.returncode or Path(top).resolve() == folder.resolve() else ["--subdir"]
    dvc.ask(project, "init", "--quiet", *within).answer()
    yield "set it up for DVC"
    identity = subprocess.run(["git", "config", "user.email"], cwd=folder, capture_output=True, text=True)
    if identity.returncode:
        yield "git has no identity (user.name, user.email) here: running needs none, committing does"
    yield f"next: cd {folder} && grape run pipeline"


def _write_dag(source: Path, target: Path) -> None:
    """The same stages; `grape.version` in place of every dependency on a file of grape's source."""
    yaml = YAML(typ="rt")
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    dag: Any = yaml.load(source.read_text(encoding="utf-8"))
    for stage in dag["stages"].values():
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("grape/")] + ["grape.version"]
    with target.open("w", encoding="utf-8") as file:
        file.write("# Made by `grape init`. The stages are grape's; grape.version stands for its code.\n")
        yaml.dump({"stages": dag["stages"]}, file)
