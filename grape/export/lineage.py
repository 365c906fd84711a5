"""Where an artifact comes from: from dvc.lock and the receipts alone, back to every data set. No server is asked.

A lineage is plain JSON, so that an exported folder carries it:

    artifact   path, md5, state (`same`, `changed` or `missing`: the bytes on disk against md5)
    stages     the one that made it first, then those that made what it read: stage, cmd, run, params, inputs, outputs
    sources    what no stage made: path, md5, state, and of prepare's source every file with its md5
    problems   in words: what is no longer what the lineage names

`run` is what the receipt says of the stage's run: MLflow's id, revision, time; None where the receipt is not the one of this run.
An input's `state` is also `remade` where the stage that makes it has made other bytes since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from grape import dvc, named, receipt, yamlfile
from grape.errors import GrapeError
from grape.files import read_json
from grape.needed import CARDS as NEEDS
from grape.project import Project
from grape.track import digest, known_runs

Lineage = dict[str, Any]
Lock = Mapping[str, Mapping[str, Any]]
ABOUT = "grape.json"  # of an exported folder: what it is, the md5 of its files, its lineage
CODE = ("grape", "algorithms", "flows", "grape.version")
KEPT = "run_id spool started ended seconds git_revision git_dirty seed headline versions python platform".split()
WORDS = {"changed": "is no longer what it was", "missing": "is not on disk", "remade": "has been made anew since it was read"}


class Records:
    """dvc.lock with the receipts.

    Raises:
        GrapeError: dvc.lock is not there, or damaged.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        try:
            self.lock: Lock = dvc.read_lock(project.root / "dvc.lock")
        except ValueError as error:
            mend = "`grape run` restores it; git has older ones"
            raise GrapeError(f"cannot be read: {error}", where="dvc.lock", mend=mend) from error
        self.makers = {out["path"]: (stage, str(out["md5"])) for stage, entry in self.lock.items() for out in _items(entry, "outs")}
        self._digests: dict[str, str | None] = {}

    @cached_property
    def runs(self) -> dict[str, str]:
        """Spool -> MLflow run."""
        return known_runs(self.project)

    def md5(self, path: str) -> str | None:
        """Of what lies there now; None: nothing does."""
        if path not in self._digests:
            place = self.project.root / path
            self._digests[path] = digest.computed(place, self.project) if place.exists() else None
        return self._digests[path]

    def state(self, path: str, md5: str) -> str:
        now = self.md5(path)
        return "missing" if now is None else "same" if now == md5 else "changed"

    def holders(self, path: str) -> list[str]:
        """The outputs that this path is, lies in, or holds."""
        wanted = PurePosixPath(path)
        return [out for out in self.makers if wanted.is_relative_to(out) or PurePosixPath(out).is_relative_to(wanted)]

    def receipt_of(self, stage: str) -> receipt.Receipt | None:
        """The receipt that the stage left when it made what dvc.lock names; None: there is no such receipt."""
        path = self.project.receipt(stage)
        name = path.relative_to(self.project.root).as_posix()
        return receipt.read(path) if name in self.makers and self.md5(name) == self.makers[name][1] else None

    def run_id(self, found: receipt.Receipt) -> str | None:
        return found["run_id"] or self.runs.get(found["spool"])


def _items(entry: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    return (item for item in entry.get(kind) or [] if "md5" in item)


def of_path(records: Records, path: str) -> Lineage:
    """
    Raises:
        GrapeError: no stage in dvc.lock made it.
    """
    found = next((out for out in records.holders(path) if PurePosixPath(path).is_relative_to(out)), None)
    if found is None:
        known = ", ".join(sorted({stage for stage, _ in records.makers.values()})) or "none: nothing has run yet"
        raise GrapeError(f"no stage made {path}", where="dvc.lock", mend=f"a path that a stage made, or a stage: {known}")
    stage, md5 = records.makers[found]
    stages, sources = _walk(records, stage)
    artifact = {"path": found, "md5": md5, "state": records.state(found, md5)}
    return {"artifact": artifact, "stages": stages, "sources": sources, "problems": list(_problems(artifact, stages, sources))}


def of_stage(records: Records, stage: str) -> Lineage:
    """The lineage of what a stage made: its model, else the first of its outputs.

    Raises:
        GrapeError: it has not run.
    """
    if stage not in records.lock:
        raise GrapeError(f"{stage} has no record of a run", where="dvc.lock", mend=f"run it: grape run {stage}")
    outs = [str(out["path"]) for out in _items(records.lock[stage], "outs")]
    return of_path(records, next((out for out in outs if out.startswith("models/")), outs[0]))


def of_run(records: Records, run: str) -> Lineage:
    """
    Raises:
        GrapeError: no receipt is of this MLflow run.
    """
    for stage in records.lock:
        found = records.receipt_of(stage)
        if found is not None and run in (records.run_id(found), found["spool"]):
            return of_stage(records, stage)
    mend = "a run whose results are there now; an earlier one's are in DVC's cache: check out its dvc.lock from git"
    raise GrapeError(f"no receipt is of the run {run}", where="reports/receipts", mend=mend)


def _walk(records: Records, first: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every stage from `first` back, each before those that made what it read; and what they read that no stage made."""
    stages: dict[str, dict[str, Any]] = {}
    sources: dict[str, dict[str, Any]] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in stages or name in above:
            return
        found = _stage(records, name)
        for dep in found["inputs"]:
            for maker in dep["made_by"]:
                visit(maker, (*above, name))
            # A card that only says whether a stage is needed is the source of nothing.
            if not dep["made_by"] and dep["path"] not in NEEDS:
                sources.setdefault(dep["path"], _source(records, dep))
        stages[name] = found

    visit(first, ())
    return list(reversed(stages.values())), list(sources.values())


def _stage(records: Records, name: str) -> dict[str, Any]:
    entry, found = records.lock[name], records.receipt_of(name)
    run = None if found is None else {key: found.get(key) for key in KEPT} | {"run_id": records.run_id(found)}
    locked = {key: value for values in (entry.get("params") or {}).values() for key, value in values.items()}
    deps = [(str(dep["path"]), str(dep["md5"])) for dep in _items(entry, "deps")]
    source = param({"params": locked}, "prepare.source")
    code = {path: md5 for path, md5 in deps if path.split("/")[0] in CODE and path != source}
    outs = [(str(out["path"]), str(out["md5"])) for out in _items(entry, "outs")]
    return {
        "stage": name,
        "cmd": entry["cmd"],
        "run": run,
        "params": found["params"] if found else locked,
        "inputs": [_input(records, path, md5) for path, md5 in deps if path not in code],
        "outputs": [{"path": path, "md5": md5, "state": records.state(path, md5)} for path, md5 in outs],
        "code": code,
        "code_changed": [path for path, md5 in code.items() if records.md5(path) != md5],
        "datasets": found["datasets"] if found else {},
    }


def _input(records: Records, path: str, md5: str) -> dict[str, Any]:
    made = records.makers.get(path)
    state = records.state(path, md5)
    if made is not None and made[1] != md5:
        state = "remade"
    return {"path": path, "md5": md5, "made_by": [records.makers[out][0] for out in records.holders(path)], "state": state}


def _source(records: Records, dep: Mapping[str, Any]) -> dict[str, Any]:
    """What was there before any stage: prepare's source with its files, rubrics, cards."""
    path, found = records.project.root / dep["path"], {k: dep[k] for k in ("path", "md5", "state")}
    if dep["path"].startswith(f"{named.FOLDER}/") and path.is_file() and dep["state"] == "same":
        return found | {"says": path.read_text(encoding="utf-8").strip().removeprefix("# ")}
    if path.is_dir() and dep["state"] == "same":
        files = sorted(digest.files(records.project, path))
        return found | {"files": {f.relative_to(path).as_posix(): digest.computed(f) for f in files}}
    return found


def _problems(artifact: Mapping[str, Any], stages: list[dict[str, Any]], sources: list[dict[str, Any]]) -> Iterator[str]:
    said = set()
    for item in (artifact, *(i for stage in stages for i in (*stage["inputs"], *stage["outputs"])), *sources):
        if item["state"] != "same" and (item["path"], item["state"]) not in said:
            said.add((item["path"], item["state"]))
            yield f"{item['path']} {WORDS[item['state']]} (md5 {item['md5']})"
    for stage in stages:
        if stage["run"] is None:
            yield f"{stage['stage']}: its receipt is not the one of this run"


def param(stage: Mapping[str, Any], key: str) -> Any:
    """A parameter that the stage read, by its dotted key; None: it read no such one. Declared are keys and whole sections."""
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        head = ".".join(parts[:n])
        if head in stage["params"]:
            return yamlfile.at({"": stage["params"][head]}, ".".join(["", *parts[n:]]))
    return None


def hub_data(stage: Mapping[str, Any]) -> dict[str, str]:
    """Table -> the data set of the hub, with its commit, that prepare read it from."""
    given = param(stage, "prepare.files") or {}
    said = {name: source for name, source in given.items() if isinstance(source, Mapping) and source.get("hub")}
    return {name: f"{source['hub']} at {source.get('revision')}, split {source.get('split')}" for name, source in said.items()}


def stage_of(lineage: Lineage, name: str) -> dict[str, Any] | None:
    """A stage of the lineage by its name; None: it is not among them."""
    return next((stage for stage in lineage["stages"] if stage["stage"] == name), None)


def within(project: Project, text: str) -> str | None:
    """A path within the project, relative to it, however it was written; None: it lies elsewhere."""
    for base in (Path.cwd(), project.root):
        path = (base / text).resolve()
        if path != project.root and path.is_relative_to(project.root):
            return path.relative_to(project.root).as_posix()
    return None


def carried(place: Path) -> dict[str, Any] | None:
    """What an exported folder says of itself; None: it is none.

    Raises:
        GrapeError: its grape.json is not what `grape export` writes.
    """
    if not (place / ABOUT).is_file():
        return None
    found = read_json(place / ABOUT)
    if not isinstance(found, dict) or not {"stage", "files", "lineage"} <= found.keys():
        raise GrapeError("this is not what `grape export` writes", where=str(place / ABOUT), mend="export the model again")
    return found


def altered(place: Path, files: dict[str, str]) -> list[str]:
    """The files that are no longer as they were exported."""
    now = {name: digest.computed(place / name) if (place / name).is_file() else None for name in files}
    return [name for name, md5 in files.items() if now[name] != md5]
