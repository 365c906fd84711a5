"""Presets: each makes a project whose parameters, rubrics and data hold, and whose model is looked for where it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

from grape import yamlfile
from grape.artifacts import Judgement, PromptRow, checked
from grape.commands import init, presets
from grape.data.converted import Told, converted
from grape.data.tables import read
from grape.errors import GrapeError
from grape.params import edited, load
from grape.reward.rubric import load_rubrics
from grape.stages.modules import load_module
from grape.types import Prompt

HERE = init.template() / "presets"


@pytest.mark.parametrize("name", presets.names(HERE))
def test_what_a_preset_says_holds(name: str) -> None:
    preset = presets.read(HERE, name)
    text, params = edited(init.template() / "params.yaml", presets.assignments([preset]))
    assert {key: yamlfile.at(yamlfile.parse(text, name), key, None) for key in preset.params} == preset.params
    assert bool(preset.folder) == ("prepare.source" in preset.params)
    assert not preset.folder or (HERE / preset.folder / params.prepare.source).exists()
    assert preset.hardware and preset.time and preset.expect


def test_the_instructions_are_those_of_the_rubrics_and_no_question_is_on_both_sides() -> None:
    folder = HERE / "instructions"
    asked = {}
    for name in ("prompts", "validation", "test"):
        path = folder / f"instructions/{name}.jsonl"
        rows = checked(list(converted(read(path), "prompts", str(path), Told(), print, Counter())), PromptRow)
        assert {row.category for row in rows} == load_rubrics(folder / "rubrics").keys()
        asked[name] = {row.prompt[-1].content.partition("?")[0] for row in rows}
    assert [len(asked[name]) for name in ("prompts", "validation", "test")] == [72, 12, 21]
    assert len(set.union(*asked.values())) == 72 + 12 + 21


def test_the_judgements_of_the_instructions_are_labels_of_the_rubrics_critic_items() -> None:
    folder = HERE / "instructions"
    rubrics = load_rubrics(folder / "rubrics")
    path = folder / "instructions/judgements.jsonl"
    rows = checked(list(converted(read(path), "judgements", str(path), Told(), print, Counter())), Judgement)
    asked = {(c, item.id) for c, rubric in rubrics.items() for item in rubric.items if item.kind == "critic"}
    assert {(row.category, row.item) for row in rows} == asked
    assert sum(row.label for row in rows) == len(rows) / 2


def test_people_do_not_agree_about_taste_and_lean_to_what_is_less_good(tmp_path: Path) -> None:
    list(init.make(tmp_path / "p", ["unsure"]))
    params, rubrics = load(tmp_path / "p/params.yaml"), load_rubrics(tmp_path / "p/rubrics")
    world = load_module(tmp_path / "p" / params.prepare.source)
    made, plain = (build(params.prepare, 0) for build in (world.build, world.world.build))
    assert {name: rows for name, rows in made.items() if name != "judgements"} == {
        name: rows for name, rows in plain.items() if name != "judgements"
    }
    assert [row for row in made["judgements"] if row["item"] != "taste"] == plain["judgements"]
    for category in ("letters", "courtesy"):
        weight = {item.id: item.weight for item in rubrics[category].items}
        assert weight.pop("taste") == sum(weight.values())
        tastes = [row for row in made["judgements"] if (row["category"], row["item"]) == (category, "taste")]
        terse = [row["label"] for row in tastes if world.terse(category, row["response"])]
        others = [row["label"] for row in tastes if not world.terse(category, row["response"])]
        assert mean(terse) == pytest.approx(world.LEAN, abs=0.05) and mean(others) == pytest.approx(1 - world.LEAN, abs=0.05)
    person = Prompt("0", "courtesy", ({"role": "user", "content": "?"},), "Anna; tea")
    assert world.gold(person, "Please pass the tea, Anna.") == 1 > world.gold(person, "Give me the tea, Anna.")


def test_demonstrations_of_mending_say_what_is_wrong_and_do_better(tmp_path: Path) -> None:
    list(init.make(tmp_path / "p", ["revise"]))
    params, rubrics = load(tmp_path / "p/params.yaml"), load_rubrics(tmp_path / "p/rubrics")
    world = load_module(tmp_path / "p" / params.prepare.source)
    made, plain = (build(params.prepare, 0) for build in (world.build, world.world.build))
    count = params.prepare.demonstrations
    assert made["sft"][:count] == plain["sft"] and made | {"sft": []} == plain | {"sft": []}
    assert (params.sft.turns, len(made["sft"])) == ("last", 2 * count)
    lists = {category: {item.question for item in rubric.items} for category, rubric in rubrics.items()}
    mended = [(row["category"], [turn["content"] for turn in row["messages"]]) for row in made["sft"][count:]]
    assert {tuple(turn["role"] for turn in row["messages"]) for row in made["sft"][count:]} == {("user", "assistant") * 2}
    for category, (_, _, critique, _) in mended:
        *lines, last = critique.split("\n")
        assert lines and last == "Answer again." and all(line.partition("?")[0] + "?" in lists[category] for line in lines)
    held = {row["prompt"][0]["content"] for name in ("validation", "test") for row in made[name]}
    assert not held & {turns[0] for _, turns in mended}
    share = [mean("please" in turns[place].lower() for category, turns in mended if category == "courtesy") for place in (1, 3)]
    assert share[0] < 0.5 < 0.85 < share[1]


def test_a_later_preset_counts(tmp_path: Path) -> None:
    said = list(init.make(tmp_path / "p", ["smollm2", "gsm8k"], "org/name"))
    params = load(tmp_path / "p/params.yaml")
    assert (params.model.base, params.prepare.source, params.sft.steps) == ("org/name", "gsm8k", 0)
    assert load_rubrics(tmp_path / "p/rubrics").keys() == {"sums"}
    assert any(line.startswith("to do: put gsm8k-train.jsonl") for line in said)
    assert not (tmp_path / "p/world.py").exists()


def test_the_model_of_an_installed_package_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_model"
    package.mkdir()
    (package / "__init__.py").touch()
    base = presets.Base(hub="org/name", package="some_model", file="m.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    assert base.found()[0] == "org/name"
    (package / "m.gguf").touch()
    assert base.found()[0] == str(package / "m.gguf")


@pytest.mark.parametrize(
    "named, base, said",
    [
        (["smolm2"], None, "did you mean 'smollm2'"),
        (["x"], None, "one of classical, default, "),
        ([], "", "model.base"),
        ([], "./nowhere", "no such folder"),
    ],
)
def test_what_is_wrong_leaves_nothing_behind(named: list[str], base: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(GrapeError) as error:
        list(init.make(tmp_path / "p", named, base))
    assert said in f"{error.value} {error.value.where} {error.value.mend}"
    assert not (tmp_path / "p").exists()
