"""`grape init DIR`: a working project for someone who installed grape as a package.

The stages are grape's own; what is the user's (parameters, rubrics, the world) is written into the folder. Grape's code
is not there to be tracked file by file, so its version stands for it: `grape.version`, kept true at every run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import grape
from grape import dvc, needed
from grape.commands import presets
from grape.errors import GrapeError
from grape.files import write_text
from grape.pipeline.preflight import algorithm_files, named_files, version_text
from grape.project import Project

GITIGNORE = "/.venv/\n/.grape/\n/data/\n/models/\n/reports/\n__pycache__/\n"
DVCIGNORE = "__pycache__\n*.pyc\n# Half-written artifacts: renamed into place when complete.\n*.partial\n.*.tmp\n/.grape/\n"


def template() -> Path:
    """Where params.yaml, dvc.yaml and rubrics/ lie: in the installed package, or the checkout we run from."""
    package = Path(grape.__path__[0])
    packed = package / "template"
    return packed if (packed / "dvc.yaml").is_file() else package.parent


def make(folder: Path, named: Sequence[str] = (), base: str | None = None) -> Iterator[str]:
    """Write the project; yields what was done.

    Args:
        named: presets; none: the default world. base: `model.base`, in place of theirs.

    Raises:
        GrapeError: the folder holds something, git is missing, there is no such preset, or what it says is not valid.
    """
    if folder.exists() and (not folder.is_dir() or any(p.name != ".git" for p in folder.iterdir())):
        raise GrapeError("it is not an empty folder", where=str(folder), mend="name a new or an empty one")
    if shutil.which("git") is None:
        raise GrapeError("git is not installed", mend="install it: DVC keeps versions with it")
    source, project = template(), Project(folder.resolve())
    chosen = [presets.read(source / "presets", name) for name in named]
    model = presets.base(chosen, base)
    text = _params(source / "params.yaml", chosen, model)
    folder.mkdir(parents=True, exist_ok=True)
    project.enter()
    written = ["params.yaml", "dvc.yaml", *_contents(source, folder, chosen), "algorithms/", "grape.version"]
    write_text(folder / "params.yaml", text)
    _write_dag(source / "dvc.yaml", folder / "dvc.yaml")
    algorithm_files(project)
    named_files(project)
    needed.write(project, needed.unneeded(project))
    for name, text in (("grape.version", version_text()), (".gitignore", GITIGNORE), (".dvcignore", DVCIGNORE)):
        write_text(folder / name, text)
    yield f"{folder}: wrote {', '.join(written)}"
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
    if model:
        yield model[1]
    yield from (f"to do: {preset.needs}" for preset in chosen if preset.needs)
    yield f"next: cd {folder} && grape run pipeline"


def _params(template: Path, chosen: Sequence[presets.Preset], model: tuple[str, str] | None) -> str:
    """The text of params.yaml, checked."""
    from grape.params import edited

    bases = [f"model.base={json.dumps(model[0])}"] if model else []
    text = edited(template, [*presets.assignments(chosen), *bases])[0] if chosen or model else template.read_text(encoding="utf-8")
    return text.replace("source: grape/world.py", "source: world.py      ")


def _contents(source: Path, folder: Path, chosen: Sequence[presets.Preset]) -> Iterator[str]:
    """Copy the data of the last preset that has any, or the default world, with its rubrics, where it has none with the default
    ones; their names."""
    mine = [source / "presets" / preset.folder for preset in chosen if preset.folder]
    own, ignore = bool(mine) and (mine[-1] / "rubrics").is_dir(), shutil.ignore_patterns("__pycache__")
    origin = mine[-1] if own else source
    shutil.copytree(origin / "rubrics", folder / "rubrics", ignore=ignore)
    yield "rubrics/"
    if not mine:
        shutil.copy(Path(grape.__path__[0]) / "world.py", folder / "world.py")
        yield "world.py"
    for data in (path for path in sorted(mine[-1].iterdir()) if path.name not in ("rubrics", "__pycache__")) if mine else ():
        if data.is_file():  # a world
            shutil.copy(data, folder / data.name)
        else:
            shutil.copytree(data, folder / data.name, ignore=ignore)
        yield data.name if data.is_file() else f"{data.name}/"


def _write_dag(source: Path, target: Path) -> None:
    """The same stages; `grape.version` in place of every dependency on a file of grape's source."""
    yaml = YAML(typ="rt")
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    dag: Any = yaml.load(source.read_text(encoding="utf-8"))
    for stage in (stage.get("do", stage) for stage in dag["stages"].values()):
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("grape/")] + ["grape.version"]
    with target.open("w", encoding="utf-8") as file:
        file.write("# Made by `grape init`. The stages are grape's; grape.version stands for its code.\n")
        yaml.dump({"vars": dag["vars"], "stages": dag["stages"]}, file)
