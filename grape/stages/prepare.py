"""prepare: build or import the datasets, check every row, split without leakage.

Writes data/corpus, data/sft, data/prompts (train, validation, test), data/judgements and data/labelled (pairs) as JSON lines in the
field's formats. What is written is what was validated; every row left out is counted by reason.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from grape.artifacts import Demonstration, Document, Judgement, Preference, PromptRow, Record, columns
from grape.data.mix import rows_of
from grape.data.tables import READERS, Source, find
from grape.errors import GrapeError
from grape.files import write_lines, write_whole
from grape.leakage import holds, said, turns_of
from grape.stages.modules import load_module
from grape.stages.stage import Stage
from grape.stages.usable import check, required
from grape.table import Placed, Table

Tables = dict[str, Table[Any]]
DATASETS: dict[str, tuple[str, type[Record]]] = {
    "corpus": ("data/corpus/train.jsonl", Document),
    "sft": ("data/sft/train.jsonl", Demonstration),
    "train": ("data/prompts/train.jsonl", PromptRow),
    "validation": ("data/prompts/validation.jsonl", PromptRow),
    "test": ("data/prompts/test.jsonl", PromptRow),
    "judgements": ("data/judgements/train.jsonl", Judgement),
    "preferences": ("data/labelled/train.jsonl", Preference),
}
# What a table is called in the user's folder and in params.yaml.
NAMES: dict[str, Any] = {name: name for name in DATASETS} | {"train": "prompts"}


def run(stage: Stage) -> None:
    source, unpaired = stage.path(stage.params.prepare.source), Counter[str]()
    given = built(source, stage) if source.suffix == ".py" else imported(source, stage, unpaired)
    tables, dropped = without_leakage(held_out(given, stage.params.prepare.validation, stage.params.prepare.test))
    dropped.update({reason: count for reason, count in unpaired.items() if count})
    long = check(stage, tables)
    for name, (path, _) in DATASETS.items():
        write_whole(stage.path(path), tables[name].lines())
    rows = {f"rows/{name}": float(len(tables[name])) for name in DATASETS}
    counts = {f"dropped/{reason}": float(count) for reason, count in dropped.items()}
    kept = float(sum(len(tables[name]) for name in DATASETS))
    write_lines(stage.path("reports/train/prepare.jsonl"), [{"step": 0, "rows/kept": kept, **counts}])
    for reason, count in dropped.items():
        if count:
            _say(f"{count} rows left out: {REASONS[reason]}")
    stage.run.headline(rows | counts | {name: count for name, count in long.items() if count})


REASONS = {
    "leakage": "they hold a held-out question",
    "duplicate": "prompts that stand in the data more than once",
    "unpaired": "answers to a prompt that has none of the other label beside them",
}


def built(source: Path, stage: Stage) -> Tables:
    """The datasets that a world's `build` makes.

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
        rows = {name: list(made.get(name, [])) for name in DATASETS}
    except (Exception, SystemExit) as error:  # a world is somebody's program
        line = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(source)), None)
        raise GrapeError(
            str(error) if isinstance(error, ValueError) else f"`build` raised {type(error).__name__}: {error}",
            where=f"{source}:{line}" if line else str(source),
            mend="change the numbers under `prepare` in params.yaml, or mend the file",
        ) from error
    return {name: Table(kind, _placed(rows[name], f"{source.name}, {name} ")) for name, (_, kind) in DATASETS.items()}


def _placed(rows: Iterable[Any], where: str) -> Iterator[Placed]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise GrapeError(f"a row is a {type(row).__name__}, not a mapping", where=f"{where}{number}", mend="mend `build`")
        yield f"{where}{number}", row


def imported(folder: Path, stage: Stage, left_out: Counter[str]) -> Tables:
    """The datasets in a directory of files.

    Args:
        left_out: counts rows that become nothing, by reason.

    Raises:
        GrapeError: no such directory, a required file is missing, or a row is wrong (file and line).
    """
    if not folder.is_dir():
        raise GrapeError(
            f"no such directory or Python file: {stage.params.prepare.source}",
            where="params.yaml, prepare.source",
            mend="give a world's .py file or a directory with sft.jsonl and prompts.jsonl",
        )
    params, made = stage.params.prepare, {}
    for table, (_, kind) in DATASETS.items():
        name, fields = NAMES[table], columns(kind)
        rows = rows_of(name, folder, params, stage.params.seed, kind.model_fields, _say, left_out)
        if rows is None and table in required(stage):
            mend = f'add it: {", ".join(fields)} (README, "Your own data")'
            raise GrapeError("this file is missing", where=str(folder / f"{name}.jsonl"), mend=mend)
        if rows is None and (key := next((key for key in ("rows", "columns") if getattr(params, key).get(name)), None)):
            mend = f"add the file, name one in prepare.files, or take {name} out of prepare.rows and prepare.columns"
            raise GrapeError(f"there is no table {name}", where=f"params.yaml, prepare.{key}", mend=mend)
        made[table] = Table(kind, rows or ())
    if idle := unread(folder, params.files):
        _say(f"not read, since no table is called so and prepare.files names none of it: {', '.join(idle)}")
    return made


def unread(folder: Path, files: Mapping[Any, Iterable[Source]]) -> list[str]:
    """The files of rows in a folder that no table comes from: a `dev.jsonl` may have been meant to be one."""
    named = {(folder / source.file).resolve() for sources in files.values() for source in sources if source.file}
    named |= {path.resolve() for table in NAMES.values() if table not in files and (path := find(folder, table))}
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in READERS and path.resolve() not in named)


def _say(text: str) -> None:
    print(f"prepare: {text}", flush=True)


def content(record: Demonstration | PromptRow) -> str:
    """What makes a prompt the same prompt: its category and all turns up to the answer."""
    turns = record.messages[:-1] if isinstance(record, Demonstration) else record.prompt
    return json.dumps([record.category, *said(turns, system=True)])


def _ranked(rows: Table[PromptRow]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the first row of each content, in the order of the contents' hashes; and which dataset each is from, by number."""
    digests, datasets, numbers = bytearray(), array("i"), dict[str, int]()
    for row in rows:
        digests += hashlib.sha256(content(row).encode()).digest()[:16]
        datasets.append(numbers.setdefault(row.dataset, len(numbers)))
    high, low = np.frombuffer(bytes(digests), ">u8").reshape(-1, 2).T
    order = np.lexsort((low, high))
    new = np.ones(len(order), bool)
    new[1:] = (high[order[1:]] != high[order[:-1]]) | (low[order[1:]] != low[order[:-1]])
    return order[new], np.array(datasets)[order[new]]


def _once(rows: Table[PromptRow]) -> Table[PromptRow]:
    """The first row of each content."""
    return rows.select(np.sort(_ranked(rows)[0]))


def held_out(tables: Mapping[str, Table[Any]], validation: int, test: int) -> Tables:
    """With the two held-out tables: the given ones, else so many of the training prompts, which are among these no more.

    Test first, which no choice may depend on."""
    given = dict(tables)
    if not given["test"]:
        given["test"], given["train"] = set_aside(given["train"], test, "test")
    if not given["validation"]:
        tested = holds(given["test"], tables["train"])
        free = [place for place, row in enumerate(given["train"]) if not tested(turns_of(row))]
        given["validation"], given["train"] = set_aside(given["train"], validation, "validation", free)
    return given


def set_aside(
    train: Table[PromptRow], count: int, name: str, free: Sequence[int] | None = None
) -> tuple[Table[PromptRow], Table[PromptRow]]:
    """`count` prompts for the table `name`, chosen by the hash of their content, so that adding rows moves no other row across; of
    each dataset of a mix its share.

    Args:
        free: places that may be chosen from; every one by default.

    Returns:
        What was chosen; and the other rows, in their order.

    Raises:
        GrapeError: as many as that would leave nothing.
    """
    places = np.arange(len(train)) if free is None else np.array(free, int)
    different, dataset = _ranked(train.select(places))
    if count >= len(different):
        raise GrapeError(
            f"{count} {name} prompts asked of {len(different)} different prompts",
            where=f"params.yaml, prepare.{name}",
            mend=f"lower prepare.{name}, or give a {name}.jsonl",
        )
    share = np.bincount(dataset) * count / len(different)
    number = share.astype(int)
    number[np.argsort(number - share, kind="stable")[: count - number.sum()]] += 1  # what is left goes to the largest remainders
    taken = np.sort(np.concatenate([np.flatnonzero(dataset == i)[:n] for i, n in enumerate(number)]))
    chosen = places[different[taken]]
    _say(f"{count} of {len(train)} prompts set aside for {name}")
    return train.select(chosen), train.select(np.setdiff1d(np.arange(len(train)), chosen))


def without_leakage(tables: Mapping[str, Table[Any]]) -> tuple[Tables, Counter[str]]:
    """Every training table without the rows that hold a held-out question, validation without those that hold a test question,
    prompts once each; and how many went, by reason."""
    kept, dropped = dict(tables), Counter({"leakage": 0, "duplicate": 0})
    for names, held in ((("validation",), ("test",)), (("sft", "train", "judgements", "preferences"), ("validation", "test"))):
        leaks = holds([row for name in held for row in kept[name]], chain(tables["train"], tables["validation"]))
        for name in names:
            kept[name] = tables[name].select([place for place, row in enumerate(tables[name]) if not leaks(turns_of(row))])
            dropped["leakage"] += len(tables[name]) - len(kept[name])
    for name in ("train", "validation", "test"):
        once = _once(kept[name])
        dropped["duplicate"] += len(kept[name]) - len(once)
        kept[name] = once
    return kept, dropped
