"""Rows of every usual shape become the columns of the table they are for, or are refused with their place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from grape.artifacts import Demonstration, Judgement, Preference, PromptRow, Record, checked
from grape.data.converted import Told, converted
from grape.errors import GrapeError

USER, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "So it is 4.\n#### 4"}
SYSTEM = {"role": "system", "content": "Be brief."}
SHARE = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "2 + 2?"},
    {"from": "gpt", "value": ANSWER["content"]},
]
ALPACA = {"instruction": "Add.", "input": "2, 2", "output": "4"}
ADDED = {"role": "user", "content": "Add.\n\n2, 2"}
KINDS: dict[str, type[Record]] = {"sft": Demonstration, "prompts": PromptRow, "preferences": Preference, "judgements": Judgement}


def records(
    table: str,
    *rows: dict[str, Any],
    columns: dict[str, str] | None = None,
    said: list[str] | None = None,
    item: str | None = None,
    left_out: Counter[str] | None = None,
) -> list[Any]:
    placed = [(f"file.jsonl:{n}", row) for n, row in enumerate(rows, 1)]
    say = (said if said is not None else []).append
    told = Told(columns or {}, "any", item)
    return checked(converted(placed, table, "file.jsonl", told, say, Counter() if left_out is None else left_out), KINDS[table])


def messages(turns: list[Any]) -> list[dict[str, Any]]:
    return [turn.message() for turn in turns]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER, ANSWER]),
        ({"conversations": SHARE}, [SYSTEM, USER, ANSWER]),
        ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
        (ALPACA, [ADDED, {"role": "assistant", "content": "4"}]),
        ({"instruction": "Add.", "input": "", "response": "4"}, [{"role": "user", "content": "Add."}, {**ANSWER, "content": "4"}]),
        ({"prompt": "2 + 2?", "completion": ANSWER["content"]}, [USER, ANSWER]),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER, ANSWER]),
        ({"question": "2 + 2?", "answer": ANSWER["content"]}, [USER, ANSWER]),
    ],
)
def test_demonstrations(row: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    (record,) = records("sft", row)
    assert messages(record.messages) == expected and record.category == "any"


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": [USER], "answer": "4"}, [USER], "4"),
        ({"prompt": "2 + 2?"}, [USER], None),
        ({"prompt": "2 + 2?", "answer": None}, [USER], None),
        ({"question": "2 + 2?", "answer": ANSWER["content"]}, [USER], "4"),
        ({"question": "2 + 2?", "answer": "4"}, [USER], "4"),
        ({"prompt": "2 + 2?", "completion": "4"}, [USER], "4"),
        ({"prompt": "2 + 2?", "completion": [{**ANSWER, "content": "4"}]}, [USER], "4"),
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER], None),
        ({"messages": [USER, ANSWER]}, [USER], "4"),
        ({"conversations": SHARE}, [SYSTEM, USER], "4"),
        ({"prompt": [USER], "answer": "#### Steps\nAdd."}, [USER], "#### Steps\nAdd."),
        (ALPACA, [ADDED], "4"),
    ],
)
def test_prompts(row: dict[str, Any], prompt: list[dict[str, Any]], answer: str | None) -> None:
    (record,) = records("prompts", row)
    assert messages(record.prompt) == prompt and record.answer == answer


def test_a_column_that_is_named_takes_the_place_of_one_so_called() -> None:
    (record,) = records("prompts", {"prompt": "no", "task": "2 + 2?", "answer": "4"}, columns={"prompt": "task"})
    assert messages(record.prompt) == [USER] and record.answer == "4"


def test_a_column_that_no_row_has_is_refused() -> None:
    with pytest.raises(GrapeError, match="no row has the column solution") as caught:
        records("prompts", {"prompt": "2 + 2?"}, {"prompt": "3 + 2?"}, columns={"answer": "solution"})
    assert "file.jsonl" in str(caught.value) and "prepare.columns" in str(caught.value)


def test_self_instruct_has_a_row_for_each_instance() -> None:
    several = [{"input": "", "output": "4"}, {"input": "2, 2", "output": "5"}]
    first, second, third = records(
        "sft",
        {"id": "a", "instruction": "Add.", "instances": several},
        {"id": "b", "instruction": "Add.", "instances": several[1:]},
    )
    assert [record.id for record in (first, second, third)] == ["a-1", "a-2", "b"]
    assert messages(first.messages) == [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "4"}]
    assert messages(second.messages) == [ADDED, {"role": "assistant", "content": "5"}] == messages(third.messages)


GOOD, BAD = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "2 + 2?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_pairs_with_the_prompt_beside_or_inside(row: dict[str, Any]) -> None:
    (record,) = records("preferences", row)
    assert [messages(turns) for turns in (record.prompt, record.chosen, record.rejected)] == [[USER], [GOOD], [BAD]]


def test_answers_that_begin_alike_keep_what_they_say() -> None:
    (record,) = records("preferences", {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]})
    assert messages(record.prompt) == [USER, GOOD, USER] and messages(record.chosen) == [GOOD]


def test_columns_of_other_names_are_named() -> None:
    (record,) = records("sft", {"query": "2 + 2?", "reply": "4"}, columns={"prompt": "query", "completion": "reply"})
    assert messages(record.messages) == [USER, GOOD]


def test_the_shape_is_said_once_and_a_category_of_a_row_wins() -> None:
    said: list[str] = []
    first, second = records("prompts", {"question": "1?"}, {"question": "2?", "category": "own"}, said=said)
    assert said == ["file.jsonl: rows of question"] and (first.category, second.category) == ("any", "own")


def liked(prompt: Any, completion: Any, label: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label, **more}


def test_the_ith_liked_answer_is_paired_with_the_ith_disliked_one() -> None:
    left_out: Counter[str] = Counter()
    found = records(
        "preferences",
        liked("2 + 2?", "4", True, id="a"),
        liked([USER], [{**ANSWER, "content": "four"}], 1),
        liked("3 + 3?", "7", "false"),  # of another prompt
        liked("2 + 2?", "5", False, id="a"),
        liked("2 + 2?", "6", "False"),
        liked("2 + 2?", "8", 0),  # nobody is left to be preferred to it
        left_out=left_out,
    )
    said = [(r.prompt[0].content, r.chosen[0].content, r.rejected[0].content) for r in found]
    assert said == [("2 + 2?", "4", "5"), ("2 + 2?", "four", "6")] and left_out == {"unpaired": 2}


def test_an_answer_both_liked_and_disliked_is_no_pair_with_itself() -> None:
    left_out: Counter[str] = Counter()
    rows = [liked("2 + 2?", "4", True), liked("2 + 2?", "4", False), liked("2 + 2?", "5", False)]
    (found,) = records("preferences", *rows, left_out=left_out)
    assert (found.chosen[0].content, found.rejected[0].content) == ("4", "5") and left_out == {"unpaired": 1}


def test_answers_of_one_prompt_in_two_categories_are_apart() -> None:
    left_out: Counter[str] = Counter()
    rows = [liked("2 + 2?", "4", True, category="one"), liked("2 + 2?", "5", False, category="two")]
    assert records("preferences", *rows, left_out=left_out) == [] and left_out == {"unpaired": 2}


@pytest.mark.parametrize("label", [True, 1, "true", "TRUE", "1", 1.0])
@pytest.mark.parametrize("completion", ["4", [{**ANSWER, "content": "4"}]])
def test_unpaired_feedback_judges_the_item_that_is_named(label: Any, completion: Any) -> None:
    (found,) = records("judgements", liked("2 + 2?", completion, label), item="right")
    assert (found.item, found.response, found.label) == ("right", "4", 1) and messages(found.prompt) == [USER]


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        ("sft", [{"query": "a", "reply": "b"}], r"file.jsonl:1: no shape of rows is known with the columns query, reply"),
        ("sft", [ALPACA, {"instruction": "a"}], r"file.jsonl:2: column output is missing, which the rows before have"),
        ("sft", [{"messages": 3}], r"file.jsonl:1: rows of messages: not a list of turns but a int"),
        ("sft", [{"conversations": [{"from": "someone", "value": "a"}, ANSWER]}], "role"),
        ("sft", [{"messages": ["a", "b"]}], "a turn is a str, not an object"),
        ("sft", [{"messages": "2 + 2?"}], "not a list of turns but a str"),
        ("prompts", [{"conversations": '[{"from": "human"}]'}], "not a list of turns but a str"),
        ("prompts", [{"prompt": '[{"role": "user", "content": "2 + 2?"}]'}], "turns written as a text"),
        ("preferences", [{"prompt": "a", "chosen": "[{'role': 'assistant'}]", "rejected": "b"}], "turns written as a text"),
        ("sft", [{"instruction": "Add.", "instances": [{"output": "4"}]}, {"instruction": "Add.", "instances": []}], "is empty"),
        ("prompts", [{"messages": []}], "prompt"),
        ("preferences", [{"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}], "not those of prompt"),
        ("preferences", [{"prompt": "2?", "chosen": "4", "rejected": "4"}], "the same"),
        ("preferences", [liked("2?", "4", "good")], "label 'good' is neither true nor false"),
        ("preferences", [liked("2?", "4", 2)], "label 2 is neither"),
        ("preferences", [liked("2?", "4", True), {"prompt": "2?", "completion": "5"}], "column label is missing"),
        ("preferences", [liked("2?", [USER], True), liked("2?", "5", False)], "chosen begins with a turn of the user"),
        ("judgements", [liked("2?", "4", True)], "column item"),
        ("judgements", [liked("2?", [USER], True)], "one turn of the assistant"),
        ("judgements", [liked("2?", "4", "good", item="right")], "column label"),
    ],
)
def test_what_has_no_shape_or_another_is_refused(table: str, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(GrapeError, match=message):
        records(table, *rows)
