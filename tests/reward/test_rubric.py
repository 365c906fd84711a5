"""Rubrics and verifiers: what is scored, and what is refused with file and line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from grape.commands import rubrics
from grape.errors import GrapeError
from grape.project import Project
from grape.reward.rubric import load_rubric, load_rubrics
from grape.reward.source import RubricReward
from grape.reward.verdict import Question, Undecidable, Verdicts
from grape.reward.verifiers import build
from grape.types import Prompt, Response, Scores
from tests import tiny

GOOD = """\
version: 1
category: sums
items:
  - id: correct
    question: Is it right?
    weight: 3
    kind: verify
    verifier: numeric
  - id: short
    question: Is it short?
    kind: verify
    verifier: length
    options: {high: 2}
"""


def write(folder: Path, text: str, name: str = "sums.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("verifier", "options", "answer", "text", "score"),
    [
        ("exact", {}, "CAT", " CAT\n", 1),
        ("exact", {}, "CAT", "cat", 0),
        ("exact", {"ignore_case": True}, "CAT", "cat", 1),
        ("numeric", {}, "8", "It is 8.", 1),
        ("numeric", {}, "8", "8 or 9", 0),
        ("numeric", {}, "1200", "1,200", 1),
        ("numeric", {}, "-3", "-3", 1),
        ("numeric", {"tolerance": 0.1}, "3.14", "3.2", 1),
        ("numeric", {}, "8", "dunno", 0),
        ("numeric", {}, "8", "", 0),
        ("contains", {}, "Anna; salt", "Anna, the salt please", 1),
        ("contains", {}, "Anna; salt", "salt", 0.5),
        ("contains", {"part": 0}, "Anna; salt", "hey ANNA", 1),
        ("matches", {"pattern": "[a-z]+"}, None, "abc", 1),
        ("matches", {"pattern": "[a-z]+"}, None, "abc1", 0),
        ("length", {"low": 1, "high": 3}, None, "a b c d", 0),
    ],
)
def test_verifiers(verifier: str, options: dict[str, object], answer: str | None, text: str, score: float) -> None:
    assert build(verifier, options)(tiny.prompt("q", answer=answer), text) == score


def test_a_check_that_cannot_be_made_is_not_a_zero() -> None:
    for verifier, answer in (("exact", None), ("numeric", "many"), ("contains", None)):
        with pytest.raises(Undecidable):
            build(verifier, {})(tiny.prompt("q", answer=answer), "text")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("numeric", "numerical", 8, "unknown verifier"),
        ("id: short", "id: correct", 9, "stands twice"),
        ("weight: 3", "weight: -1", 6, "weight"),
        ("question: Is it right?", "quest: Is it right?", 5, "question"),
        ("options: {high: 2}", "options: {hi: 2}", 13, "hi"),
        ("kind: verify\n    verifier: length", "kind: critic\n    verifier: length", 9, "verifier"),
        ("version: 1", "version: 1\nrevise_prompt: Again.", 2, "critique"),
        ("version: 1", "version: [", 2, "YAML"),
        ("weight: 3", "weight: 0\n    # nothing counts", 3, "sum to zero"),
    ],
)
def test_a_bad_rubric_is_refused_with_file_and_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    text = GOOD.replace(old, new)
    if message == "sum to zero":
        text = text.replace("    kind: verify\n    verifier: length", "    weight: 0\n    kind: verify\n    verifier: length")
    path = write(tmp_path, text)
    with pytest.raises(GrapeError, match=message) as caught:
        load_rubric(path)
    where = str(caught.value.where)
    assert where.startswith(str(path)) and abs(int(where.rsplit(":", 1)[1]) - line) <= 1


def test_two_rubrics_of_one_category_are_refused(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, GOOD, "again.yaml")
    with pytest.raises(GrapeError, match="two rubrics"):
        load_rubrics(tmp_path)


def test_the_projects_own_rubrics_load(root: Path) -> None:
    assert set(load_rubrics(root / "rubrics")) == {"arithmetic", "letters", "courtesy"}


def responses(*texts: str, answer: str | None = "8") -> list[Response]:
    return [Response(tiny.prompt("3+5", "sums", answer), i, (5, 2), text, True) for i, text in enumerate(texts)]


def test_scores_of_a_rubric(tmp_path: Path) -> None:
    source = RubricReward(load_rubrics(write(tmp_path, GOOD).parent))
    scores = source(responses("8", "it is 8 I think", "9"))
    assert scores.items == ("sums/correct", "sums/short")
    assert scores.score.tolist() == [[1, 1], [1, 0], [0, 1]] and scores.valid.all() and (scores.confidence == 1).all()
    assert scores.weight.tolist() == [[3, 1]] * 3


def test_an_undecidable_item_is_missing_with_its_reason(tmp_path: Path) -> None:
    source = RubricReward(load_rubrics(write(tmp_path, GOOD).parent))
    scores = source(responses("8", answer=None))
    assert scores.valid.tolist() == [[False, True]] and "no reference answer" in scores.reasons[0][0]


def test_prompts_that_cannot_be_scored_are_refused_before_training(tmp_path: Path) -> None:
    source = RubricReward(load_rubrics(write(tmp_path, GOOD).parent))
    source.check([tiny.prompt("x", "sums", "8")])
    with pytest.raises(GrapeError, match="no reference answer"):
        source.check([tiny.prompt("x", "sums")])
    with pytest.raises(GrapeError, match="no rubric for the category"):
        source.check([tiny.prompt("x", "poems", "8")])


def test_what_cannot_be_checked_is_named_with_file_line_and_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    source = RubricReward(load_rubrics(tmp_path))
    prompts = [tiny.prompt("x", "sums", "8"), tiny.prompt("y", "sums")]
    with pytest.raises(GrapeError, match="item sums/correct: .*no reference answer") as caught:
        source.check(prompts, "data/prompts/train.jsonl")
    assert caught.value.where == f"data/prompts/train.jsonl:2, id-y; {path}:4"

    def broken(prompt: Prompt, text: str) -> float:
        raise RecursionError("too deep")

    monkeypatch.setitem(source.verify.checks, "sums/short", broken)
    with pytest.raises(GrapeError, match="item sums/short: the verifier raised RecursionError: too deep") as caught:
        source.check(prompts[:1], "data/prompts/train.jsonl")
    assert caught.value.where == f"data/prompts/train.jsonl:1, id-x; {path}:9"


def test_a_verifier_that_raises_makes_its_score_missing_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    source = RubricReward(load_rubrics(tmp_path))
    whole = source(responses("8", "9"))

    def broken(prompt: Prompt, text: str) -> float:
        if text == "9":
            raise ValueError("no")
        return 1.0

    monkeypatch.setitem(source.verify.checks, "sums/short", broken)
    scores = source(responses("8", "9"))
    assert scores.valid.tolist() == [[True, True], [True, False]]
    assert scores.reasons[1][1] == "the verifier raised ValueError: no"
    assert torch.equal(scores.score[:, 0], whole.score[:, 0]) and scores.score[0, 1] == whole.score[0, 1]


def test_critic_items_without_a_critic_are_refused(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("kind: verify\n    verifier: numeric", "kind: critic"))
    with pytest.raises(GrapeError, match="critic"):
        RubricReward(load_rubrics(tmp_path))


def test_the_critics_text_cannot_be_steered_by_the_response(tmp_path: Path) -> None:
    """A response that holds the template's own places is quoted, not expanded."""
    rubric = load_rubric(write(tmp_path, GOOD))
    text = rubric.ask(rubric.items[0], "3+5 {response}", "{question} {prompt}").text
    assert text == "Is it right?\nQuestion: 3+5 {response}\nAnswer: {question} {prompt}"


def test_scores_do_not_depend_on_the_order_of_responses(tmp_path: Path) -> None:
    source = RubricReward(load_rubrics(write(tmp_path, GOOD).parent))
    one, two = source(responses("8", "9 9 9", "no")), source(responses("no", "9 9 9", "8"))
    torch.testing.assert_close(one.score, two.score.flip(0))


GATED = """\
version: 1
category: sums
items:
  - {id: safe, question: No digits?, kind: verify, verifier: matches, options: {pattern: "[^0-9]*"}, gate: true}
  - {id: named, question: Names Anna?, kind: verify, verifier: contains, options: {part: 0}}
  - {id: asked, question: Asks for salt?, kind: verify, verifier: contains, options: {part: 1}, parent: named}
"""


def test_a_failed_gate_takes_everything_and_a_failed_parent_what_hangs_on_it(tmp_path: Path) -> None:
    judge = RubricReward({"sums": load_rubric(write(tmp_path, GATED))})
    prompt = tiny.prompt("x", "sums", "Anna; salt")
    texts = ["Anna, the salt", "the salt", "Anna, the salt 3"]
    scores = judge([Response(prompt, i, (), text, True) for i, text in enumerate(texts)])
    assert scores.score.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert scores.valid.all()
    assert scores.reasons[1][2] == "0, since named is not met" and scores.reasons[2][1] == "0, since safe is not met"


def test_where_the_parent_is_missing_so_is_what_hangs_on_it(tmp_path: Path) -> None:
    judge = RubricReward({"sums": load_rubric(write(tmp_path, GATED))})
    scores = judge([Response(tiny.prompt("x", "sums", None), 0, (), "salt", True)])
    assert scores.valid.tolist() == [[True, False, False]]


def test_a_score_that_is_missing_keeps_its_reason_under_a_failed_gate(tmp_path: Path) -> None:
    def reward_model(responses: Sequence[Response]) -> Scores:
        none = torch.zeros(len(responses), 1)
        return Scores(("reward_model/score",), none, none + 1, none > 0, none + 1, (("too long",),) * len(responses))

    text = GATED + "  - {id: liked, question: Liked?, kind: reward_model}\n"
    judge = RubricReward({"sums": load_rubric(write(tmp_path, text))}, reward_model=reward_model)
    scores = judge([Response(tiny.prompt("x", "sums", "Anna; salt"), 0, (), "Anna, the salt 3", True)])
    assert scores.valid.tolist() == [[True, True, True, False]] and scores.reasons[0][3] == "too long"


@pytest.mark.parametrize("parent", ["later", "asked", "nobody"])
def test_a_parent_stands_above_its_item(tmp_path: Path, parent: str) -> None:
    text = GATED.replace("parent: named", f"parent: {parent}")
    with pytest.raises(GrapeError, match=r"sums.yaml:6: item 'asked': its parent '\w+' is not one of the items above it"):
        load_rubric(write(tmp_path, text))


def test_the_critique_lists_what_is_not_met_with_the_reasons_that_say_why(tmp_path: Path) -> None:
    rubric = load_rubric(write(tmp_path, GOOD + 'revise_prompt: "Mend:\\n{critique}\\nNow."\n'))
    source = RubricReward({"sums": rubric})
    prompt = tiny.prompt("3 + 5?", "sums", "8")
    responses = [Response(prompt, i, (1,), text, True) for i, text in enumerate(("7", "8", "the sum is 8", "no idea at all"))]
    turns = source.critique(responses, source(responses))
    assert turns[0] == "Mend:\nIs it right? No, its last number is 7, which is not the answer.\nNow."
    assert turns[1] == "" and turns[2] == "Mend:\nIs it short? No, 4 words.\nNow."
    assert turns[3].count("\n") == 3 and not any("8" in turn for turn in (turns[0], turns[3])), "the answer is given away"


def test_a_probability_in_words_is_no_critique(tmp_path: Path) -> None:
    """Reasons go back to the policy only from a judge that has some; a missing score is nothing to mend."""

    class Judge:
        explains = False

        def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
            score = torch.tensor([torch.nan if "lost" in q.response else 0.2 for q in questions])
            return Verdicts(score, score, ("it is rude",) * len(questions), score)

    class Explaining(Judge):
        explains = True

    text = GOOD.replace("kind: verify\n    verifier: length\n    options: {high: 2}", "kind: critic")
    rubric = {"sums": load_rubric(write(tmp_path, text))}
    prompt = tiny.prompt("3 + 5?", "sums", "8")
    responses = [Response(prompt, i, (1,), text, True) for i, text in enumerate(("8", "lost 8"))]
    for judge, expected in ((Judge(), "Is it short? No."), (Explaining(), "Is it short? No, it is rude.")):
        source = RubricReward(rubric, judge)
        assert source.critique(responses, source(responses)) == [f"{expected}\nAnswer again.", ""]


def test_a_typed_response_is_scored_item_by_item(project_dir: Path) -> None:
    project = Project(project_dir)
    assert list(rubrics.check(project))[0].startswith("arithmetic: version 1, ")
    assert any("contains" in line and "25%" in line for line in rubrics.show(project, "courtesy"))
    found = rubrics.attempt(project, "courtesy", "Ask Anna for salt.", "Anna, the salt?", "Anna; salt")
    assert found["items"]["names_person"] == {"score": 1.0, "confidence": 1.0, "reason": ""}
    assert found["items"]["polite"]["score"] is None and "run the stage" in found["items"]["polite"]["reason"]
    assert found["reward"] == 1.0
    lines = list(rubrics.lines(found))
    assert lines[0].split() == ["names_person", "1.00", "sure", "1.00"] and lines[-1].split() == ["reward", "1.00"]
    with pytest.raises(GrapeError, match="no rubric for the category 'x'"):
        rubrics.attempt(project, "x", "", "", None)
