# ruff: noqa: E501 (a line a case)
"""References are read strictly and once, responses leniently; a pattern has a limit of time. No wrong answer passes for a right one."""

from __future__ import annotations

from fractions import Fraction

import pytest
from pydantic import ValidationError

from grape.errors import GrapeError
from grape.reward.rubric import Item, Rubric
from grape.reward.source import RubricReward
from grape.reward.verdict import Undecidable
from grape.reward.verifiers import build, form
from grape.reward.verifiers.python_tests import program
from grape.reward.verifiers.reading import blocks, boxed, chosen, last_number, one_number
from tests import tiny


def score(verifier: str, options: dict[str, object], answer: str | None, text: str) -> float:
    return build(verifier, options)(tiny.prompt("q", answer=answer), text)


@pytest.mark.parametrize(
    ("answer", "value"),
    [("72", 72), (" -3 ", -3), ("–3", -3), ("−0.5", "-1/2"), (".5", "1/2"), ("1/2", "1/2"), ("1,000", 1000), ("1,234,567.5", "2469135/2"),
     ("1e-3", "1/1000"), ("0.10", "1/10"), ("007", 7), ("-.25", "-1/4")],
)  # fmt: skip
def test_a_reference_that_is_one_number_is_read_exactly(answer: str, value: object) -> None:
    assert one_number(answer) == Fraction(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "x",
        "3 apples",
        "$72",
        "50%",
        "1,00",
        "1,2,3",
        "1.2.3",
        "5-8",
        "1/0",
        "1e999999999",
        "two",
        "3 or 4",
        "--3",
        "1 000",
        "nan",
    ],
)
def test_a_reference_that_is_not_one_number_is_refused_before_training(answer: str) -> None:
    item = Item(id="right", question="Is it right?", kind="verify", verifier="numeric")
    judge = RubricReward({"sums": Rubric(version=1, category="sums", items=(item,))})
    with pytest.raises(GrapeError, match="is not one number") as caught:
        judge.check([tiny.prompt("ok", "sums", "8"), tiny.prompt("q", "sums", answer)], "data/prompts/train.jsonl")
    assert "train.jsonl:2" in str(caught.value.where)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("1/2", "2", 0), ("1/2", "0.5", 1), ("1/2", "it is 1/2", 1), (".5", "5", 0), (".5", "is .5", 1), ("0.5", "is .5.", 1),
        ("-3", "It falls to –3 degrees", 1), ("-3", "It falls to -3°", 1), ("-3", "It falls to ‑3", 1), ("3", "It falls to –3 degrees", 0),
        ("5", "between 3–5", 1), ("-5", "between 3–5", 0), ("5", "from 3-5 of them", 1), ("1000", "1,000 dollars", 1), ("3", "1,2,3", 1),
        ("123", "1,2,3", 0), ("72", "She sold $72.", 1), ("50", "that is 50%", 1), ("0.3", "0.30", 1), ("0.1", "1/10", 1),
        ("8", "5e-3, no, 8", 1), ("8", "1e999999999", 0), ("8", "9" * 5000, 0), ("8", "no number", 0), ("-8", "x=-8", 1), ("8", "v1.2.3", 0),
        ("18", "#### 18", 1), ("2", "(2)", 1), ("-2", "[-2]", 1), ("10", "10.", 1), ("10", "= 10.0", 1), ("24", "48/2 = 24", 1),
    ],
)  # fmt: skip
def test_numbers_of_responses(answer: str, text: str, expected: float) -> None:
    assert score("numeric", {}, answer, text) == expected


def test_nothing_is_read_from_nothing() -> None:
    assert last_number("") is None and last_number("-") is None and last_number(".") is None


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        (r"2\sqrt{3}", "2", 0), (r"2\sqrt{3}", r"$2\sqrt{3}$", 1), ("[0, 1)", "$[0,1)$", 1), ("[0, 1)", "0", 0), (r"\frac{1}{2}", "$0.5$", 1),
        (r"$\frac{1}{2}$", r"\boxed{1/2}", 1), ("x^2+1", "$x^2$", 0), ("x^2+1", "$1+x^2$", 1), ("8", "8", 1), (r"\boxed{3}", "$3$", 1),
    ],
)  # fmt: skip
def test_a_reference_of_mathematics_is_read_whole(answer: str, text: str, expected: float) -> None:
    pytest.importorskip("math_verify")
    assert score("math", {}, answer, text) == expected


ENDLESS = [
    ("matches", {"pattern": "(a|aa)+"}, "a" * 90 + "b"),
    ("json_schema", {"schema": {"pattern": "^(a|aa)+$"}}, '"' + "a" * 90 + 'b"'),
    ("json_schema", {"schema": {"patternProperties": {"^(a|aa)+$": {}}}}, '{"' + "a" * 90 + 'b": 1}'),
    (
        "json_schema",
        {"schema": {"additionalProperties": False, "patternProperties": {"^(a|aa)+$": {}}}},
        '{"' + "a" * 90 + 'b": 1}',
    ),
]


@pytest.mark.parametrize(("verifier", "options", "text"), ENDLESS)
def test_a_pattern_that_finds_no_end_leaves_the_score_missing(
    verifier: str, options: dict[str, object], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "PATTERN_SECONDS", 0.05)
    with pytest.raises(Undecidable, match="found no end"):
        score(verifier, options, None, text)


@pytest.mark.parametrize(
    ("pattern", "text"), [(r"(\w+\s?)+\.", "many words that never end " * 4 + "!"), (r"^(a+)+$", "a" * 60 + "b")]
)
def test_a_nested_repetition_that_can_be_decided_is_no(pattern: str, text: str) -> None:
    assert score("matches", {"pattern": pattern}, None, text) == 0


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"pattern": "^a+$"}, '"aaa"', 1), ({"pattern": "^a+$"}, '"ab"', 0), ({"pattern": "^a+$"}, "3", 1),
        ({"patternProperties": {"^n": {"type": "integer"}}}, '{"n1": 1, "x": "y"}', 1), ({"patternProperties": {"^n": {"type": "integer"}}}, '{"n1": "1"}', 0),
        ({"properties": {"a": {}}, "additionalProperties": False}, '{"a": 1}', 1), ({"properties": {"a": {}}, "additionalProperties": False}, '{"b": 1}', 0),
        ({"additionalProperties": {"type": "integer"}}, '{"b": "x"}', 0), ({"patternProperties": {"^n": {}}, "additionalProperties": False}, '{"n": 1}', 1),
    ],
)  # fmt: skip
def test_schemas_mean_what_they_meant(schema: dict[str, object], text: str, expected: float) -> None:
    assert score("json_schema", {"schema": schema}, None, text) == expected


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{\frac{\sqrt{3}}{2}}", [r"\frac{\sqrt{3}}{2}"]), (r"\boxed {8}", ["8"]), (r"\boxed{8", []), (r"\boxed{\{1\}}", [r"\{1\}"]),
        (r"a \boxed{1} b \boxed{2}", ["1", "2"]), ("none", []),
    ],
)  # fmt: skip
def test_boxes_of_any_depth(text: str, inside: list[str]) -> None:
    assert boxed(text) == inside
    assert score("format", {"form": "boxed"}, None, text) == (len(inside) == 1)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("B", r"Both A and C fail. $\boxed{\textbf{B}}$", 1), ("A", r"Both A and C fail. $\boxed{\textbf{B}}$", 0), ("B", "answer: b", 1),
        ("B", "Answer: (b).", 1), ("A", "the answer is a cat", 0), ("B", r"\boxed{\mathrm{b}}", 1), ("B", r"\boxed{E}", 0), ("A", "answer: b", 0),
    ],
)  # fmt: skip
def test_choices_that_were_not_read(answer: str, text: str, expected: float) -> None:
    assert score("choice", {}, answer, text) == expected


def test_the_empty_part_is_no_part_and_accents_are_composed_or_not() -> None:
    assert score("contains", {}, "tea;", "milk") == 0 and score("contains", {}, "tea; ", "tea") == 1
    with pytest.raises(Undecidable, match="names nothing"):
        score("contains", {}, " ; ", "milk")
    assert score("exact", {}, "café", "cafe\u0301") == score("contains", {}, "cafe\u0301", "a café") == 1
    assert score("matches", {"pattern": "caf\u00e9"}, None, "cafe\u0301") == 1


@pytest.mark.parametrize(
    "text",
    ["```json\n{}\n```", "```json\r\n{}\r\n```", "~~~json\n{}\n~~~", "Here:\n  ```json\n  {}\n  ```", "1. ```json\n   {}\n   ```\n", "````json\n{}\n````",
     "```JSON\n{}\n```", "```\n{}\n```", "```json\n{}"],
)  # fmt: skip
def test_one_reader_of_fences(text: str) -> None:
    assert [body.strip() for _, body in blocks(text)] == ["{}"]
    assert score("json_schema", {"schema": {"type": "object"}}, None, text) == 1


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("```\npip install x && ls -la\n```\n```python\ndef f(x):\n    return x\n```", 3),
        ("```python\ndef f(x: List[int]) -> Optional[int]:\n    return x\n```", 3),
        ("```python\nimport math\n```\nthen\n```python\nfrom __future__ import annotations\ndef f(x):\n    return x\n```", 3),
        ("~~~py\r\ndef f(x):\r\n    return x\r\n~~~", 3),
        ("- ```python\n  def f(x):\n      return x\n  ```", 3),
        ("```python\ndef f(x):\n    return x\n```\n```python\nprint(f(1) +\n```", 3),
        ("def f(x):\n    return x", 3),
    ],
)  # fmt: skip
def test_the_program_is_the_block_that_defines_the_function(text: str, runs: int) -> None:
    namespace: dict[str, object] = {}
    exec(compile(program(text, "f"), "<t>", "exec", dont_inherit=True), namespace)
    assert namespace["f"](runs) == runs  # type: ignore[operator]


def test_a_response_without_python_has_no_program() -> None:
    assert program("```sh\nls\n```", "f") == "" and program("", "f") == ""


@pytest.mark.parametrize(("text", "value"), [
    ("$10{,}000$", 10000), (r"$10\,000$", 10000), ("10 000", 10000), ("10\u202f000", 10000), ("The change is -$8.", -8),
    ("It takes 2 1/2 hours", Fraction(5, 2)), (r"$\frac{1}{2}$", Fraction(1, 2)), (r"$-\dfrac{1}{2}$", Fraction(-1, 2)),
    (r"2\frac{1}{2}", Fraction(5, 2)), ("1.5×10^3", 1500), (r"2 \times 10^{-2}", Fraction(1, 50)), ("10^3", 1000), ("x^3", None),
    ("2^{3}", None), ("v1.2.3", None), ("答案是-3", -3), ("answer--8", 8), ("So the answer is...8", 8), ("12/25/2024", 2024),
    ("x=-3", -3), ("5 - 3 = 2", 2), ("it is 2,5", None), ("−0,5", None), ("1,2,3", 3), ("a 1/2", Fraction(1, 2)), ("$1,234.50", Fraction(2469, 2)), ("3, 4, 5", 5), ("5-8", 8),
])  # fmt: skip
def test_numbers_as_people_write_them(text: str, value: object) -> None:
    assert last_number(text) == value


@pytest.mark.parametrize("letters", ["ABCD", "ABCDEFGHIJ"])
@pytest.mark.parametrize("text", [
    "The correct answer is B. Option A is incorrect because it is too small.", "Option A is wrong, so it must be B.",
    "The best choice is B; choice A lacks C.", "I think it is B.", "The answer I would give is B.",
    r"A and C fail: \boxed{\textbf{(B)}\ 12}", r"So. The answer is \(B\).", r"$\textbf{(B)}$", "A is wrong.\n<answer>B</answer>",
    "We can exclude A. Therefore **(B)**.", "Ruling out C, I choose (B).", "答案是B", "b) Paris", "The answer is b.", "A cat is an animal, so B", "Perhaps A? No.\nB", "Not A. B.",
])  # fmt: skip
def test_what_is_said_of_other_options_does_not_count(text: str, letters: str) -> None:
    assert chosen(text, letters) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is not A.",
        "The answer cannot be A",
        "not A",
        "I do not know.",
        "A or B",
        "A cat",
        r"\boxed{A or B}",
        "The answer is A or B",
        "",
        "none of these",
    ],
)
def test_no_choice_is_none(text: str) -> None:
    assert chosen(text, "ABCDEFGHIJ") is None


@pytest.mark.parametrize(("text", "found"), [
    ('```python\ndef f():\n    """\n    ```\n    a\n    ```\n    """\n```\nout', [("python", 'def f():\n    """\n    ```\n    a\n    ```\n    """\n')]),
    ("```json\n{}\n````", [("json", "{}\n")]), ("~~~\nx\n~~~~", [("", "x\n")]), ("```py\nreturn 2*x```", [("py", "return 2*x\n")]),
    ("> ```python\n> x\n> ```", [("python", "x\n")]), ("Sure: ```python\nx\n```", [("python", "x\n")]),
    ("````\n```\nx\n```\n````", [("", "```\nx\n```\n")]), ("a ``` b", []),
])  # fmt: skip
def test_fences(text: str, found: list[tuple[str, str]]) -> None:
    assert blocks(text) == found


def test_boxes() -> None:
    assert boxed(r"\boxed{\frac{\sqrt{3}}{2}}, \boxed{x \\}, \boxed{\{1\}}, \boxed{") == [r"\frac{\sqrt{3}}{2}", r"x \\", r"\{1\}"]


@pytest.mark.parametrize(
    "text", [" ", "```", "\\boxed{", "- ", "1", "1 ", "1/", "-$", "\\frac{", "1.5×", "A ", "not ", "((", "option ", "> "]
)
def test_a_text_that_says_one_thing_for_ever_is_read_to_its_end(text: str) -> None:
    """Quadratic reading would take minutes here."""
    for whole in (text * 50_000, text * 50_000 + "x", f"The answer{text * 50_000}."):
        assert chosen(whole, "ABCD") in (None, "A")
        blocks(whole)
        boxed(whole)
        last_number(whole)


@pytest.mark.parametrize(("verifier", "options", "text", "score"), [
    ("matches", {"pattern": r".*\\boxed{e}.*"}, r"\boxe hello", 0), ("matches", {"pattern": "Dear {d}!"}, "Dear {d}!", 1),
    ("matches", {"pattern": "a{2}b{,3}c{1,}"}, "aabbcc", 1), ("matches", {"pattern": r"\N{DIGIT ONE}+"}, "11", 1),
])  # fmt: skip
def test_braces_of_a_pattern_are_those_of_re(verifier: str, options: dict[str, object], text: str, score: float) -> None:
    assert build(verifier, options)(tiny.prompt("q"), text) == score


def test_a_schema_that_asks_for_too_much_gives_no_score() -> None:
    schema = {"unevaluatedProperties": False, "patternProperties": {"^(a|aa)+$": {}}}
    with pytest.raises(Undecidable, match="no end"):
        build("json_schema", {"schema": schema})(tiny.prompt("q"), '{"' + "a" * 60 + 'b": 1}')


@pytest.mark.parametrize("texts", [["tea", ""], [" "], ["a", "\n"]])
def test_an_empty_text_is_no_text_to_contain(texts: list[str]) -> None:
    with pytest.raises(ValidationError, match="empty text"):
        build("contains", {"texts": texts})


@pytest.mark.parametrize(("text", "source"), [
    ("```python\nprint(f(2))\n```\n```python\ndef f(x):\n    return x\n```", "def f(x):\n    return x\n"),
    ("```python\nassert f(2) == 4\n```\n```python\ndef f(x): return x\n```", "def f(x): return x\n"),
    ("```\nls\n```\n```python\ndef f(x): return x\n```\n```\nf = 4\n```", "def f(x): return x\n"),
    ("```python\nK = 2\n```\n```python\nf = lambda x: K * x\n```\n```\nf: 4\n```", "K = 2\n\nf = lambda x: K * x\n"),
    ("```python\nwhile True: pass\n```\n```py3\ndef f(x): return x\n```", "def f(x): return x\n"),
])  # fmt: skip
def test_the_program_is_what_defines_the_function(text: str, source: str) -> None:
    assert program(text, "f") == f"from typing import *\n{source}"


def test_imports_from_the_future_come_first_and_a_docstring_stays() -> None:
    made = program('```python\n"""\nfrom __future__ import x\n"""\nfrom __future__ import (\n  annotations,\n)\nf = len\n```', "f")
    assert made.startswith("from __future__ import annotations\n") and '"""\nfrom __future__ import x\n"""' in made
    compile(made, "made", "exec")
