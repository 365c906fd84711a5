"""Typed reading and writing of every tracked data file. Writes are atomic: a file is complete or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grape.errors import GrapeError, first_problem
from grape.types import Prompt

Row = Mapping[str, Any]


class Record(BaseModel):
    """One line of a dataset. Columns that grape does not read are kept out, not refused: datasets carry more than we need."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Turn(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Document(Record):
    text: str = Field(min_length=1)


class Demonstration(Record):
    """A conversation whose last turn is the assistant's."""

    id: str
    category: str
    messages: list[Turn] = Field(min_length=2)

    @model_validator(mode="after")
    def _ends_with_the_assistant(self) -> Demonstration:
        if self.messages[-1].role != "assistant" or not self.messages[-1].content:
            raise ValueError("the last message must be a non-empty one of the assistant")
        return self


class Question(Record):
    """A prompt, with the reference answer verifiers compare with (null if there is none)."""

    id: str
    category: str
    prompt: list[Turn] = Field(min_length=1)
    answer: str | None = None

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Question:
        if self.prompt[-1].role != "user":
            raise ValueError("the last message of a prompt must be the user's")
        return self

    def value(self) -> Prompt:
        return Prompt(self.id, self.category, tuple(turn.model_dump() for turn in self.prompt), self.answer)


class Judgement(Record):
    """A person's yes (1) or no (0) to a rubric item's question about a response."""

    id: str
    category: str
    item: str
    prompt: list[Turn] = Field(min_length=1)
    response: str
    label: int = Field(ge=0, le=1)


class Preference(Record):
    """Which of two answers to a prompt was preferred, and who says so."""

    id: str
    category: str
    prompt: list[Turn] = Field(min_length=1)
    chosen: list[Turn] = Field(min_length=1)
    rejected: list[Turn] = Field(min_length=1)
    source: str = "people"
    chosen_score: float | None = None
    rejected_score: float | None = None


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_rows(path: Path, kind: type[AnyRecord], mend: str = "") -> list[AnyRecord]:
    """The records of a JSON-lines file.

    Raises:
        GrapeError: with file and line: no file, not JSON, a missing or wrong column.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GrapeError(
            f"cannot be read: {error.strerror if isinstance(error, OSError) else error}",
            where=str(path),
            mend=mend or None,
        ) from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            column, what = first_problem(error)
            raise GrapeError(
                f"column {column}: {what}" if column else what,
                where=f"{path}:{number}",
                mend=mend or f"every line is one JSON object with the columns {', '.join(kind.model_fields)}",
            ) from error
    return records


def write_dataset(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with Hugging Face `datasets` as JSON lines: readable by people, `load_dataset("json", ...)` and by DVC's diff."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    if rows:
        Dataset.from_list([dict(row) for row in rows]).to_json(str(beside), lines=True, force_ascii=False)
    else:
        beside.write_text("")
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def read_prompts(path: Path) -> list[Prompt]:
    return [row.value() for row in read_rows(path, Question, mend="run the prepare stage again: grape run prepare")]
