"""Verifiers of form and content, and those that a library in the sandbox decides."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from grape.errors import GrapeError
from grape.reward.verdict import Undecidable, Verdict
from grape.reward.verifiers import VERIFIERS, build, libraries
from grape.sandbox.box import HarnessError
from grape.sandbox.places import Limits
from grape.sandbox.run import Library
from grape.sandbox.tiers import tier
from tests import tiny

needs_a_tier = pytest.mark.skipif(not tier().strong, reason=tier().why())


def score(verifier: str, options: dict[str, object], answer: str | None, text: str) -> float:
    return build(verifier, options)(tiny.prompt("q", answer=answer), text)


@pytest.mark.parametrize(
    ("options", "answer", "text", "expected"),
    [
        ({}, "8", "from 5-8", 1),
        ({}, "-8", "it is -8", 1),
        ({}, "-8", "it is −8", 1),
        ({}, "-8", "(-8)", 1),
        ({}, "8", "7 + 1 = 8.", 1),
        ({}, "0.005", "5e-3", 1),
        ({}, "5", "5 apples of 2", 0),
        ({}, "1000000", "1,000,000", 1),
        ({}, "8", "1.2.3", 0),
        ({"relative": 0.01}, "1000", "1009", 1),
        ({"relative": 0.01}, "1000", "1011", 0),
        ({"relative": 0.01}, "-1000", "-991", 1),
        ({"relative": 0.01, "tolerance": 20}, "1000", "1015", 1),
    ],
)
def test_numeric(options: dict[str, object], answer: str, text: str, expected: float) -> None:
    assert score("numeric", options, answer, text) == expected


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("B", "B", 1),
        ("B", "b", 1),
        ("B", " (B). ", 1),
        ("(b)", "**B**", 1),
        ("B", "The answer is B.", 1),
        ("B", "the answer is: (B) because C is wrong", 1),
        ("B", "Answer: **B**", 1),
        ("B", "First I thought the answer is A, but the answer is B", 1),
        ("B", "so $\\boxed{B}$", 1),
        ("B", "\\boxed{\\text{B}}", 1),
        ("B", "B) Paris", 1),
        ("B", "I looked.\n\nB. Paris", 1),
        ("B", "A cat would choose B", 1),
        ("A", "A cat would choose B", 0),
        ("B", "The correct option is B", 1),
        ("B", "A or B", 0),
        ("A", "A, B, C, D", 0),
        ("B", "the answer is B or C", 0),
        ("B", "The answer is A and B", 0),
        ("B", "Answer: B, since it rains", 1),
        ("B", "", 0),
        ("B", "E", 0),
        ("B", "Berlin", 0),
        ("B", "the answer is Berlin", 0),
        ("A", "A) Paris\nB) Rome", 0),
        ("D", "I'D say", 0),
        ("B", "It is A. No: it is B", 0),
        ("B", "Vitamin B", 1),
    ],
)
def test_choice(answer: str, text: str, expected: float) -> None:
    assert score("choice", {}, answer, text) == expected


def test_choice_with_other_letters() -> None:
    assert score("choice", {"letters": "ABCDEF"}, "F", "the answer is F") == 1
    with pytest.raises(Undecidable, match="none of the letters"):
        score("choice", {}, "F", "F")
    with pytest.raises(ValueError, match="letters"):
        build("choice", {"letters": "a-z"})


@pytest.mark.parametrize(
    ("options", "answer", "text", "expected"),
    [
        ({}, "tea;milk", "TEA", 0.5),
        ({"need": "all"}, "tea;milk", "tea", 0),
        ({"need": "any"}, "tea;milk", "tea", 1),
        ({"need": "none"}, "tea;milk", "tea", 0),
        ({"need": "none"}, "tea", "water", 1),
        ({"texts": ["please", "thank"]}, None, "Thank you", 0.5),
        ({"texts": ["a"], "ignore_case": False}, None, "A", 0),
    ],
)
def test_contains(options: dict[str, object], answer: str | None, text: str, expected: float) -> None:
    assert score("contains", options, answer, text) == expected


@pytest.mark.parametrize(
    ("unit", "text", "count"),
    [
        ("words", "to be or", 3),
        ("words", "今日は良い天気です", 1),
        ("characters", "今日は 良い天気です。", 10),
        ("characters", "e\u0301a", 2),
        ("characters", "naïve", 5),
        ("characters", "\u200bhi\u202e", 2),
        ("characters", "नमस्ते", 4),
        ("lines", "a\n\n b\r\nc\n", 3),
        ("lines", "", 0),
        ("characters", "", 0),
    ],
)
def test_length(unit: str, text: str, count: int) -> None:
    assert score("length", {"unit": unit, "low": count, "high": count}, None, text) == 1
    assert score("length", {"unit": unit, "low": count + 1, "high": 99}, None, text) == 0


def test_a_length_that_nothing_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="above high"):
        build("length", {"low": 3, "high": 2})


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n": 3}', 1),
        ('Here:\n```json\n{"n": 3}\n```\nDone', 1),
        ('```\n{"n": 3}\n```', 1),
        ('{"n": -1}', 0),
        ('{"n": true}', 0),
        ('{"n": 3, "m": 1}', 0),
        ("{}", 0),
        ('{"n": NaN}', 0),
        ('{"n": 1, "n": 2}', 0),
        ("n = 3", 0),
        ("", 0),
        ('{"n": 3} {"n": 3}', 0),
        ("[" * 5000, 0),
        ('```json\n{"n": 1}\n```\n```json\n{"n": 2}\n```', 0),
    ],
)
def test_json_schema(text: str, expected: float) -> None:
    assert score("json_schema", {"schema": SCHEMA}, None, text) == expected


def test_a_bad_schema_is_a_bad_option() -> None:
    bad = ({"schema": {"type": "integr"}}, "not a JSON schema"), ({}, "schema"), ({"schema": True, "x": 1}, "x")
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            build("json_schema", options)


def test_a_schema_elsewhere_is_not_fetched() -> None:
    """The library would, by default; a check that cannot be made is missing."""
    with pytest.raises(Undecidable, match="refers to what is not in it"):
        score("json_schema", {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}}, None, "{}")


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("json", ' {"a": 1} ', 1),
        ("json", "```json\n{}\n```", 0),
        ("line", "one", 1),
        ("line", "one\ntwo", 0),
        ("list", "- a\n- b", 1),
        ("list", "1. a\n2) b\n", 1),
        ("list", "Points:\n- a", 0),
        ("list", "- ", 0),
        ("fence", "```python\nx = 1\n```", 1),
        ("fence", "```\nx\n```\nmore", 0),
        ("fence", "```a\nx\n```\n```b\ny\n```", 0),
        ("boxed", "so \\boxed{1}", 1),
        ("boxed", "\\boxed{\\frac{1}{2}}", 1),
        ("boxed", "\\boxed{1} \\boxed{2}", 0),
        ("boxed", "1", 0),
        ("tags", "<think>a\nb</think>\n<answer>c</answer>", 1),
        ("tags", "<answer>c</answer><think>a</think>", 0),
        ("tags", "<think>a</think> so <answer>c</answer>", 0),
        ("tags", "<think>a</think><answer>c</answer> bye", 0),
        ("tags", "<think>a</think><answer>c</answer><answer>d</answer>", 0),
        ("tags", "<answer>c</answer>", 0),
        ("tags", "<think><think>a</think><answer>c</answer>", 0),
    ],
)
def test_format(form: str, text: str, expected: float) -> None:
    assert score("format", {"form": form}, None, text) == expected


def test_format_of_named_tags_and_languages() -> None:
    assert score("format", {"form": "tags", "tags": ["plan"]}, None, "<plan>x</plan>") == 1
    assert score("format", {"form": "fence", "language": "python"}, None, "```js\nx\n```") == 0


def test_a_verdict_is_its_score_and_keeps_its_reason() -> None:
    import pickle

    verdict = Verdict(0.5, "half", {"cases": 2})
    assert verdict == 0.5 and (again := pickle.loads(pickle.dumps(verdict))).reason == "half" and again.metrics == {"cases": 2}
    assert score("numeric", {}, "8", "9").reason == "its last number is 9, which is not the answer"  # type: ignore[attr-defined]


def test_no_reason_tells_the_reference_answer() -> None:
    """Reasons may be shown to the policy when it revises its answer."""
    for name, options, answer in (("numeric", {}, "4711"), ("choice", {}, "D"), ("contains", {}, "4711")):
        assert answer not in getattr(score(name, options, answer, "12"), "reason", "")


# --- libraries


@pytest.mark.parametrize(("name", "options", "extra"), [("math", {}, "math"), ("reasoning_gym", {"dataset": "countdown"}, "gym")])
def test_a_missing_extra_is_named(name: str, options: dict[str, object], extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.sandbox.run.find_spec", lambda package: None)
    with pytest.raises(GrapeError, match=rf"not installed\n  -> pip install 'grape\[{extra}\]'"):
        build(name, options)


PUZZLE = """
import os, time
calls = 0
def check(kind, text):
    global calls
    calls += 1
    if kind == "hang":
        while True: pass
    if kind == "die": os._exit(3)
    if kind == "raise": raise ValueError(text)
    if kind == "none": return None
    if kind == "where": return [os.environ.get("SOME_API_KEY"), os.path.exists(text)]
    return [calls, text.upper()]
"""


@pytest.fixture
def puzzle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """A package `puzzle` in a site-packages folder, and the library made of it."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "puzzle.py").write_text(PUZZLE)
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    made = Library("puzzle", "from puzzle import check\ndef grade(kind, text): return check(kind, text)\n", "puzzles")
    made.limits = Limits(seconds=1, wall=3)
    yield made
    made.close()


@needs_a_tier
def test_a_library_answers_and_no_request_sees_another(puzzle: Library) -> None:
    answers = [puzzle.grade(tier().name, "say", text) for text in ("a", "b")]
    assert [answer.value for answer in answers] == [[1, "A"], [1, "B"]]


@needs_a_tier
def test_a_request_that_fails_costs_itself_alone(puzzle: Library) -> None:
    held_by = tier().name
    assert "ValueError: no" in str(puzzle.grade(held_by, "raise", "no").error)
    assert "ended with 3" in str(puzzle.grade(held_by, "die", "").error)
    assert puzzle.grade(held_by, "hang", "").error is not None
    assert puzzle.grade(held_by, "say", "on").value == [1, "ON"]
    assert puzzle.grade(held_by, "none", "").value is None and puzzle.grade(held_by, "none", "").error is None


@needs_a_tier
def test_a_library_sees_its_folder_and_no_more(puzzle: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    assert puzzle.grade(tier().name, "where", str(Path(__file__).parents[2] / "pyproject.toml")).value == [None, False]


@needs_a_tier
def test_a_library_that_cannot_be_loaded_is_an_error_of_the_harness(puzzle: Library) -> None:
    puzzle.program = "import puzzle_that_is_not_there"
    with pytest.raises(HarnessError, match="cannot be loaded"):
        puzzle.grade(tier().name, "say", "a")
    with pytest.raises(GrapeError, match="not installed"):
        Library("puzzle_that_is_not_there", "", "puzzles").grade(tier().name, "a")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "().__class__",
        "exec('x')",
        "eval ('x')",
        "(lambda: 1)()",
        "open('x').read()",
        "exit()",
        "getattr(x, 'y')",
    ],
)
def test_an_answer_that_is_code_is_not_given_to_reasoning_gym(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.sandbox.run.find_spec", lambda package: object())
    monkeypatch.setattr(libraries, "mechanism", lambda allow_weak: "namespaces")
    monkeypatch.setattr(libraries.REASONING_GYM, "grade", lambda *a: pytest.fail("it was given away"))
    verdict = score("reasoning_gym", {"dataset": "n_queens"}, "x", f"<think>?</think><answer>{text}</answer>")
    assert verdict == 0 and "looks like Python" in verdict.reason  # type: ignore[attr-defined]


@pytest.mark.skipif(find_spec("math_verify") is None, reason="the extra `math` is not installed")
@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("1/2", "The answer is $\\frac{2}{4}$.", 1),
        ("\\frac{1}{2}", "0.5", 1),
        ("1/2", "0.51", 0),
        ("x^2+2x+1", "$(x+1)^2$", 1),
        ("x^2", "$x^3$", 0),
        ("\\sqrt{2}", "$\\boxed{2^{1/2}}$", 1),
        ("12", "I do not know", 0),
        ("12", "", 0),
        ("12", "9^9^9^9^9", 0),
        ("\\{1,2\\}", "$\\{2,1\\}$", 1),
    ],
)
def test_math(answer: str, text: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if "^9^9" in text:  # a number that cannot be computed; the library is started anew with less patience
        libraries.MATH_VERIFY.close()
        monkeypatch.setattr(libraries.MATH_VERIFY, "limits", Limits(seconds=1, wall=5, memory=2048, files=256))
    assert score("math", {}, answer, text) == expected


@pytest.mark.skipif(find_spec("math_verify") is None, reason="the extra `math` is not installed")
def test_a_reference_that_is_no_mathematics_is_missing() -> None:
    with pytest.raises(Undecidable, match="cannot read the reference"):
        score("math", {}, "", "12")


@needs_a_tier
@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="the extra `gym` is not installed")
def test_reasoning_gym() -> None:
    entry = json.dumps({"question": "", "answer": "1 2 3", "metadata": {}})
    assert score("reasoning_gym", {"dataset": "spiral_matrix"}, entry, "I turn.\n<answer>1 2 3</answer>") == 1
    assert score("reasoning_gym", {"dataset": "spiral_matrix"}, entry, "3 2 1") < 1
    with pytest.raises(Undecidable, match="no dataset"):
        score("reasoning_gym", {"dataset": "no_such"}, entry, "1")


def test_every_verifier_says_what_it_does() -> None:
    assert all((kind.__doc__ or "").startswith(f"`{name}`: ") for name, kind in VERIFIERS.items())
