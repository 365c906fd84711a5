"""What a stage reads, as dvc.yaml says: the one place where that is written down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from grape.project import Project
from grape.slot import USE
from grape.track import digest

if TYPE_CHECKING:
    from grape.params import Params


def entry(project: Project, params: Params, name: str) -> dict[str, Any]:
    """The stage's entry of dvc.yaml, with DVC's `${...}` filled in."""
    kind, _, item = name.partition("@")
    algorithm, _, seed = item.rpartition("-")
    text = json.dumps(YAML(typ="safe").load(project.root / "dvc.yaml")["stages"][kind])
    for place, value in (
        ("${item.algorithm}", algorithm),
        ("${item.seed}", seed),
        ("${prepare.source}", params.prepare.source),
    ):
        text = text.replace(place, value)
    found: dict[str, Any] = json.loads(text)
    return found


def resolved(project: Project, params: Params, name: str) -> dict[str, Any]:
    """Every parameter stage `name` reads, defaults filled in, by dotted key."""
    values: dict[str, Any] = {}
    for key in entry(project, params, name)["params"]:
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


def identity(project: Project, params: Params, name: str) -> dict[str, str]:
    """The parameters (as JSON), input bytes and code (as md5) of a stage: a checkpoint of another identity is not gone on from."""
    read = entry(project, params, name)
    inputs = {path: digest.tracked(project, path) for path in read["deps"] if (project.root / path).exists()}
    values = {key: json.dumps(value, sort_keys=True, default=str) for key, value in resolved(project, params, name).items()}
    return {**values, **inputs}
