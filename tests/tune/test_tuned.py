"""`inputs/tuned.yaml`, and what `grape run compare --tuned` makes of it or refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from grape import tuned
from grape.commands import tune
from grape.errors import GrapeError
from grape.params import edited
from grape.project import Project
from grape.slot import SFT
from grape.tune.trial import evaluation
from grape.tuned import Spread, Tuned
from tests.report.conftest import evaluation as evaluated

KNOBS: dict[str, dict[str, tuned.Value]] = {
    "grpo": {"learning_rate": 1e-05, "clip_high": 0.3, "advantage": "leave_one_out"},
    "dpo": {"beta": 0.2, "sft": 0.0},
    SFT: {"learning_rate": 0.002, "weight_decay": 0.1},
}


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Project:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path / name)
    shutil.copytree(root / "rubrics", tmp_path / "rubrics")
    return Project(tmp_path)


def entry(project: Project, name: str, **more: Any) -> Tuned:
    scores = [0.2, 0.4, 0.3]
    values: dict[str, Any] = {
        "knobs": KNOBS[name],
        "judge": "gold",
        "spread": Spread.of(scores),
        "present": 0.2,
        "complete": 3,
        "pruned": 1,
        "failed": 0,
        "scores": scores,
        "share": 0.25,
        "steps": 12,
        "seeds": [1000],
        "made_for": tuned.surroundings(project),
    }
    return Tuned(**{**values, **more})


@pytest.fixture
def write(project: Project) -> Callable[..., None]:
    """Writes the file; `dpo` and `grpo` change what stands of the two."""

    def made(dpo: dict[str, Any] | None = None, grpo: dict[str, Any] | None = None) -> None:
        tuned.write(project.root, {"dpo": entry(project, "dpo", **dpo or {}), "grpo": entry(project, "grpo", **grpo or {})})

    return made


def test_what_was_written_is_read_back(project: Project) -> None:
    found = {"dpo": entry(project, "dpo"), "grpo": entry(project, "grpo", present=None)}
    tuned.write(project.root, found)
    assert tuned.read(project.root) == found
    text = (project.root / tuned.FILE).read_text()
    assert YAML(typ="safe").load(text)["algorithms"]["grpo"]["knobs"] == KNOBS["grpo"]


def test_the_card_is_empty_and_never_written_over(project: Project) -> None:
    tuned.card(project.root)
    assert tuned.read(project.root) == {}
    tuned.write(project.root, {"dpo": entry(project, "dpo")})
    tuned.card(project.root)
    assert tuned.read(project.root).keys() == {"dpo"}


def test_the_spread_by_hand() -> None:
    assert Spread.of([0.4, 0.1, 0.2, 0.3, 0.5]) == Spread(best=0.5, median=0.3, low=0.2, high=0.4, worst=0.1)
    assert Spread.of([0.3]) == Spread(best=0.3, median=0.3, low=0.3, high=0.3, worst=0.3)


@pytest.mark.parametrize(
    "text", ["algorithms: [grpo]\n", "algorithms:\n  grpo: {knobs: {}}\n", "algorithms:\n  grpo: 3\n", "a: [\n"]
)
def test_a_file_that_is_not_what_grape_writes(project: Project, text: str) -> None:
    (project.root / "inputs").mkdir()
    (project.root / tuned.FILE).write_text(text)
    with pytest.raises(GrapeError) as refusal:
        tuned.read(project.root)
    assert "tuned.yaml" in str(refusal.value)


def test_a_score_that_is_no_number_is_refused(project: Project) -> None:
    with pytest.raises(ValueError, match="finite"):
        entry(project, "grpo", present=float("nan"))


def test_nan_in_an_evaluation_is_told_by_its_place(tmp_path: Path) -> None:
    made = evaluated("grpo", 0, gold=True)
    made["policy"]["gold"]["mean"] = float("nan")
    (tmp_path / "metrics.json").write_text(json.dumps(made))
    with pytest.raises(GrapeError, match="policy.gold.mean"):
        evaluation(tmp_path / "metrics.json")


# ---- compare --tuned


def values(project: Project, *given: Any) -> dict[str, Any]:
    """What params.yaml says with these assignments."""
    params = edited(project.params, tune.assignments(project, *given)[0])[1]
    return {"algorithms": params.rl.algorithms, "seeds": params.rl.seeds, "knobs": params.algorithms, "steps": params.rl.steps}


def test_compare_trains_the_best_at_the_whole_budget_with_fresh_seeds(project: Project, write: Callable[..., None]) -> None:
    write()
    before = edited(project.params, [])[1]
    found = values(project, None, None)
    assert (found["algorithms"], found["seeds"]) == (["dpo", "grpo"], [0, 1, 2, 3, 4])
    assert found["steps"] == before.rl.steps
    for name, knobs in ((name, KNOBS[name]) for name in ("dpo", "grpo")):
        assert found["knobs"][name] == {**(before.algorithms[name] or {}), **knobs}, "what was not tuned stays"
    assert found["knobs"]["ppo"] == before.algorithms["ppo"]


def test_what_stands_there_already_is_not_written_out(project: Project, write: Callable[..., None]) -> None:
    """A run that the knob's default has trained is found again."""
    before = edited(project.params, [])[1]
    write(grpo={"knobs": {"learning_rate": before.rl.learning_rate, "clip_high": 0.3, "advantage": "group"}})
    assert (before.algorithm("grpo").learning_rate, before.algorithm("grpo").advantage) == (None, "group")
    assert values(project, None, None)["knobs"]["grpo"] == {**(before.algorithms["grpo"] or {}), "clip_high": 0.3}


def test_seeds_of_the_trials_are_not_used_again(project: Project, write: Callable[..., None]) -> None:
    write(dpo={"seeds": [0, 3]}, grpo={"seeds": [0, 3]})
    assert values(project, None, None)["seeds"] == [1, 2, 4]
    with pytest.raises(GrapeError, match="the trials had seed 3"):
        tune.assignments(project, None, "3,4")
    assert values(project, None, "5,6")["seeds"] == [5, 6]


def test_one_algorithm_alone_is_said_to_be(project: Project, write: Callable[..., None]) -> None:
    write()
    words = tune.assignments(project, "grpo", None)[1]
    assert any("grpo alone" in line for line in words)
    assert not any("alone" in line for line in tune.assignments(project, "grpo,dpo", None)[1])


def test_what_was_found_for_sft_is_not_compared(project: Project, write: Callable[..., None]) -> None:
    """The others were tuned from the SFT model as it is."""
    tuned.write(project.root, {SFT: entry(project, SFT, steps=15)})
    with pytest.raises(GrapeError, match="nothing but SFT was tuned yet"):
        tune.assignments(project, None, None)
    tuned.write(project.root, {name: entry(project, name) for name in KNOBS})
    assert values(project, None, None)["algorithms"] == ["dpo", "grpo"]
    assert not any(line.startswith("sft.") for line in tune.assignments(project, None, None)[0])
    with pytest.raises(GrapeError, match="sft stands in no slot"):
        tune.assignments(project, "sft,grpo", None)
    with pytest.raises(GrapeError, match="not tuned: ppo") as refusal:
        tune.assignments(project, "ppo", None)
    assert refusal.value.mend is not None and refusal.value.mend.endswith("--algorithms dpo,grpo"), "which it then takes"


def test_sft_is_taken_before_the_others_are_tuned(project: Project) -> None:
    told = list(tune.lines({SFT: entry(project, SFT)}))[-1]
    assert "--set sft.learning_rate=0.002 --set sft.weight_decay=0.1" in told and "compare" not in told
    best = entry(project, SFT, present=0.4)
    assert "--set" not in list(tune.lines({SFT: best}))[-1], "nothing to take"
    both = {SFT: entry(project, SFT), "dpo": entry(project, "dpo")}
    assert list(tune.lines(both))[-1].endswith("only then tune dpo again, which start from it")
    assert list(tune.lines(both | {SFT: best}))[-1] == "next: grape run compare --tuned"
    assert list(tune.lines({"dpo": entry(project, "dpo")}))[-1] == "next: grape run compare --tuned"


@pytest.mark.parametrize(
    ("dpo", "said"),
    [
        ({"complete": 1, "pruned": 0}, "trials: 1"),
        ({"share": 0.5}, "share of the budget"),
        ({"steps": 24}, "rounds"),
        ({"seeds": [1000, 1001]}, "seeds"),
    ],
)
def test_unequal_chances_are_refused(project: Project, write: Callable[..., None], dpo: dict[str, Any], said: str) -> None:
    write(dpo=dpo)
    with pytest.raises(GrapeError, match="no equal chance") as refusal:
        tune.assignments(project, None, None)
    assert said in str(refusal.value) and "grape tune --algorithms dpo,grpo" in str(refusal.value)
    tune.assignments(project, "dpo", None)


def test_an_algorithm_that_was_not_tuned(project: Project, write: Callable[..., None]) -> None:
    write()
    with pytest.raises(GrapeError, match="not tuned: ppo, trpo"):
        tune.assignments(project, "ppo,grpo,trpo", None)
    with pytest.raises(GrapeError, match="unknown algorithm"):
        tune.assignments(project, "grop", None)


def test_nothing_was_tuned(project: Project) -> None:
    with pytest.raises(GrapeError, match="nothing was tuned yet"):
        tune.assignments(project, None, None)


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("model.layers=2", "model"),
        ("prepare.validation=80", "prepare"),
        ("sft.steps=1", "sft"),
        ("rl.steps=96", "rl"),
        ("seed=1", "seed"),
    ],
)
def test_settings_for_another_project_are_refused(project: Project, write: Callable[..., None], key: str, section: str) -> None:
    write()
    project.params.write_text(edited(project.params, [key])[0])
    with pytest.raises(GrapeError) as refusal:
        tune.assignments(project, None, None)
    assert f"params.yaml, {section}" in str(refusal.value)
    others = {name for name in tuned.SECTIONS if name != section}
    assert not any(f"params.yaml, {name};" in f"{refusal.value.what};" for name in others)


def test_rubrics_that_changed_are_told(project: Project, write: Callable[..., None]) -> None:
    write()
    with (project.root / "rubrics" / "courtesy.yaml").open("a") as file:
        file.write("# another\n")
    with pytest.raises(GrapeError, match="rubrics"):
        tune.assignments(project, None, None)


def test_what_a_trial_sets_is_no_other_project(project: Project, write: Callable[..., None]) -> None:
    write()
    for change in (
        "rl.seeds=[7]",
        "rl.algorithms=[grpo]",
        "rl.validate_every=3",
        "algorithms.grpo.clip_high=0.25",
        "report.samples=1",
    ):
        project.params.write_text(edited(project.params, [change])[0])
    tune.assignments(project, None, None)


@pytest.mark.parametrize("given", ["rl.steps=10", "algorithms.grpo.beta=0.5", "model.layers=2"])
def test_what_the_tuning_settled_is_not_set_beside_it(project: Project, write: Callable[..., None], given: str) -> None:
    write()
    with pytest.raises(GrapeError, match="is what the tuning settled"):
        tune.assignments(project, None, None, [given])
    tune.assignments(project, None, None, ["report.samples=1"])


def test_the_table_says_best_first(project: Project) -> None:
    found = {"dpo": entry(project, "dpo"), "grpo": entry(project, "grpo", spread=Spread.of([0.1, 0.9]))}
    told = list(tune.lines(found))
    assert [line.split()[0] for line in told[:3]] == ["algorithm", "grpo", "dpo"]
    assert told[2].split() == ["dpo", "4", "0.400", "0.200", "0.300", "0.250-0.350", "0.200", "1", "0"]
