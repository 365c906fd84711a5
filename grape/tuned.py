"""`inputs/tuned.yaml`: what `grape tune` found, algorithm by algorithm. A tracked file of text; the report shows it, and
`grape run compare --tuned` trains with it.

What an algorithm was tuned for stands beside what was found: its budget, its seeds, and of the rest of the project a short hash for
each section of params.yaml and each input. `unlike` says which of these are others now.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML

from grape import yamlfile
from grape.errors import GrapeError, first_problem
from grape.evaluation.record import JudgeName, Strict
from grape.files import write_text
from grape.named import FOLDER
from grape.project import Project
from grape.track import digest

FILE = f"{FOLDER}/tuned.yaml"
HEAD = "# What `grape tune` found, for `grape run compare --tuned` and the report. grape writes this file.\n"
SECTIONS = ("seed", "model", "prepare", "base", "sft", "critic", "preferences", "reward", "rl")
APART = ("algorithms", "seeds", "validate_every")  # of rl: what a trial sets, or what changes no result
INPUTS = ("data/prompts/train.jsonl", "data/prompts/validation.jsonl", "models/sft", "rubrics")
Value = float | int | str | bool | None


class Spread(Strict):
    """Of the scores of complete trials; a pruned or failed one has none."""

    best: float
    median: float
    low: float
    high: float
    worst: float

    @classmethod
    def of(cls, scores: list[float]) -> Spread:
        """low and high: the quartiles, of one score that score."""
        quarters = quantiles(scores, n=4, method="inclusive") if len(scores) > 1 else scores * 3
        found = max(scores), median(scores), quarters[0], quarters[2], min(scores)
        return cls(**dict(zip(cls.model_fields, (round(value, 6) for value in found), strict=True)))


class Tuned(Strict):
    """What was found for one algorithm.

    Attributes:
        knobs: of the best trial. present: the score of the settings as they were, the first trial; None: that trial failed.
        judge: who gives the scores, on the validation prompts. complete, pruned, failed: trials. scores: of the complete ones, in
        order. share: of the budget that each trial had, `steps` rounds, of SFT updates; seeds: a trial's score is the mean over
        them. made_for: what `surroundings` said.
    """

    knobs: dict[str, Value]
    judge: JudgeName
    spread: Spread
    present: float | None
    complete: int = Field(ge=1)
    pruned: int = Field(ge=0)
    failed: int = Field(ge=0)
    scores: list[float]
    share: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    seeds: list[int] = Field(min_length=1)
    made_for: dict[str, str]

    @property
    def trials(self) -> int:
        return self.complete + self.pruned + self.failed

    @property
    def chance(self) -> dict[str, Any]:
        """What has to be the same for all algorithms that are compared."""
        return {"trials": self.trials, "share of the budget": self.share, "rounds": self.steps, "seeds": self.seeds}


def read(root: Path) -> dict[str, Tuned]:
    """Algorithm -> what was found; {} where nothing was tuned yet.

    Raises:
        GrapeError: the file is not what grape writes.
    """
    path, mend = root / FILE, "restore it from git, or delete it and run `grape tune`, which finds its trials again"
    if not path.is_file():
        return {}
    told = yamlfile.at(yamlfile.read(path), "algorithms", {})
    try:
        return {str(name): Tuned.model_validate(entry) for name, entry in told.items()}
    except (ValidationError, AttributeError) as error:
        what = ": ".join(first_problem(error)) if isinstance(error, ValidationError) else "`algorithms` is no mapping"
        raise GrapeError(what, where=FILE, mend=mend) from error


def write(root: Path, found: Mapping[str, Tuned]) -> None:
    write_text(root / FILE, _text(found))


def card(root: Path) -> None:
    """An empty file where nothing was tuned yet, since the report depends on it."""
    if not (root / FILE).exists():
        write(root, {})


def _text(found: Mapping[str, Tuned]) -> str:
    yaml, buffer = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = None, 130
    yaml.dump({"algorithms": {name: json.loads(entry.model_dump_json()) for name, entry in sorted(found.items())}}, buffer)
    return HEAD + buffer.getvalue()


def surroundings(project: Project) -> dict[str, str]:
    """Short hashes of what decides a run beside the algorithm's knobs, its seed and its budget's share. Of data and models that are
    not made yet there is none."""
    tree, found = yamlfile.read(project.params), {}
    for name in SECTIONS:
        section = yamlfile.at(tree, name)
        told = {key: value for key, value in section.items() if key not in APART} if name == "rl" else section
        found[f"params.yaml, {name}"] = _short(json.dumps(told, sort_keys=True, default=str))
    for path in (*INPUTS, str(yamlfile.at(tree, "prepare.source", ""))):
        if path and (project.root / path).exists():
            found[path] = _short(digest.tracked(project, path) or digest.computed(project.root / path, project))
    return found


def unlike(entry: Tuned, now: Mapping[str, str]) -> list[str]:
    """What is another now than it was tuned for."""
    return [name for name, value in now.items() if entry.made_for.get(name, value) != value]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
