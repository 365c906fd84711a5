"""prepare: build or import the datasets, check every row, split without leakage.

Writes data/corpus, data/sft, data/prompts (train, heldout) and data/judgements as JSON lines in the field's formats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.artifacts import Demonstration, Document, Judgement, Question, Record, write_dataset
from grape.errors import GrapeError, first_problem
from grape.stages import Stage
from grape.stages.judges import load_module

Rows = list[dict[str, Any]]
DATASETS: dict[str, tuple[str, type[Record]]] = {
    "corpus": ("data/corpus/train.jsonl", Document),
    "sft": ("data/sft/train.jsonl", Demonstration),
    "train": ("data/prompts/train.jsonl", Question),
    "heldout": ("data/prompts/heldout.jsonl", Question),
    "judgements": ("data/judgements/train.jsonl", Judgement),
}
OPTIONAL = frozenset({"corpus", "heldout", "judgements"})
FILES = {
    "corpus": "corpus.jsonl",
    "sft": "sft.jsonl",
    "train": "prompts.jsonl",
    "heldout": "heldout.jsonl",
    "judgements": "judgements.jsonl",
}


def run(stage: Stage) -> None:
    given = read_source(stage.root / stage.params.prepare.source, stage)
    rows = with_ids(given)
    rows["heldout"] = rows["heldout"] or take_heldout(rows["train"], stage.params.prepare.heldout)
    rows, dropped = without_leakage(rows)
    for name, (path, _) in DATASETS.items():
        write_dataset(stage.root / path, rows[name])
    stage.run.headline(
        {**{f"rows/{name}": float(len(rows[name])) for name in DATASETS}, "dropped/leakage": float(dropped)}
    )


def read_source(source: Path, stage: Stage) -> dict[str, Rows]:
    """The raw datasets: a world's `build`, or the JSON-lines files of a directory.

    Raises:
        GrapeError: no such source, a required file is missing, or a row is wrong (file and line).
    """
    if source.suffix == ".py":
        try:
            built: dict[str, Rows] = load_module(source).build(stage.params.prepare, stage.params.seed)
        except ValueError as error:
            raise GrapeError(
                str(error), where=str(source), mend="change the numbers under `prepare` in params.yaml"
            ) from error
        made = with_ids({name: list(built.get(name, [])) for name in DATASETS})
        for name, table in made.items():
            for number, row in enumerate(table, 1):
                _check(DATASETS[name][1], row, Path(f"{source.name}, {name}"), number)
        return made
    if not source.is_dir():
        raise GrapeError(
            f"no such directory or Python file: {stage.params.prepare.source}",
            where="params.yaml, prepare.source",
            mend="give a world's .py file or a directory with sft.jsonl and prompts.jsonl",
        )
    rows: dict[str, Rows] = {}
    for name, file in FILES.items():
        path = source / file
        if not path.is_file():
            if name not in OPTIONAL:
                raise GrapeError(
                    "this file is missing",
                    where=str(path),
                    mend=f'add it: {", ".join(DATASETS[name][1].model_fields)} (README, "Your own data")',
                )
            rows[name] = []
            continue
        raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if _is_json(line, path)]
        rows[name] = raw
        checked = with_ids({name: raw})[name]
        for number, row in enumerate(checked, 1):
            _check(DATASETS[name][1], row, path, number)
    return rows


def _is_json(line: str, path: Path) -> bool:
    if not line.strip():
        return False
    try:
        if not isinstance(json.loads(line), dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise GrapeError(
            f"a line is not a JSON object: {error}", where=f"{path}: {line[:60]}", mend="write one JSON object a line"
        ) from error
    return True


def _check(kind: type[Record], row: Mapping[str, Any], path: Path, number: int) -> None:
    from pydantic import ValidationError

    try:
        kind.model_validate(row)
    except ValidationError as error:
        column, what = first_problem(error)
        raise GrapeError(
            f"column {column}: {what}" if column else what,
            where=f"{path}:{number}",
            mend=f"columns: {', '.join(kind.model_fields)}",
        ) from error


def with_ids(rows: Mapping[str, Rows]) -> dict[str, Rows]:
    """Rows without an id get one from their place; a corpus needs none."""
    return {name: [{"id": f"{name}-{i:06d}", **row} for i, row in enumerate(table)] for name, table in rows.items()}


def content(row: Mapping[str, Any]) -> str:
    """What makes a prompt the same prompt: the text of its turns up to the question."""
    turns = row["prompt"] if "prompt" in row else row["messages"][:-1]
    return json.dumps([[t["role"], " ".join(t["content"].split())] for t in turns])


def take_heldout(train: Rows, count: int) -> Rows:
    """`count` prompts for evaluation, chosen by the hash of their content, so that adding rows moves no other row across."""
    if count >= len({content(row) for row in train}):
        raise GrapeError(
            f"{count} held-out prompts asked of {len(train)} prompts",
            where="params.yaml, prepare.heldout",
            mend="lower prepare.heldout, or give a heldout.jsonl",
        )
    ranked = sorted(
        {content(row): row for row in train}.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest()
    )
    return [row for _, row in ranked[:count]]


def without_leakage(rows: Mapping[str, Rows]) -> tuple[dict[str, Rows], int]:
    """Rows of every training set whose prompt is a held-out one removed, repeated training prompts kept once; and how many went."""
    heldout = {content(row) for row in rows["heldout"]}
    kept = dict(rows)
    for name in ("sft", "train", "judgements"):
        kept[name] = [row for row in rows[name] if content(row) not in heldout]
    kept["train"] = list({content(row): row for row in kept["train"]}.values())
    return kept, sum(len(rows[name]) - len(kept[name]) for name in kept)
