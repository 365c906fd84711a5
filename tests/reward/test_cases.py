"""What goes into the sandbox and what is made of what comes out: comparing, test cases, programs in responses."""

from __future__ import annotations

import json

import pytest

from grape.reward.verdict import Undecidable
from grape.reward.verifiers import build
from grape.reward.verifiers.cases import BadCases, equal, judge, parse, wrong
from grape.reward.verifiers.python_tests import PRELUDE, program
from grape.sandbox.protocol import read
from grape.sandbox.run import Answer, Run
from tests import tiny


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (1, 1, True),
        (True, 1, False),
        (1, True, False),
        (0, False, False),
        (None, False, False),
        ("1", 1, False),
        (1, "1", False),
        (2.0, 2, True),
        (2.0000000001, 2, False),
        (2, 2.0, True),
        (0.1 + 0.2, 0.3, True),
        (1e-12, 0.0, True),
        (1.001, 1.0, False),
        (True, 1.0, False),
        (10**30, 1e30, True),
        ([1], [1], True),
        ([1, 2], [1], False),
        ([1], [True], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ([], {}, False),
        ("", None, False),
        ("a", "a", True),
        ({"$set": [2, 1]}, [1, 2], True),
        ({"$set": [2, 1]}, {"$set": [1, 2]}, True),
        ([1, 2], {"$set": [1, 2]}, False),
        ({"$set": [1]}, [1, 1], False),
        ({"$set": [1, 2]}, [1, 3], False),
        ({"$set": []}, [], True),
        ({"$set": [1, 2]}, [2], False),
        ({"$set": [[1, 2], [3]]}, [[3], [1, 2]], True),
        ({"$set": [True]}, [1], False),
        ({"$set": 1}, [1], False),
        ({"$set": [1]}, 1, False),
        ([{"$set": [2, 1]}], [[1, 2]], True),
        ({"$set": list(range(2000))}, list(range(2000)), False),
        ({"$set": [1]}, {"a": 1}, False),
    ],
)
def test_comparing(found: object, expected: object, same: bool) -> None:
    assert equal(found, expected, 1e-9) is same


def test_an_integer_beyond_every_float_is_no_float() -> None:
    assert not equal(10**400, 1.0, 1e-9)


@pytest.mark.parametrize("value", [None, True, False, 0, -1, 10**30, 0.0, -3.5, 1e300, "", "a", [], [1], [[]], {}, {"a": 1}])
def test_a_wrong_value_is_never_equal_and_stays_json(value: object) -> None:
    other = read(json.dumps(wrong(value)))
    assert not equal(value, other, 1e-9) and not equal(other, value, 1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "object"),
        ("[]", "object"),
        ("{", "no strict JSON"),
        ('{"function": "f"}', "object"),
        ('{"function": "f", "cases": []}', "no test case"),
        ('{"function": "f()", "cases": [[[], 1]]}', "name of a function"),
        ('{"function": "f", "cases": [[1, 2]]}', "list of arguments"),
        ('{"function": "f", "cases": {"1": 2}}', "list"),
        ('{"function": "f", "cases": [[[1], NaN]]}', "NaN"),
        ('{"function": "f", "cases": [[[1], 1]], "hidden": []}', "object"),
    ],
)
def test_bad_test_cases_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadCases, match=message):
        parse(text)
    with pytest.raises(Undecidable, match=message):
        build("python_tests", {})(tiny.prompt("q", answer=text), "x")


def test_bad_test_cases_in_a_rubric_are_bad_options() -> None:
    with pytest.raises(ValueError, match="no test case"):
        build("python_tests", {"tests": {"function": "f", "cases": []}})


def test_impossible_cases_are_mixed_in_by_share_and_key() -> None:
    cases = parse({"function": "f", "cases": [[[i], i] for i in range(10)], "impossible": [[[99], 0]]})
    mixed = cases.mixed(0.25, "prompt 1")
    added = [case for case in mixed.cases if case.impossible and case.arguments != (99,)]
    assert len(mixed.cases) == 14 and len(added) == 3 and all(case.expected > 1000 for case in added)
    assert mixed.cases[:11] == cases.cases and cases.mixed(0.25, "prompt 1") == mixed != cases.mixed(0.25, "prompt 2")
    assert cases.mixed(0, "prompt 1") == cases


def test_a_program_that_knows_what_is_expected_is_found_out() -> None:
    """It passes the impossible cases too, which costs it everything; an honest one loses nothing by them."""
    cases = parse({"function": "f", "cases": [[[i], i * i] for i in range(4)]}).mixed(0.5, "key").cases
    honest = Run(tuple(Answer(case.arguments[0] ** 2) for case in cases), "", True)
    knowing = Run(tuple(Answer(case.expected) for case in cases), "", True)
    assert judge(cases, honest, 0, False) == 1 and judge(cases, honest, 0, False).metrics["impossible_passed"] == 0
    caught = judge(cases, knowing, 0, True)
    assert caught == 0 and caught.metrics["impossible_passed"] == 2 and "2 of 2 impossible" in caught.reason


def test_part_of_the_cases_earns_nothing_unless_wanted() -> None:
    cases = parse({"function": "f", "cases": [[[i], 0] for i in range(4)]}).cases
    done = Run((Answer(0), Answer(1), Answer(0), Answer(None, "KeyError: 'x'")), "", True)
    assert judge(cases, done, 0, False) == 0 and judge(cases, done, 0, True) == 0.5
    assert judge(cases, done, 0, True).reason == "passed 2 of 4 cases; first failure: another value than expected"
    only = parse({"function": "f", "cases": [], "impossible": [[[1], 2]]}).cases
    assert judge(only, Run((Answer(1),), "", True), 0, True) == 0


def test_cases_from_a_rubric_file_are_plain_values() -> None:
    """What a YAML reader returns only derives from int and list."""
    from ruamel.yaml import YAML

    tree = YAML(typ="rt").load("function: f\ncases: [[[0x10, [1.50]], {a: 1.0}]]")
    case = parse(tree).cases[0]
    assert type(case.arguments[0]) is int and type(case.arguments[1]) is list and type(case.expected["a"]) is float


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Sure:\n```python\ndef f(): pass\n```\nBye", "def f(): pass\n"),
        ("```python\ndef g(): pass\n```\n```python\nf = g\n```\n```python\nf(1)\n```", "def g(): pass\n\nf = g\n"),
        ("```bash\npip install x\n```\n```py\ndef f(): pass\n```", "def f(): pass\n"),
        ("~~~\nclass f: pass\n~~~", "class f: pass\n"),
        ("```\nx = '''\n``\n'''\n```", "x = '''\n``\n'''\n"),
        ("```json\n{}\n```", ""),
    ],
)
def test_the_program_of_a_response(text: str, source: str) -> None:
    assert program(text, "f") == (f"{PRELUDE}\n{source}" if source else "")
