"""prepare: build or import the datasets, check every row, split without leakage.

Writes data/corpus, data/sft, data/prompts (train, heldout), data/judgements and data/labelled (pairs) as JSON lines in the field's
formats. What is written is what was validated; every row left out is counted by reason.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grape.artifacts import Demonstration, Document, Judgement, Preference, PromptRow, Record, checked, write_rows
from grape.data.shapes import SHAPES, Placed, converted, names
from grape.data.tables import find, from_hub, read
from grape.errors import GrapeError
from grape.files import write_lines
from grape.leakage import holds, said, turns_of
from grape.randomness import permutation
from grape.stages.modules import load_module
from grape.stages.stage import Stage
from grape.stages.usable import Places, check, required

Tables = dict[str, list[Any]]
DATASETS: dict[str, tuple[str, type[Record]]] = {
    "corpus": ("data/corpus/train.jsonl", Document),
    "sft": ("data/sft/train.jsonl", Demonstration),
    "train": ("data/prompts/train.jsonl", PromptRow),
    "heldout": ("data/prompts/heldout.jsonl", PromptRow),
    "judgements": ("data/judgements/train.jsonl", Judgement),
    "preferences": ("data/labelled/train.jsonl", Preference),
}
# What a table is called in the user's folder and in params.yaml.
NAMES: dict[str, Any] = {name: name for name in DATASETS} | {"train": "prompts"}


def run(stage: Stage) -> None:
    source = stage.path(stage.params.prepare.source)
    given, places = built(source, stage) if source.suffix == ".py" else imported(source, stage)
    given["heldout"] = given["heldout"] or take_heldout(given["train"], stage.params.prepare.heldout)
    tables, dropped = without_leakage(given)
    long = check(stage, tables, places)
    for name, (path, _) in DATASETS.items():
        write_rows(stage.path(path), tables[name])
    rows = {f"rows/{name}": float(len(tables[name])) for name in DATASETS}
    counts = {f"dropped/{reason}": float(count) for reason, count in dropped.items()}
    kept = float(sum(len(tables[name]) for name in DATASETS))
    write_lines(stage.path("reports/train/prepare.jsonl"), [{"step": 0, "rows/kept": kept, **counts}])
    for reason, count in dropped.items():
        if count:
            _say(f"{count} rows left out: {REASONS[reason]}")
    stage.run.headline(rows | counts | {name: count for name, count in long.items() if count})


REASONS = {"leakage": "they hold a held-out question", "duplicate": "prompts that stand in the data more than once"}


def built(source: Path, stage: Stage) -> tuple[Tables, Places]:
    """The datasets that a world's `build` makes, and where each row stands.

    Raises:
        GrapeError: there is no such file, it raises, or a row of it is wrong.
    """
    params = stage.params.prepare
    for key in ("files", "columns", "category", "rows"):
        if getattr(params, key):
            what = f"prepare.{key} is for a directory of files, and {params.source} is a Python file"
            raise GrapeError(
                what, where="params.yaml, prepare", mend="set prepare.source to the directory, or take the key's value out"
            )
    module = load_module(source)
    try:
        made = module.build(params, stage.params.seed)
        tables = {name: list(made.get(name, [])) for name in DATASETS}
    except (Exception, SystemExit) as error:  # a world is somebody's program
        line = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(source)), None)
        raise GrapeError(
            str(error) if isinstance(error, ValueError) else f"`build` raised {type(error).__name__}: {error}",
            where=f"{source}:{line}" if line else str(source),
            mend="change the numbers under `prepare` in params.yaml, or mend the file",
        ) from error
    where = {name: f"{source.name}, {name} " for name in DATASETS}
    for name, rows in tables.items():
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                what = f"a row is a {type(row).__name__}, not a mapping"
                raise GrapeError(what, where=f"{where[name]}{number}", mend="mend `build`")
    placed = {n: [(f"{where[n]}{i}", row) for i, row in enumerate(rows, 1)] for n, rows in tables.items()}
    return _validated(placed)


def _validated(placed: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> tuple[Tables, Places]:
    """Rows with their places -> records, and the places by id."""
    tables: Tables = {name: checked(rows, DATASETS[name][1]) for name, rows in placed.items()}
    places: Places = {}
    for name in (name for name in tables if "id" in DATASETS[name][1].model_fields):
        places |= {(name, record.id): where for record, (where, _) in zip(tables[name], placed[name], strict=True)}
    return tables, places


def imported(folder: Path, stage: Stage) -> tuple[Tables, Places]:
    """The datasets in a directory of files, and where each row stands.

    Raises:
        GrapeError: no such directory, a required file is missing, or a row is wrong (file and line).
    """
    if not folder.is_dir():
        raise GrapeError(
            f"no such directory or Python file: {stage.params.prepare.source}",
            where="params.yaml, prepare.source",
            mend="give a world's .py file or a directory with sft.jsonl and prompts.jsonl",
        )
    return _validated({name: list(_rows(folder, stage, name)) for name in NAMES})


def _rows(folder: Path, stage: Stage, table: str) -> Iterator[Placed]:
    """The rows of a table in grape's columns, at most as many as `prepare.rows` says; none where there is no such table."""
    name, params = NAMES[table], stage.params.prepare
    source, limit, columns = params.files.get(name), params.rows.get(name), params.columns.get(name, {})
    fields, shape = DATASETS[table][1].model_fields, name if name in SHAPES else "prompts"
    known = names(shape) | fields.keys()
    if strangers := sorted(columns.keys() - known):
        where = f"params.yaml, prepare.columns.{name}"
        raise GrapeError(f"{name} has no column {strangers[0]}", where=where, mend=f"one of {', '.join(sorted(known))}")
    path = None if source and source.hub else _named(folder, source.file, name) if source else find(folder, name)
    if source and source.hub:
        rows = from_hub(source)
    elif path is not None:
        rows = read(path)
    elif table in required(stage):
        mend = f'add it: {", ".join(fields)} (README, "Your own data")'
        raise GrapeError("this file is missing", where=str(folder / f"{name}.jsonl"), mend=mend)
    elif limit or columns:
        mend = f"add the file, name one in prepare.files, or take {name} out of prepare.rows and prepare.columns"
        raise GrapeError(f"there is no table {name}", where=f"params.yaml, prepare.{'rows' if limit else 'columns'}", mend=mend)
    else:
        return iter(())
    made = converted(rows, shape, str(path or (source and source.hub)), columns, params.category, _say)
    if limit is None:
        return made
    found = list(made)
    chosen = sorted(permutation(len(found), stage.params.seed, "prepare", name)[:limit].tolist())
    return (found[i] for i in chosen)


def _named(folder: Path, file: str, name: str) -> Path:
    """A file of `prepare.files`; it lies in the folder, which is what DVC compares."""
    path, where = folder / file, f"params.yaml, prepare.files.{name}"
    if not path.resolve().is_relative_to(folder.resolve()):
        what = f"{file} lies outside of prepare.source, so that a change of it would not be noticed"
        raise GrapeError(what, where=where, mend="move it there, or set prepare.source to a folder that holds all files")
    if not path.exists():
        raise GrapeError(f"no such file: {path}", where=where, mend="it is looked for in prepare.source")
    return path


def _say(text: str) -> None:
    print(f"prepare: {text}", flush=True)


def content(record: Demonstration | PromptRow) -> str:
    """What makes a prompt the same prompt: its category and all turns up to the answer."""
    turns = record.messages[:-1] if isinstance(record, Demonstration) else record.prompt
    return json.dumps([record.category, *said(turns, system=True)])


def _once(rows: Iterable[PromptRow]) -> dict[str, PromptRow]:
    """The first row of each content."""
    found: dict[str, PromptRow] = {}
    for row in rows:
        found.setdefault(content(row), row)
    return found


def take_heldout(train: Sequence[PromptRow], count: int) -> list[PromptRow]:
    """`count` prompts for evaluation, chosen by the hash of their content, so that adding rows moves no other row across."""
    different = _once(train)
    if count >= len(different):
        raise GrapeError(
            f"{count} held-out prompts asked of {len(different)} different prompts",
            where="params.yaml, prepare.heldout",
            mend="lower prepare.heldout, or give a heldout.jsonl",
        )
    ranked = sorted(different.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())
    return [row for _, row in ranked[:count]]


def without_leakage(tables: Mapping[str, list[Any]]) -> tuple[Tables, Counter[str]]:
    """Every training table without the rows that hold a held-out question, prompts once each; and how many went, by reason."""
    leaks = holds(tables["heldout"], tables["train"])
    kept, dropped = dict(tables), Counter({"leakage": 0, "duplicate": 0})
    for name in ("sft", "train", "judgements", "preferences"):
        kept[name] = [row for row in tables[name] if not leaks(turns_of(row))]
        dropped["leakage"] += len(tables[name]) - len(kept[name])
    for name in ("train", "heldout"):
        once = list(_once(kept[name]).values())
        dropped["duplicate"] += len(kept[name]) - len(once)
        kept[name] = once
    return kept, dropped
