"""What `grape data preview` shows is what the stages learn from: the same tokens, learned where the loss is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from grape import params as params_file
from grape.artifacts import Demonstration, Document, Judgement, Preference, PromptRow, checked, write_rows
from grape.commands.data import lines, preview
from grape.data import near
from grape.errors import GrapeError
from grape.project import Project

ROOT = Path(__file__).resolve().parents[2]
HELLO, HI = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi\tyou"}
MORE, WELL = {"role": "user", "content": "More"}, {"role": "assistant", "content": "Well"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "rubrics").mkdir()
    (tmp_path / "rubrics/any.yaml").write_text(
        "version: 1\ncategory: any\nitems:\n  - {id: kind, question: Is it kind?, kind: critic}\n"
    )
    turns = {"category": "any", "prompt": [HELLO]}
    tables: dict[str, tuple[type[Any], list[dict[str, Any]]]] = {
        "corpus/train": (Document, [{"text": "User: Model: HelloHi\tyouMoreWell Isitknd?YesNo\n.Qup"}]),
        "sft/train": (
            Demonstration,
            [{"category": "any", "messages": [HELLO, HI, MORE, WELL]}, {**turns, "messages": [HELLO, HI]}],
        ),
        "prompts/train": (PromptRow, [turns]),
        "judgements/train": (Judgement, [{**turns, "item": "kind", "response": "Hi", "label": 1}]),
        "preferences/train": (Preference, [{**turns, "chosen": [HI], "rejected": [WELL]}]),
    }
    for name, (kind, rows) in tables.items():
        path = tmp_path / f"data/{name}.jsonl"
        path.parent.mkdir(parents=True)
        write_rows(path, checked([("here", row) for row in rows], kind))
    return Project(tmp_path)


def said(parts: list[tuple[str, list[str]]], mark: str) -> list[str]:
    return ["".join(tokens) for kind, tokens in parts if kind == mark]


@pytest.mark.parametrize(("turns", "learned"), [("all", ["Hi\tyou", "Well"]), ("last", ["Well"])])
def test_learned_is_what_the_loss_is_on(project: Project, turns: str, learned: list[str]) -> None:
    params_file.set_values(project.params, [f"sft.turns={turns}"])
    found = preview(project, "sft", 1)
    ((parts,),) = (row["parts"] for row in found["shown"])
    assert said(parts, "learned") == [f"{text}<|end|>" for text in learned] and found["rows"] == 2
    assert "Hello" in "".join(said(parts, "read")) and ("Hi\tyou" in "".join(said(parts, "read"))) == (turns == "last")
    assert found["tokens"][0] == sum(len(tokens) for _, tokens in parts) and found["categories"] == {"any": 2}


def test_every_stage_has_its_rows(project: Project) -> None:
    (pair,) = preview(project, "reward", 5)["shown"]
    assert [said(parts, "learned")[0][:2] for parts in pair["parts"]] == ["Hi", "We"]
    (prompt,) = preview(project, "rl", 5)["shown"]
    assert said(prompt["parts"][0], "learned") == [] and "Hello" in said(prompt["parts"][0], "read")[0]
    (judged,) = preview(project, "critic", 5)["shown"]
    assert said(judged["parts"][0], "learned")[0].startswith("yes") and "kind?" in said(judged["parts"][0], "read")[0]
    (document,) = preview(project, "base", 5)["shown"]
    assert document["id"] == "1" and "HelloHi" in said(document["parts"][0], "learned")[0]


def test_what_is_left_out_is_counted_and_the_lengths_are_drawn(project: Project) -> None:
    whole = preview(project, "sft", 2)
    params_file.set_values(project.params, [f"model.positions={min(whole['tokens'])}", "rl.max_new_tokens=8"])
    found = preview(project, "sft", 2)
    assert found["left_out"] == {"too_long": 1} and len(found["shown"]) == 1 and found["tokens"] == [min(whole["tokens"])]
    text = "\n".join(lines(found))
    assert "left out, too long: 1" in text and f"{'#' * 40} 1" in text and "H|i|\\t|y|o|u" in text
    bars = [line for line in lines(whole) if "#" in line]
    assert sum(int(line.rsplit(" ", 1)[1]) for line in bars) == 2


def test_what_is_not_there_is_named(project: Project) -> None:
    with pytest.raises(GrapeError, match="reads no rows"):
        preview(project, "report", 1)
    (project.root / "data/sft/train.jsonl").unlink()
    with pytest.raises(GrapeError, match=r"sft/train\.jsonl") as caught:
        preview(project, "sft", 1)
    assert "grape run prepare" in str(caught.value)


LONG = "Tell me in two or three plain words why the sky is blue on a clear day in June"


def test_rows_that_are_alike_are_shown_and_stay(project: Project) -> None:
    def turns(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": text}, HI]

    texts = [
        "Hello there",
        LONG,
        LONG.replace("June", "May"),
        "Hello there",
        "Something else is asked of you here",
        f"{LONG}! Well?",
    ]
    write_rows(
        project.root / "data/sft/train.jsonl",
        checked(
            [("here", {"id": str(n), "category": "any", "messages": turns(text)}) for n, text in enumerate(texts)], Demonstration
        ),
    )
    held = {"category": "any", "prompt": [{"role": "user", "content": LONG + " now"}]}
    write_rows(project.root / "data/prompts/test.jsonl", checked([("here", held)], PromptRow))
    (project.root / "reports/train").mkdir(parents=True)
    (project.root / "reports/train/prepare.jsonl").write_text(
        '{"step": 0, "rows/kept": 9, "dropped/leakage": 2.0, "dropped/duplicate": 0}\n'
    )
    found = preview(project, "sft", 0)
    assert found["duplicates"] == [{"row": 4, "as_row": 1}] and found["left_out_by_prepare"] == {"leakage": 2}
    assert [(one["row"], one["as_row"]) for one in found["near_duplicates"]] == [(3, 2)]
    assert [(one["row"], one["heldout_row"]) for one in found["near_heldout"]] == [(2, 1), (3, 1), (6, 1)]
    text = "\n".join(lines(found, "\u2588"))
    assert "1 rows say what another says\n  row 4 and row 1" in text and "prepare: leakage 2" in text and "\u2588" in text
    assert "\n".join(lines(found)).isascii()


def test_similarities_are_those_of_the_sets(project: Project) -> None:
    words = [str(n) for n in range(200)]
    a, b = " ".join(words), " ".join([*words[:180], *(f"x{n}" for n in range(20))])
    ((place, other, value),) = near.similar(["nothing like it", a, b, a])
    assert (place, other, value) == (2, 1, 178 / 218)  # 198 trigrams each, 178 of them in both
    ((place, question, value),) = near.overlapping(["x y", " ".join(words[:50])], ["a b c", " ".join(words[10:90])])
    assert (place, question, value) == (1, 1, 38 / 48)
    assert list(near.overlapping([], ["a"])) == [] == list(near.similar([]))
