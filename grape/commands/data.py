"""`grape data preview`: the rows of a stage as the model will see them: tokens, which are learned, lengths, what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from statistics import quantiles
from typing import Any

from grape.artifacts import Document, Judgement, Preference, PromptRow, Record
from grape.data import near
from grape.errors import GrapeError
from grape.evaluation.record import HELD_OUT
from grape.files import read_lines
from grape.leakage import said, turns_of
from grape.models.chat import Chat
from grape.models.encode import Row, Rows, encode_documents, encode_pairs, encode_turns
from grape.needed import made as made_by_its_stage
from grape.params import Params, load
from grape.project import Project
from grape.reward.rubric import load_rubrics
from grape.stages.lessons import lesson, question
from grape.stages.prepare import DATASETS
from grape.stages.usable import base_tokenizer
from grape.table import Table, each_row, read_table

BARS = 8  # of the histogram
WIDTH = 40  # characters of its longest bar
LOOKED = 100_000  # rows that are compared with each other
EXAMPLES = 5  # pairs of rows that people are shown
# Of each stage: the file it reads, and its records.
FILES: dict[str, tuple[str, type[Record]]] = {
    "base": DATASETS["corpus"],
    "sft": DATASETS["sft"],
    "critic": DATASETS["judgements"],
    "reward": ("data/preferences/train.jsonl", Preference),
    "rl": DATASETS["train"],
    "evaluate": DATASETS["validation"],
    "test": DATASETS["test"],
}
MEND = "run it first: grape run prepare"


def preview(project: Project, stage: str, count: int) -> dict[str, Any]:
    """
    Args:
        count: rows to show, those that come first.

    Returns:
        `rows`, how many there are; `left_out`, reason -> rows, and `left_out_by_prepare`, the same of all tables; `categories` and
        `datasets`, name -> rows; `tokens` of every row and their `histogram`; `duplicates`, `near_duplicates`, `near_heldout`: rows
        (counted from 1) that are alike; `shown`: of each row its `id` and `parts`, lists of [`read` or `learned`, tokens].

    Raises:
        GrapeError: no such stage, or its data are not there.
    """
    if stage not in FILES:
        raise GrapeError(f"the stage {stage!r} reads no rows", mend=f"one of {', '.join(FILES)}")
    params, (file, kind) = load(project.params, []), FILES[stage]
    mend = MEND if stage != "reward" else "run it first: grape run preferences"
    records = read_table(made_by_its_stage(project.root / file), kind, mend)
    corpus = each_row(project.root / FILES["base"][0], Document, MEND) if params.model.base == "scratch" else ()
    tokenizer = base_tokenizer(params.model, project.root, corpus)
    chat = Chat(tokenizer, params.model.template)
    made = _encoded(project, params, chat, stage, records)
    unit = len(made.rows) // max(len(made.kept), 1)
    shown = [
        {"id": getattr(records[place], "id", str(place + 1)), "parts": [_parts(tokenizer, row) for row in made.rows[i : i + unit]]}
        for i, place in zip(range(0, len(made.rows), max(unit, 1)), made.kept[:count], strict=False)
    ]
    tokens = [row.tokens for row in made.rows]
    return {
        "stage": stage,
        "file": file,
        "rows": len(records),
        "left_out": {name.removeprefix("dropped/"): n for name, n in made.counts.items() if name.startswith("dropped/") and n},
        "left_out_by_prepare": _prepared(project),
        "categories": _tally(records, "category"),
        "datasets": _tally(records, "dataset"),
        "tokens": tokens,
        "histogram": _histogram(tokens),
        **_alike(project, stage, records),
        "shown": shown,
    }


def _tally(records: Iterable[Any], name: str) -> dict[str, int]:
    """How many rows say what in a column, where they say something."""
    return dict(Counter(said for record in records if (said := getattr(record, name, ""))))


def _prepared(project: Project) -> dict[str, int]:
    """What `prepare` left out of all tables, by reason."""
    path = project.root / "reports/train/prepare.jsonl"
    counts = next((row for _, row in read_lines(path)), {}) if path.is_file() else {}
    return {name.removeprefix("dropped/"): int(n) for name, n in counts.items() if name.startswith("dropped/") and n}


def _alike(project: Project, stage: str, records: Table[Any]) -> dict[str, Any]:
    """Rows that stand twice, that are nearly the same, and that nearly hold a held-out question; of the first LOOKED rows."""
    texts = _Texts(records.select(range(min(len(records), LOOKED))))

    def pairs(found: Iterable[tuple[int, int, float]], beside: str, **more: str) -> list[dict[str, Any]]:
        return [{"row": place + 1, beside: other + 1, "similarity": round(value, 3), **more} for place, other, value in found]

    held_out: list[dict[str, Any]] = []
    for split in () if stage in ("base", "test") else ("test",) if stage == "evaluate" else HELD_OUT:
        path = project.root / DATASETS[split][0]
        questions = [_text(row) for row in read_table(path, PromptRow, MEND)] if path.is_file() else []
        held_out += pairs(near.overlapping(questions, texts), "heldout_row", split=split)

    return {
        "looked_at": len(texts),
        "duplicates": [{"row": place + 1, "as_row": other + 1} for place, other in near.repeats(texts).items()],
        "near_duplicates": pairs(near.similar(texts), "as_row"),
        "near_heldout": sorted(held_out, key=lambda pair: int(pair["row"])),
    }


class _Texts(Sequence[str]):
    """What each record says."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[str]:
        return map(_text, self._records)

    def __getitem__(self, place: Any) -> Any:
        return _text(self._records[place])


def _text(record: Any) -> str:
    if isinstance(record, Document):
        return record.text
    more = [f"{record.item} {record.response} {record.label}"] if isinstance(record, Judgement) else []
    return "\n".join([*(text for turn in said(turns_of(record)) for text in turn[1:]), *more])


def _encoded(project: Project, params: Params, chat: Chat, stage: str, records: Table[Any]) -> Rows:
    """As the stage does it; a prompt is a row without a response."""
    positions, where = params.model.positions, FILES[stage][0]
    rubrics = load_rubrics(project.root / "rubrics") if stage == "critic" else {}

    def prompts() -> Rows:
        rows = [Row(chat.prompt(record.value().messages, f"{where}, {record.id}"), []) for record in records]
        kept = [i for i, row in enumerate(rows) if row.tokens <= positions - params.rl.max_new_tokens]
        return Rows([rows[i] for i in kept], kept, Counter({"dropped/too_long": len(rows) - len(kept)}))

    how: dict[str, Callable[[], Rows]] = {
        "base": lambda: encode_documents(chat, (record.text for record in records), positions),
        "sft": lambda: encode_turns(chat, records, positions, where, params.sft.turns),
        "critic": lambda: encode_turns(
            chat, (lesson(r, question(rubrics, r, f"{where}, {r.id}")) for r in records), positions, where
        ),
        "reward": lambda: encode_pairs(chat, records, positions, where),
    }
    return how.get(stage, prompts)()


def _parts(tokenizer: Any, row: Row) -> list[tuple[str, list[str]]]:
    """The row's tokens as text, those that follow each other and are read, or learned, together."""
    given = row.given or (False,) * len(row.response)
    marks = ["read"] * len(row.prompt) + ["read" if other else "learned" for other in given]
    tokens = [tokenizer.decode([i]) for i in (*row.prompt, *row.response)]
    return [
        (mark, [token for _, token in group]) for mark, group in groupby(zip(marks, tokens, strict=True), key=lambda pair: pair[0])
    ]


def lines(found: dict[str, Any], bar: str = "#") -> Iterator[str]:
    """For people. bar: what the bars of the histogram are made of."""
    yield f"{found['stage']} reads {found['rows']} rows of {found['file']}"
    for name, count in (*found["categories"].items(), *((f"from {name}", n) for name, n in found["datasets"].items())):
        yield f"  {name}: {count}"
    for reason, count in found["left_out"].items():
        yield f"  left out, {reason.replace('_', ' ')}: {count}"
    if found["left_out_by_prepare"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found["left_out_by_prepare"].items())
        yield f"left out of all tables by prepare: {reasons}"
    yield from _alike_lines(found)
    yield from _bars(found["tokens"], found["histogram"], bar)
    for row in found["shown"]:
        yield ""
        yield row["id"]
        for number, parts in enumerate(row["parts"]):
            if len(row["parts"]) > 1:
                yield f" {('chosen', 'rejected')[number]}"
            for mark, tokens in parts:
                yield f"  {mark:>7}  {'|'.join(map(_visible, tokens))}"


def _alike_lines(found: dict[str, Any]) -> Iterator[str]:
    """How many rows are alike, and the first of them."""
    for name, beside, what in (
        ("duplicates", "as_row", "say what another says"),
        ("near_duplicates", "as_row", "say nearly what another says"),
        ("near_heldout", "heldout_row", "nearly hold a held-out question"),
    ):
        if rows := found[name]:
            of = "" if found["looked_at"] == found["rows"] else f" of the first {found['looked_at']}"
            yield f"{len(rows)} rows{of} {what}"
        for row in rows[:EXAMPLES]:
            share = f", {row['similarity']:.0%}" if "similarity" in row else ""
            split = f"{row['split']} " if "split" in row else ""
            yield f"  row {row['row']} and {split}row {row[beside]}{share}"


def _visible(token: str) -> str:
    return token.replace("\n", "\\n").replace("\t", "\\t")


def _histogram(tokens: Sequence[int]) -> list[dict[str, int]]:
    """How many rows have how many tokens, in at most BARS + 1 steps whose width is a power of 2."""
    if not tokens:
        return []
    size = 1 << ((max(tokens) - min(tokens)) // BARS).bit_length()
    bins = Counter(n // size for n in tokens)
    return [{"from": i * size, "to": (i + 1) * size - 1, "rows": bins[i]} for i in range(min(bins), max(bins) + 1)]


def _bars(tokens: Sequence[int], histogram: Sequence[dict[str, int]], bar: str) -> Iterator[str]:
    if not tokens:
        return
    middle = quantiles(tokens, n=100, method="inclusive") if len(tokens) > 1 else [tokens[0]] * 99
    yield f"tokens of a row: {min(tokens)} to {max(tokens)}, median {middle[49]:g}, 95 % have at most {middle[94]:g}"
    largest = max(one["rows"] for one in histogram)
    for one in histogram:
        step = f"{one['from']}-{one['to']}"
        yield f"  {step:>13} {bar * -(-one['rows'] * WIDTH // largest)} {one['rows']}"
