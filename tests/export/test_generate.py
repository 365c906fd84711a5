"""`grape generate`: the answers of grape's own sampling to the prompts of a file, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grape import params as params_file
from grape.cli import app
from grape.commands.generate import Draws, generate
from grape.errors import GrapeError
from grape.files import write_lines
from grape.models.chat import Chat
from grape.models.load import load_language_model
from grape.project import Project
from grape.sampling import sample
from grape.types import Prompt

ASKED = ["What is 3 + 5?", "Write a in capitals.", "Zé"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "asked.jsonl"
    write_lines(place, [{"id": f"q{i}", "question": text, "answer": "#### 8"} for i, text in enumerate(ASKED)])
    return place


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_its_draws_are_those_of_grapes_sampling(whole: Project, file: Path, tmp_path: Path, say: Any, said: list[str]) -> None:
    """Keyed by the prompt, so that a file with fewer prompts gets the same answers to these."""
    generate(whole, file, "sft", tmp_path / "out.jsonl", Draws(3, 0.7, 9), say)
    found = rows(tmp_path / "out.jsonl")
    model, tokenizer = load_language_model(str(whole.root / "models/sft"))
    chat = Chat(tokenizer, params_file.load(whole.params).model.template, model)
    prompts = [Prompt(f"q{i}", "any", ({"role": "user", "content": text},)) for i, text in enumerate(ASKED)]
    own = sample(model, chat, prompts, 3, temperature=0.7, max_new_tokens=9, positions=128, keys=(0, "generate"))
    assert [answer for row in found for answer in row["answers"]] == [r.text for r in own]
    assert [n for row in found for n in row["tokens"]] == [len(r.ids) for r in own]
    assert [done for row in found for done in row["finished"]] == [r.finished for r in own] and "answers were cut" in said[-1]
    assert [(row["id"], row["prompt"][0]["content"], row["reference"]) for row in found] == [
        (f"q{i}", text, "8") for i, text in enumerate(ASKED)
    ]
    (tmp_path / "one.csv").write_text("id,prompt\nq2,Zé\n")
    generate(whole, tmp_path / "one.csv", "sft", tmp_path / "one.jsonl", Draws(3, 0.7, 9), say)
    assert rows(tmp_path / "one.jsonl")[0]["answers"] == found[2]["answers"]


def test_on_standard_output_stands_nothing_else(whole: Project, file: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(file), "--stage", "base"])
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["id"] for row in found] == ["q0", "q1", "q2"] and all(len(row["answers"]) == 1 for row in found)
    assert "3 prompts, 1 answers each" in result.stderr


def test_prompts_that_do_not_fit_are_counted_or_refused(project: Project, tmp_path: Path, say: Any, said: list[str]) -> None:
    file, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    write_lines(file, [{"prompt": "short"}, {"id": "long", "prompt": "x" * 200}])
    generate(project, file, "sft", out, Draws(), say)
    assert [row["prompt"][0]["content"] for row in rows(out)] == ["short"]
    assert any(line.startswith("1 of 2 prompts are longer") and line.endswith("long") for line in said)
    out.unlink()
    params_file.set_values(project.params, ["model.too_long=refuse"])
    with pytest.raises(GrapeError, match="1 of 2 prompts are longer") as caught:
        generate(project, file, "sft", out, Draws(), say)
    assert "long" in str(caught.value.where) and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{file}", "--samples", "2", "--temperature", "0"], "all answers to a prompt are the same"),
        (["{file}", "--max-new-tokens", "128"], "leave no room for a prompt"),
        (["{file}", "--stage", "reward"], "no stage 'reward' with a model"),
        (["{file}", "--stage", "rl@ppo-1"], "rl@ppo-1 has not run"),
        (["{file}", "--out", "{file}"], "would take the place of their prompts"),
        (["{file}", "--out", "data/out.jsonl"], "data/ is the pipeline's own"),
        (["nowhere.jsonl"], "no such file"),
        (["{other}"], "name the columns so: prompt"),
    ],
)
def test_what_cannot_be_answered_is_refused(whole: Project, file: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_lines(tmp_path / "other.jsonl", [{"task": "a"}])
    before = file.read_bytes()
    words = [word.replace("{file}", str(file)).replace("{other}", str(tmp_path / "other.jsonl")) for word in arguments]
    result = CliRunner().invoke(app, ["generate", *(words if "--stage" in words else [*words, "--stage", "sft"])])
    assert result.exit_code == 2 and message in result.stderr and result.stdout == "", result.output
    assert file.read_bytes() == before and not (whole.root / "data/out.jsonl").exists()
