"""Every tracked data file as typed records: what a row may say, how rows are checked, and how they are written.

The columns of a file are those of its record type, never those of some row; what is written is what was validated.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from grape.errors import GrapeError, first_problem
from grape.files import read_lines, write_lines
from grape.types import Prompt


def _text_of(value: Any) -> Any:
    """A whole number stands for its digits; any other number does not say how it was written (0.10 is not 0.1)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise ValueError(f"a number ({value!r}): write it as text, in quotes, as it is to be read")
    return value


def _spoken(value: str) -> str:
    """Text that will be tokens. Two private characters are transformers' own marks there, and it would drop them from a text."""
    if "\U000f0000" in value or "\U000f0001" in value:
        raise ValueError("the private characters U+F0000 and U+F0001 cannot be kept when text becomes tokens: remove them")
    return value


Text = Annotated[str, BeforeValidator(_text_of)]
Spoken = Annotated[str, AfterValidator(_spoken)]


class Record(BaseModel):
    """One line of a dataset. Columns that grape does not read are left out, not refused: datasets carry more than we need."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Turn(Record):
    """One turn of a conversation. What else a turn can carry is kept for templates that know it; an unknown key is refused, since
    leaving it out would change what is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["system", "user", "assistant", "tool"]
    content: Spoken = ""
    reasoning_content: Spoken | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """Tables write null where a row has no such key."""
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _says_something(self) -> Turn:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError(f"tool_calls in a turn of the {self.role}: only the assistant calls tools")
        for text in _leaves(self.tool_calls, self.name, self.tool_call_id):
            _spoken(text)
        if not self.content.strip() and not self.tool_calls:
            raise ValueError(f"the {self.role}'s content is empty")
        return self

    def message(self) -> dict[str, Any]:
        """As chat templates take it."""
        return self.model_dump(exclude_none=True)


def _leaves(*values: Any) -> Iterator[str]:
    """Every text within, keys included."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _leaves(*value.keys(), *value.values())
        elif isinstance(value, list):
            yield from _leaves(*value)


def _compared(turn: Turn) -> dict[str, Any]:
    """A turn as it is compared with another: a letter is one however it is composed, white space around is nothing."""
    return turn.message() | {"content": unicodedata.normalize("NFC", turn.content).strip()}


def _begins(turns: Sequence[Turn], what: str) -> None:
    """ValueError where they are no prompt: the model would not be next to speak."""
    if turns[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message of {what} must be the user's (or a tool's), it is the {turns[-1].role}'s")


def _ends(turns: Sequence[Turn], what: str) -> None:
    if turns[-1].role != "assistant":
        raise ValueError(f"the last message of {what} must be the assistant's, it is the {turns[-1].role}'s")


class Document(Record):
    text: Spoken = Field(min_length=1)


class Identified(Record):
    """What every row has that can be drawn: ids key the draws, categories name the rubrics."""

    id: Text = Field(min_length=1)
    category: Text = Field(min_length=1)


class Demonstration(Identified):
    """A conversation whose last turn is the assistant's."""

    messages: list[Turn] = Field(min_length=2)

    @model_validator(mode="after")
    def _ends_with_the_assistant(self) -> Demonstration:
        _ends(self.messages, "a demonstration")
        if self.messages[0].role == "assistant":
            raise ValueError("a demonstration begins with the assistant: there is nothing it answers")
        return self


class PromptRow(Identified):
    """A prompt, with the reference answer verifiers compare with (null if there is none), and the data set it is from ("": none is
    named; then the column is not written)."""

    prompt: list[Turn] = Field(min_length=1)
    answer: Text | None = None
    dataset: str = ""

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> PromptRow:
        _begins(self.prompt, "a prompt")
        return self

    def value(self) -> Prompt:
        return Prompt(self.id, self.category, tuple(turn.message() for turn in self.prompt), self.answer, self.dataset)


class Judgement(Identified):
    """A person's yes (1) or no (0) to a rubric item's question about a response."""

    item: str = Field(min_length=1)
    prompt: list[Turn] = Field(min_length=1)
    response: Spoken
    label: int = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Judgement:
        _begins(self.prompt, "a prompt")
        return self


class Preference(Identified):
    """Which of two answers to a prompt was preferred, and who says so. An answer may go on over several turns."""

    prompt: list[Turn] = Field(min_length=1)
    chosen: list[Turn] = Field(min_length=1)
    rejected: list[Turn] = Field(min_length=1)
    source: str = "people"
    chosen_score: float | None = Field(None, allow_inf_nan=False)
    rejected_score: float | None = Field(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _two_answers_to_one_prompt(self) -> Preference:
        _begins(self.prompt, "a prompt")
        for name in ("chosen", "rejected"):
            turns = getattr(self, name)
            if turns[0].role != "assistant":
                raise ValueError(f"{name} begins with a turn of the {turns[0].role}: what both answers follow belongs into prompt")
            _ends(turns, name)
        if [_compared(t) for t in self.chosen] == [_compared(t) for t in self.rejected]:
            raise ValueError("chosen and rejected are the same, so there is nothing to prefer")
        if self.chosen_score is not None and self.rejected_score is not None and self.chosen_score < self.rejected_score:
            raise ValueError(f"chosen has the lower score ({self.chosen_score:g} against {self.rejected_score:g})")
        return self


AnyRecord = TypeVar("AnyRecord", bound=Record)


def checked(rows: Iterable[tuple[str, Mapping[str, Any]]], kind: type[AnyRecord], mend: str = "") -> list[AnyRecord]:
    """Rows as records, each with the place it stands at, for messages. A row without an id gets one from its content, so that
    adding or moving rows changes no other's.

    Raises:
        GrapeError: a missing or wrong column; an id that stands for two different rows: ids key what is drawn and kept.
    """
    records: list[AnyRecord] = []
    seen: dict[str, tuple[AnyRecord, str]] = {}
    named = "id" in kind.model_fields
    for where, row in rows:
        given = {**row, "id": "made"} if named and row.get("id") is None else row
        try:
            record = kind.model_validate(given)
        except ValidationError as error:
            raise _refused(error, where, kind, mend) from error
        if named:
            if given is not row:
                record = record.model_copy(update={"id": _content_id(record)})
            name = record.id  # type: ignore[attr-defined]
            other, place = seen.setdefault(name, (record, where))
            if other != record:
                mend = "give every row its own id, or leave the column out: ids are then made from the content"
                raise GrapeError(f"the id {name!r} already stands at {place}, for another row", where=where, mend=mend)
        records.append(record)
    return records


def _refused(error: ValidationError, where: str, kind: type[Record], mend: str) -> GrapeError:
    column, what = first_problem(error)
    if error.errors()[0]["type"] == "extra_forbidden":
        known = ", ".join(Turn.model_fields)
        mend = f"known in a turn: {known}; remove the others"
        return GrapeError(f"column {column}: a turn has no such key", where=where, mend=mend)
    mend = mend or f"every row has the columns {', '.join(kind.model_fields)}"
    return GrapeError(f"column {column}: {what}" if column else what, where=where, mend=mend)


def _content_id(record: Record) -> str:
    text = json.dumps(as_row(record) | {"id": ""}, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def as_row(record: Record) -> dict[str, Any]:
    """Every column of the record's type; in a turn only what it says."""
    row: dict[str, Any] = {}
    for name in type(record).model_fields:
        value = getattr(record, name)
        turns = isinstance(value, list) and value and isinstance(value[0], Turn)
        row[name] = [turn.message() for turn in value] if turns else value
    if row.get("dataset") == "":
        del row["dataset"]
    return row


def read_rows(path: Path, kind: type[AnyRecord], mend: str = "") -> list[AnyRecord]:
    """The records of a JSON-lines file.

    Raises:
        GrapeError: with file and line: no file, not JSON, a missing or wrong column, an id for two rows.
    """
    return checked(((f"{path}:{number}", row) for number, row in read_lines(path, mend or None)), kind, mend)


def write_rows(path: Path, records: Sequence[Record]) -> None:
    """Write validated records as JSON lines: readable by people, `load_dataset("json", ...)` and by DVC's diff."""
    write_lines(path, (as_row(record) for record in records))


def read_prompts(path: Path) -> list[Prompt]:
    return [row.value() for row in read_rows(path, PromptRow, mend="run the prepare stage again: grape run prepare")]
