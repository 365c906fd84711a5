"""The shapes in which people keep rows, recognised by their columns and turned into the columns of `grape.artifacts`.

    messages                         conversations of role and content (OpenAI, TRL)
    conversations                    of from and value (ShareGPT)
    instruction, input?, output      Alpaca; also `response` for output
    instruction, instances           Self-Instruct: a row for each instance, of input and output
    prompt, completion               texts or turns (TRL); also `response`
    question, answer                 GSM8K
    prompt?, chosen, rejected        pairs; the prompt may stand in both answers
    prompt, completion, label        single answers that were liked or not (TRL's KTO); also `response`
    text                             documents

An answer that stands behind a prompt is its reference for verifiers; of one whose last line is `#### 72`, that is `72`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Placed = tuple[str, Row]  # where a row stands, and what it says
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool_response": "tool",
}
TURNS = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
MARK = re.compile(r"^####[ \t]*([^\n]*?)\s*\Z", re.MULTILINE)


@dataclass(frozen=True)
class Shape:
    """A form of rows: the columns it is known by, and how a row becomes grape's own columns (ValueError: it cannot). unpaired: two
    rows together make one."""

    columns: tuple[str, ...]
    convert: Callable[[Row], dict[str, Any]]
    unpaired: bool = False

    @property
    def name(self) -> str:
        return ", ".join(self.columns)


def _shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """A turn of from and value, as role and content."""
    rest = {key: value for key, value in given.items() if key not in ("from", "value")}
    return {"role": ROLES.get(str(given["from"]), given["from"]), "content": given["value"], **rest}


def turns(given: Any, role: str) -> list[dict[str, Any]]:
    """A conversation, or a text as a turn of `role`."""
    if not isinstance(given, str | Sequence):
        raise ValueError(f"neither text nor turns but a {type(given).__name__}")
    if not isinstance(given, str):
        return conversation(given)
    if TURNS.match(given):
        raise ValueError("turns written as a text, as in a cell of CSV: give them as JSON or Parquet")
    return [{"role": role, "content": given}]


def conversation(given: Any) -> list[dict[str, Any]]:
    """Turns, all of role and content or all of from and value."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(f"not a list of turns but a {type(given).__name__}")
    for one in given:
        if not isinstance(one, Mapping):
            raise ValueError(f"a turn is a {type(one).__name__}, not an object")
    shared = all(one.keys() >= {"from", "value"} for one in given)
    return [_shared(one) if shared else dict(one) for one in given]


def reference(text: Any) -> Any:
    """What stands behind `####` in the last line, as in GSM8K; the whole where there is none."""
    found = MARK.search(text) if isinstance(text, str) else None
    return found[1] if found else text


def _instruction(row: Row) -> str:
    """Alpaca's task: the input, where there is one, stands below the instruction."""
    return "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)


def _split(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A conversation as a prompt, and as its reference what the assistant said last, where it did."""
    if messages and messages[-1].get("role") == "assistant":
        return {"prompt": messages[:-1], "answer": reference(messages[-1].get("content"))}
    return {"prompt": messages}


def _apart(row: Row) -> dict[str, Any]:
    """chosen and rejected without what both begin with, which is the prompt or stands in it."""
    chosen, rejected = (turns(row[name], "assistant") for name in ("chosen", "rejected"))
    prompt = turns(row["prompt"], "user") if row.get("prompt") is not None else []
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    # Answers begin with the assistant: what both say before is the prompt, or said again.
    same = next((i for i in range(min(same, len(chosen) - 1, len(rejected) - 1), -1, -1) if chosen[i]["role"] == "assistant"), 0)
    if prompt and chosen[:same] not in ([], prompt):
        raise ValueError("chosen and rejected begin with turns that are not those of prompt")
    return {"prompt": prompt or chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def _behind(task: Callable[[Row], Any], answer: str) -> Callable[[Row], dict[str, Any]]:
    """A task and an answer to it as a conversation."""
    return lambda row: {"messages": [*turns(task(row), "user"), *turns(row[answer], "assistant")]}


def _asked(task: Callable[[Row], Any], answer: str) -> Callable[[Row], dict[str, Any]]:
    """A task as a prompt, its answer as the reference."""

    def convert(row: Row) -> dict[str, Any]:
        given = row.get("answer", row.get(answer))
        said = given[-1].get("content") if isinstance(given, list) and given and isinstance(given[-1], Mapping) else given
        return {"prompt": turns(task(row), "user"), "answer": reference(said)}

    return convert


LABELS = {"true": 1, "false": 0, "1": 1, "0": 0}


def _label(value: Any) -> Any:
    """1 or 0 for what says so: a bool, a number, or a text as in CSV; else the value as it stands."""
    if isinstance(value, bool | int | float) and value in (0, 1):
        return int(value)
    return LABELS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _liked(answer: str) -> Callable[[Row], dict[str, Any]]:
    """An answer that was liked or not."""

    def convert(row: Row) -> dict[str, Any]:
        label = _label(row["label"])
        if label not in (0, 1):
            raise ValueError(f"the label {row['label']!r} is neither true nor false")
        return {"prompt": turns(row["prompt"], "user"), "completion": turns(row[answer], "assistant"), "label": bool(label)}

    return convert


def _judged(answer: str) -> Callable[[Row], dict[str, Any]]:
    """A person's yes or no about an answer: a text, or the assistant's only turn."""

    def convert(row: Row) -> dict[str, Any]:
        said = row[answer]
        if isinstance(said, list):
            given = conversation(said)
            if len(given) != 1 or given[0].get("role") != "assistant":
                raise ValueError("a judgement is of one turn of the assistant")
            said = given[0].get("content")
        return {"prompt": turns(row["prompt"], "user"), "response": said, "label": _label(row["label"])}

    return convert


def _talk(name: str) -> Callable[[Row], dict[str, Any]]:
    return lambda row: {"messages": conversation(row[name])}


def _questioned(name: str) -> Callable[[Row], dict[str, Any]]:
    return lambda row: _split(conversation(row[name]))


def _of(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name]


# Of every table, in the order in which they are looked for.
SHAPES: dict[str, list[Shape]] = {
    "corpus": [Shape(("text",), lambda row: {"text": row["text"]})],
    "sft": [
        *(Shape((name,), _talk(name)) for name in ("messages", "conversations")),
        *(Shape(("instruction", answer), _behind(_instruction, answer)) for answer in ("output", "response")),
        *(Shape(("prompt", answer), _behind(_of("prompt"), answer)) for answer in ("completion", "response")),
        Shape(("question", "answer"), _behind(_of("question"), "answer")),
    ],
    "prompts": [
        *(Shape(("prompt", answer), _asked(_of("prompt"), answer)) for answer in ("completion", "response")),
        Shape(("prompt",), _asked(_of("prompt"), "answer")),
        *(Shape((name,), _questioned(name)) for name in ("messages", "conversations")),
        *(Shape(("instruction", answer), _asked(_instruction, answer)) for answer in ("output", "response")),
        Shape(("question",), _asked(_of("question"), "answer")),
    ],
    "preferences": [
        Shape(("chosen", "rejected"), _apart),
        *(Shape(("prompt", answer, "label"), _liked(answer), unpaired=True) for answer in ("completion", "response")),
    ],
    "judgements": [Shape(("prompt", answer, "label"), _judged(answer)) for answer in ("response", "completion")],
}


def recognised(table: str, columns: Iterable[str]) -> Shape | None:
    """The first shape of the table that these columns have."""
    there = set(columns)
    return next((shape for shape in SHAPES[table] if there.issuperset(shape.columns)), None)


def names(table: str) -> set[str]:
    """The columns of all shapes of a table."""
    return {name for shape in SHAPES[table] for name in shape.columns} | {"input", "instances"}
