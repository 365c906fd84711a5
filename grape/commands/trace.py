"""`grape trace`: the lineage of an artifact, a stage, an MLflow run or an exported folder, back to every data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grape.errors import GrapeError
from grape.export.lineage import ABOUT, Lineage, Records, altered, carried, hub_data, of_path, of_run, of_stage, within
from grape.project import Project


def trace(text: str) -> Lineage:
    """
    Raises:
        GrapeError: nothing of the project, no run, and no exported folder is meant by it.
    """
    place = Path(text).expanduser()
    if place.is_dir() and (found := carried(place)):
        changed = [f"{name} is no longer what was exported" for name in altered(place, found["files"])]
        about = {"folder": str(place)} | {key: found.get(key) for key in ("stage", "dtype", "replay")}
        return {"exported": about, **found["lineage"], "problems": [*changed, *found["lineage"]["problems"]]}
    project = Project.find()
    records = Records(project)
    if text in records.lock:
        return of_stage(records, text)
    path = within(project, text)
    if path is not None and (records.holders(path) or (project.root / path).exists()):
        return of_path(records, path)
    if text.isalnum() and len(text) == 32 or any(text == spool for spool in records.runs):
        return of_run(records, text)
    mend = f"a path that a stage made, a stage ({', '.join(records.lock)}), an MLflow run, or a folder with {ABOUT}"
    raise GrapeError(f"nothing here is called {text}", where="grape trace", mend=mend)


def lines(found: Lineage) -> Iterator[str]:
    """For people: the newest first."""
    exported, artifact = found.get("exported"), found["artifact"]
    if exported:
        yield f"{exported['folder']}: {exported['stage']} in {exported['dtype']}. {exported['replay']}"
    yield f"{artifact['path']}  md5 {artifact['md5']}{_note(artifact)}"
    for stage in found["stages"]:
        yield ""
        yield from _stage(stage)
    yield ""
    yield "from outside the pipeline"
    for source in found["sources"]:
        yield f"  {source['path']}  md5 {source['md5']}{_note(source)}"
        if "says" in source:
            yield f"    {source['says']}"
        for name, md5 in source.get("files", {}).items():
            yield f"    {name}  md5 {md5}"
    for stage in found["stages"]:
        for table, source in hub_data(stage).items():
            yield f"  {table}: {source}"
    if found["problems"]:
        yield ""
        yield "not as it was"
        yield from (f"  {problem}" for problem in found["problems"])


def _note(item: Mapping[str, Any]) -> str:
    return "" if item["state"] == "same" else f"  ({item['state']})"


def _stage(stage: Mapping[str, Any]) -> Iterator[str]:
    run = stage["run"] or {}
    yield f"{stage['stage']}  {run.get('started', 'at a time that no receipt tells')}"
    if run:
        where = run["run_id"] or f"the one tagged grape.spool = {run['spool']}"
        revision = f"{run['git_revision']}{' with changes' * bool(run['git_dirty'])}" if run["git_revision"] else "none"
        yield f"  MLflow run {where}; git revision {revision}"
    changed = f", {len(stage['code_changed'])} changed since" if stage["code_changed"] else ""
    yield f"  code: {len(stage['code'])} files and folders, md5 of each with --json{changed}"
    for item in stage["inputs"]:
        by = f"  from {', '.join(item['made_by'])}" if item["made_by"] else ""
        yield f"  read  {item['path']}  md5 {item['md5']}{by}{_note(item)}"
    for item in stage["outputs"]:
        yield f"  made  {item['path']}  md5 {item['md5']}{_note(item)}"
    for name, value in stage["params"].items():
        yield f"  param {name}: {value}"
