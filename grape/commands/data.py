"""`grape data preview`: the rows of a stage as the model will see them: tokens, which are learned, lengths, what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from statistics import quantiles
from typing import Any

from grape.artifacts import Document, Preference, Record, read_rows
from grape.errors import GrapeError
from grape.models.chat import Chat
from grape.models.encode import Row, Rows, encode_documents, encode_pairs, encode_turns
from grape.needed import made as made_by_its_stage
from grape.params import Params, load
from grape.project import Project
from grape.reward.rubric import load_rubrics
from grape.stages.lessons import lesson, question
from grape.stages.prepare import DATASETS
from grape.stages.usable import base_tokenizer

BARS = 8  # of the histogram
WIDTH = 40  # characters of its longest bar
# Of each stage: the file it reads, and its records.
FILES: dict[str, tuple[str, type[Record]]] = {
    "base": DATASETS["corpus"],
    "sft": DATASETS["sft"],
    "critic": DATASETS["judgements"],
    "reward": ("data/preferences/train.jsonl", Preference),
    "rl": DATASETS["train"],
    "evaluate": DATASETS["heldout"],
}
MEND = "run it first: grape run prepare"


def preview(project: Project, stage: str, count: int) -> dict[str, Any]:
    """
    Args:
        count: rows to show, those that come first.

    Returns:
        `rows`, how many there are; `left_out`, reason -> rows; `categories`; `tokens` of every row; `shown`: of each row its `id`
        and `parts`, lists of [`read` or `learned`, tokens].

    Raises:
        GrapeError: no such stage, or its data are not there.
    """
    if stage not in FILES:
        raise GrapeError(f"the stage {stage!r} reads no rows", mend=f"one of {', '.join(FILES)}")
    params, (file, kind) = load(project.params, []), FILES[stage]
    mend = MEND if stage != "reward" else "run it first: grape run preferences"
    records = read_rows(made_by_its_stage(project.root / file), kind, mend=mend)
    corpus = read_rows(project.root / FILES["base"][0], Document, mend=MEND) if params.model.base == "scratch" else []
    tokenizer = base_tokenizer(params.model, project.root, corpus)
    chat = Chat(tokenizer, params.model.template)
    made = _encoded(project, params, chat, stage, records)
    unit = len(made.rows) // max(len(made.kept), 1)
    shown = [
        {"id": getattr(records[place], "id", str(place + 1)), "parts": [_parts(tokenizer, row) for row in made.rows[i : i + unit]]}
        for i, place in zip(range(0, len(made.rows), max(unit, 1)), made.kept[:count], strict=False)
    ]
    return {
        "stage": stage,
        "file": file,
        "rows": len(records),
        "left_out": {name.removeprefix("dropped/"): n for name, n in made.counts.items() if name.startswith("dropped/") and n},
        "categories": dict(Counter(getattr(record, "category", "") for record in records)) if kind is not Document else {},
        "tokens": [row.tokens for row in made.rows],
        "shown": shown,
    }


def _encoded(project: Project, params: Params, chat: Chat, stage: str, records: Sequence[Any]) -> Rows:
    """As the stage does it; a prompt is a row without a response."""
    positions, where = params.model.positions, FILES[stage][0]
    rubrics = load_rubrics(project.root / "rubrics") if stage == "critic" else {}

    def prompts() -> Rows:
        rows = [Row(chat.prompt(record.value().messages, f"{where}, {record.id}"), []) for record in records]
        kept = [i for i, row in enumerate(rows) if row.tokens <= positions - params.rl.max_new_tokens]
        return Rows([rows[i] for i in kept], kept, Counter({"dropped/too_long": len(rows) - len(kept)}))

    how: dict[str, Callable[[], Rows]] = {
        "base": lambda: encode_documents(chat, [record.text for record in records], positions),
        "sft": lambda: encode_turns(chat, records, positions, where, params.sft.turns),
        "critic": lambda: encode_turns(
            chat, [lesson(r, question(rubrics, r, f"{where}, {r.id}")) for r in records], positions, where
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


def lines(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"{found['stage']} reads {found['rows']} rows of {found['file']}"
    for name, count in found["categories"].items():
        yield f"  {name}: {count}"
    for reason, count in found["left_out"].items():
        yield f"  left out, {reason.replace('_', ' ')}: {count}"
    yield from _histogram(found["tokens"])
    for row in found["shown"]:
        yield ""
        yield row["id"]
        for number, parts in enumerate(row["parts"]):
            if len(row["parts"]) > 1:
                yield f" {('chosen', 'rejected')[number]}"
            for mark, tokens in parts:
                yield f"  {mark:>7}  {'|'.join(map(_visible, tokens))}"


def _visible(token: str) -> str:
    return token.replace("\n", "\\n").replace("\t", "\\t")


def _histogram(tokens: Sequence[int]) -> Iterator[str]:
    """How many rows have how many tokens."""
    if not tokens:
        return
    middle = quantiles(tokens, n=100, method="inclusive") if len(tokens) > 1 else [tokens[0]] * 99
    yield f"tokens of a row: {min(tokens)} to {max(tokens)}, median {middle[49]:g}, 95 % have at most {middle[94]:g}"
    size = (max(tokens) - min(tokens)) // BARS + 1
    bins = Counter((n - min(tokens)) // size for n in tokens)
    for place in range((max(tokens) - min(tokens)) // size + 1):
        first = min(tokens) + place * size
        bar = "#" * -(-bins[place] * WIDTH // max(bins.values()))
        yield f"  {first:>6} to {first + size - 1:<6} {bar} {bins[place]}"
