"""What a stage reads, as dvc.yaml says: the one place where that is written down, and the state of it when the stage began."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grape import dvc, named, needed, yamlfile
from grape.errors import GrapeError
from grape.project import Project
from grape.slot import USE
from grape.track import digest

if TYPE_CHECKING:
    from grape.params import Params

MISSING = "missing"
NAMED = 3  # files of a folder that a message names
Marks = dict[str, tuple[int, int, int]]  # file -> time of its last change, size, inode: where they stay, the bytes do


def entry(project: Project, source: str, name: str) -> dict[str, Any]:
    """The stage's entry of dvc.yaml, with DVC's `${...}` filled in.

    Args:
        source: prepare.source.
    """
    kind, _, item = name.partition("@")
    algorithm, _, seed = item.rpartition("-")
    places = {"${item.algorithm}": algorithm, "${item.seed}": seed, "${prepare.source}": source}
    for key, reads in (needed.runs(project).get(item, {}) if item else {}).items():
        places |= {f"${{item.{key}.{stage}}}": str(path) for stage, path in reads.items()} if isinstance(reads, dict) else {}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(key): filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        if isinstance(value, str):
            for place, text in places.items():
                value = value.replace(place, text)
        return value

    found: dict[str, Any] = filled(dvc.stages(project).get(kind) or {})
    if not all(isinstance(found.get(key), list) and all(isinstance(x, str) for x in found[key]) for key in ("deps", "params")):
        raise GrapeError(
            f"the stage {kind} is not there, or lacks its lists `deps` and `params`",
            where="dvc.yaml",
            mend="restore it from git or from `grape init`",
        )
    return found


def paths(project: Project, source: str, name: str) -> frozenset[str]:
    """What the stage may open: its dependencies and outputs."""
    declared = entry(project, source, name)
    return frozenset([*declared["deps"], *dvc.outputs(declared)])


@dataclass(frozen=True)
class Inputs:
    """What stage `name` reads, as it was when it began.

    DVC looks at a stage's dependencies when the stage has ended, and would record what was edited meanwhile as what ran.

    Attributes:
        hashes: DVC's md5 of each dependency. values: each parameter as it stands in params.yaml.
    """

    project: Project
    name: str
    hashes: dict[str, str]
    values: dict[str, Any]
    _marks: dict[str, Marks]

    @classmethod
    def read(cls, project: Project, name: str) -> Inputs:
        """To be called before the code of the stage is imported.

        Raises:
            GrapeError: params.yaml or dvc.yaml cannot be read, or nobody has said what this run reads.
        """
        tree = yamlfile.read(project.params)
        declared = entry(project, str(yamlfile.at(tree, "prepare.source", MISSING)), name)
        if any("${item." in path for path in declared["deps"]):
            raise GrapeError(f"{needed.RUNS} does not name this run", where=f"stage {name}", mend=needed.ANEW)
        # Marks first: what changes while it is hashed is then seen as changed.
        marks = {path: _marks(project, path) for path in declared["deps"]}
        # An output of an earlier stage has just been compared with dvc.lock, which spares hashing a model.
        known = dvc.locked(project)
        hashes = {path: known.get(path) or _hash(project, path) for path in declared["deps"]}
        return cls(project, name, hashes, {key: yamlfile.at(tree, key, MISSING) for key in declared["params"]}, marks)

    def refuse_untrue_cards(self) -> None:
        """
        Raises:
            GrapeError: what params.yaml names is not what DVC compares in its place.
        """
        for key in named.untrue(self.project, yamlfile.read(self.project.params), self.hashes):
            raise GrapeError(
                f"{named.FOLDER}/{key} does not say what {key} names now", where=f"stage {self.name}", mend=needed.ANEW
            )
        if needed.RUNS in self.hashes and needed.unlisted(self.project, yamlfile.read(self.project.params)):
            what = f"{needed.RUNS} does not name the runs that rl.algorithms and rl.seeds ask for now"
            raise GrapeError(what, where=f"stage {self.name}", mend=needed.ANEW)

    def changed(self) -> list[str]:
        """What is not as it was, for people; [] where all is. Bytes are only read again where a file was touched."""
        found = []
        for path, before in self._marks.items():
            now = _marks(self.project, path)
            if now != before and _hash(self.project, path) != self.hashes[path]:
                touched = sorted(file for file in now.keys() | before.keys() if now.get(file) != before.get(file) and file)
                more = f" and {len(touched) - NAMED} more" if len(touched) > NAMED else ""
                found.append(path + (f" ({', '.join(touched[:NAMED])}{more})" if touched else ""))
        try:
            tree = yamlfile.read(self.project.params)
        except GrapeError as error:
            return [*found, f"{error.where} ({error.what})"]
        keys = [key for key, value in self.values.items() if yamlfile.at(tree, key, MISSING) != value]
        found += [f"what {key} names" for key in named.untrue(self.project, tree, self.hashes) if key not in keys]
        return [*found, *([f"params.yaml ({', '.join(keys)})"] if keys else [])]

    def refuse_changes(self) -> None:
        """
        Raises:
            GrapeError: something the stage reads has changed since it began, so that nobody can say what it ran on.
        """
        if changed := self.changed():
            raise GrapeError(
                f"changed while the stage ran, so its results are not recorded: {'; '.join(changed)}",
                where=f"stage {self.name}",
                mend="undo the edit and run it again, which goes on from its last checkpoint, or keep the edit and "
                "run it again from the beginning",
            )


def _marks(project: Project, path: str) -> Marks:
    whole = project.root / path
    files = {"": whole} if not whole.is_dir() else {f.relative_to(whole).as_posix(): f for f in digest.files(project, whole)}
    marks = {}
    for name, file in files.items():
        try:
            found = file.stat()
            marks[name] = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            continue  # gone: then it has no mark
    return marks


def _hash(project: Project, path: str) -> str:
    try:
        return digest.computed(project.root / path, project)
    except OSError:
        return MISSING


def resolved(project: Project, params: Params, name: str) -> dict[str, Any]:
    """Every parameter stage `name` reads, defaults filled in, by dotted key."""
    values: dict[str, Any] = {}
    for key in entry(project, params.prepare.source, name)["params"]:
        if key.startswith("algorithms."):
            algorithm_name = key.partition(".")[2]
            use = (params.algorithms.get(algorithm_name) or {}).get(USE)
            values[key] = params.algorithm(algorithm_name).model_dump() | ({USE: use} if use else {})
            continue
        value: Any = params
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value.model_dump() if hasattr(value, "model_dump") else value
    return values


def identity(project: Project, params: Params, name: str, inputs: Inputs | None = None) -> dict[str, str]:
    """The parameters (as JSON), input bytes and code (as md5) of a stage: a checkpoint of another identity is not gone on from.

    Args:
        inputs: as the stage found them when it began; None: as they are now.
    """
    hashes = (inputs or Inputs.read(project, name)).hashes
    values = {key: json.dumps(value, sort_keys=True, default=str) for key, value in resolved(project, params, name).items()}
    return values | {path: value for path, value in hashes.items() if value != MISSING}
