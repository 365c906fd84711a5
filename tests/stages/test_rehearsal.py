"""A rehearsal of rl on projects that really have the fault it should find; and that the run after it is the run without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grape import needed
from grape import params as params_file
from grape.commands.rehearse import lines, of_kind
from grape.models.load import load_scalar_model, save_model
from grape.project import Project
from grape.rehearsal import findings, times
from grape.rehearsal.alike import alike, key
from grape.rehearsal.record import Rehearsal, Seen, kept
from grape.report.alarms import OUTSIDE, SAMPLER
from grape.reward.learned import STATISTICS
from tests.stages.test_stages import MINIATURE, run, strengthen

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ("arithmetic", "courtesy", "letters")
BRIEF = "verifier: length, options: {unit: characters, high: 3}"
ALWAYS = "verifier: length, options: {unit: characters, high: 1000}"
NEVER = "verifier: contains, options: {texts: [no tiny model writes this]}"
KNOBS = [
    "rl.algorithms=[grpo]",
    "rl.seeds=[0]",
    "reward.when=needed",
    "rl.max_new_tokens=32",
    "model.positions=128",
    "prepare.judgements=0",  # they are of items that these rubrics do not have
]


def judged_by(project: Project, *checks: str) -> None:
    """One item a category."""
    (project.root / "rubrics").mkdir(exist_ok=True)
    for category, check in zip(CATEGORIES, checks if len(checks) > 1 else checks * 3, strict=True):
        item = f"{{id: it, question: Is it so?, kind: verify, {check}}}"
        (project.root / f"rubrics/{category}.yaml").write_text(f"version: 1\ncategory: {category}\nitems:\n  - {item}\n")


def ending(project: Project, scale: float = -8.0) -> None:
    """Let the SFT model end its answers after a few tokens."""
    folder = project.root / "models/sft"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= scale
    model.save_pretrained(folder)


def endless(project: Project) -> None:
    """Take that away: EOS is one of many."""
    ending(project, 0.0)


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsed")


@pytest.fixture
def project(tmp_path: Path, _made: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """All that rl reads is there: a model that ends its answers, and rubrics of one verifier."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("grape", "algorithms"):
        (tmp_path / name).symlink_to(ROOT / name)
    here = Project(tmp_path)
    params_file.set_values(here.params, [*MINIATURE, *KNOBS])
    judged_by(here, BRIEF)
    needed.write(here, needed.unneeded(here))
    if not (_made / "models").exists():
        for kind in ("prepare", "base", "sft"):
            run(here, kind)
        strengthen(here)
        ending(here)
        for name in ("data", "models"):
            shutil.copytree(here.root / name, _made / name)
    for name in ("data", "models"):
        shutil.copytree(_made / name, here.root / name, dirs_exist_ok=True)
    return here


def rehearsed(project: Project, *sets: str) -> Rehearsal:
    params_file.set_values(project.params, sets)
    needed.write(project, needed.unneeded(project))
    (kind,) = alike(project)
    return of_kind(project, kind, kind.runs[0])


def levels(found: Rehearsal) -> dict[str, str]:
    return {reading.name: reading.level for reading in found.readings if reading.level != "fine"}


@pytest.fixture(scope="module")
def healthy() -> Seen:
    """What no limit says anything against."""
    return Seen(
        answers=32, cut=0.0, late=7.0, longest=45, flat=0.125, varies=True, reward=0.5, best=1.0, missing=0.0, reason="",
        sampler=0.0, outside=0.0, kept=24, dropped=0, tokens=100.0, samples=16.0,
        drawing=3.0, reading=1.0, learning=4.0, peak_mb=400.0,
    )  # fmt: skip


def test_a_healthy_project_passes_and_what_was_seen_is_kept(project: Project) -> None:
    found = rehearsed(project)
    assert levels(found) == {} and found.passed and found.runs == ("grpo-0",) and found.seen
    assert found.seen.answers == 2 * 4 * 4 and found.seen.cut == 0 and 0 < (found.seen.reward or 0) < 1
    assert found.seconds["grpo-0"] > 0 and kept(project, found.key) == found
    assert not any((project.root / "reports").rglob("rl*")), "it is no stage, and leaves no run"
    told = json.loads((project.state / "rehearsal" / f"{found.key}.json").read_text())
    assert told["passed"] and told["seen"]["answers"] == 32


def nan(project: Project) -> None:
    """A reward model whose numbers are none."""
    model, tokenizer = load_scalar_model(str(project.root / "models/sft"), True)
    with torch.no_grad():
        model.score.weight.fill_(torch.nan)
    save_model(model, tokenizer, project.root / "models/reward")
    (project.root / "models/reward" / STATISTICS).write_text('{"mean": 0.0, "std": 1.0}')


def unchanged(project: Project) -> None: ...


@pytest.mark.parametrize(
    ("fault", "sets", "expected", "sentence", "mend"),
    [
        (endless, ["rl.max_new_tokens=4"], {"answers cut": "stop"}, "were cut at rl.max_new_tokens", "raise rl.max_new_tokens"),
        (unchanged, ["rl.max_new_tokens=7"], {"length of 95 %": "look"}, "already come near", "raise rl.max_new_tokens"),
        (
            unchanged,
            ["rl.max_new_tokens=8", "model.positions=46"],
            {"longest row": "look"},
            "near model.positions",
            "raise model.p",
        ),
        (unchanged, ["model.positions=64"], {"prompts left out": "look"}, "are left out", "lower rl.max_new_tokens"),
        (lambda p: judged_by(p, NEVER), [], {"reward": "stop"}, "The reward is 0 for each of 32", "grape rubric try"),
        (
            lambda p: judged_by(p, ALWAYS),
            [],
            {"reward": "stop", "of the best reward": "look"},
            "hardly anything left to learn",
            "harder prompts",
        ),
        (
            lambda p: judged_by(p, NEVER, ALWAYS, NEVER),
            [],
            {"groups without signal": "stop"},
            "In 100% of the groups all answers have the same",
            "raise rl.samples",
        ),
        (nan, ["rl.reward=reward_model"], {"scores missing": "stop"}, "100% of a round's scores are missing", "is not finite"),
        (unchanged, ["rl.prompts=25"], {"two rounds": "stop"}, "a round takes 25 prompts", "lower rl.prompts"),
        (
            unchanged,
            ["model.width=4096", "model.layers=48", "model.heads=32"],
            {"memory, estimated": "stop"},
            "MiB at its peak, as is estimated",
            "grape doctor --fit",
        ),
    ],
)
def test_each_fault_is_found_with_the_knob_that_mends_it(
    project: Project, fault: Callable[[Project], None], sets: list[str], expected: dict[str, str], sentence: str, mend: str
) -> None:
    fault(project)
    found = rehearsed(project, *sets)
    told = "\n".join(found.lines())
    assert expected.items() <= levels(found).items() and sentence in told and mend in told.partition(sentence)[2]
    assert set(levels(found)) - set(expected) <= {"groups without signal", "length of 95 %", "answers cut"}, told
    assert found.passed == ("stop" not in expected.values())
    if not found.passed:
        refusal = str(found.refusal())
        assert "rehearsal of grpo-0" in refusal and "`--no-rehearsal` goes on regardless" in refusal


@pytest.mark.parametrize(("sampler", "outside"), [(SAMPLER * 1.1, 0.0), (0.0, OUTSIDE * 1.1)])
def test_another_sampler_than_trainer_is_told_unless_it_is_weighed(
    project: Project, healthy: Seen, sampler: float, outside: float
) -> None:
    off = replace(healthy, sampler=sampler, outside=outside)
    params = params_file.load(project.params)
    told = [reading for reading in findings.readings(off, params, True) if reading.level != "fine"]
    assert [reading.name for reading in told] == ["sampler from trainer"] and "set rl.importance" in told[0].mend
    weighed = params_file.set_values(project.params, ["rl.importance=token"])
    assert all(reading.level == "fine" for reading in findings.readings(off, weighed, True))


def test_groups_without_signal_stop_only_what_compares_answers_of_a_group(project: Project, healthy: Seen) -> None:
    flat, params = replace(healthy, flat=1.0), params_file.load(project.params)
    for compares, level in ((True, "stop"), (False, "look")):
        assert [r.level for r in findings.readings(flat, params, compares) if r.name == "groups without signal"] == [level]


def test_the_run_after_a_rehearsal_is_the_run_without_bit_for_bit(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> tuple[bytes, list[dict[str, float]]]:
        run(project, "rl", "grpo", 0)
        lines = (project.root / "reports/train/rl/grpo-0.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(line).items() if k not in ("step_time", "memory/peak_mb")} for line in lines]
        return (project.root / "models/policy/grpo-0/model.safetensors").read_bytes(), rows

    without = trained()
    shutil.rmtree(project.root / "models/policy")
    shutil.rmtree(project.state)
    before = (project.root / "models/sft/model.safetensors").read_bytes()
    monkeypatch.setattr("grape.stages.rehearsal.ROUNDS", 1)
    found = rehearsed(project)
    assert trained() == without and (project.root / "models/sft/model.safetensors").read_bytes() == before
    assert found.seen and found.seen.reward == without[1][0]["reward"], "its first round is the run's own"
    assert found.seen.flat == without[1][0]["frac_reward_zero_std"]


def test_one_rehearsal_stands_for_all_that_draw_and_score_alike(project: Project) -> None:
    names = "rl.algorithms=[grpo, dpo, trpo, reinforce, grape]"
    judged = ["algorithms.trpo.rounds=1", "algorithms.reinforce.reward=reward_model", "algorithms.grape.revise=0.5"]
    params_file.set_values(project.params, [names, "rl.seeds=[0, 3]", *judged])
    needed.write(project, needed.unneeded(project))
    kinds = alike(project)
    assert [kind.runs for kind in kinds] == [
        ("grpo-0", "grpo-3", "trpo-0", "trpo-3"),
        ("reinforce-0", "reinforce-3"),
        ("grape-0", "grape-3"),
    ]
    keys = [key(project, kind, run) for kind in kinds for run in kind.runs]
    assert keys[0] == keys[1] == keys[2] == keys[3] and keys[4] == keys[5] and len(set(keys)) == 3


def test_what_learns_from_pairs_alone_has_nothing_to_rehearse(project: Project) -> None:
    params_file.set_values(project.params, ["rl.algorithms=[dpo]"])
    assert alike(project) == [] and lines([]) == [
        "nothing to rehearse: no algorithm of rl.algorithms samples, all learn from pairs"
    ]


def test_a_rehearsal_is_known_again_by_what_it_depends_on(project: Project) -> None:
    def known() -> str:
        needed.write(project, needed.unneeded(project))
        (kind,) = alike(project)
        return key(project, kind, "grpo-0")

    first = known()
    params_file.set_values(project.params, ["rl.learning_rate=0.5", "algorithms.grpo.beta=0.1"])
    assert known() == first, "what decides how is learned changes nothing that is seen"
    keys = [first]
    for change in ("rl.samples=5", "rl.temperature=0.5", "rl.algorithms=[grpo, grape]", "algorithms.grpo.resample=1"):
        params_file.set_values(project.params, [change])
        needed.write(project, needed.unneeded(project))
        keys.append(key(project, alike(project)[0], "grpo-0"))
    judged_by(project, NEVER)
    keys.append(key(project, alike(project)[0], "grpo-0"))
    with (project.root / "data/prompts/train.jsonl").open("a") as file:
        file.write("\n")
    keys.append(key(project, alike(project)[0], "grpo-0"))
    assert len(set(keys)) == len(keys)


def test_times_follow_what_an_algorithm_does_with_a_round(project: Project, healthy: Seen) -> None:
    names = ["reinforce", "grpo", "ppo", "trpo"]
    sets = [f"rl.algorithms=[{', '.join(names)}]", "rl.kl_every=0", "algorithms.trpo.rounds=1", "algorithms.grpo.mini_batches=2"]
    params = params_file.set_values(project.params, sets)
    took = {name: times.seconds(params, name, healthy) for name in names}
    assert took["reinforce"] == 3 * (3.0 + 4.0), "drawn and scored, learned from"
    assert took["grpo"] == 3 * (3.0 + 1.0 + 4.0), "and read by the old policy"
    assert took["trpo"] > took["ppo"] > took["grpo"]
    more = params_file.set_values(project.params, ["rl.kl_every=1"])
    assert times.seconds(more, "reinforce", healthy) == 3 * (3.0 + 2.0 + 4.0), "and by old policy and reference"


@pytest.mark.parametrize(("budget", "rounds"), [("samples: 33", 3), ("tokens: 1000", 10), ("seconds: 41", 6), ("updates: 8", 4)])
def test_times_end_where_the_budget_is_used_up(project: Project, healthy: Seen, budget: str, rounds: int) -> None:
    sets = ["rl.algorithms=[grpo]", "rl.kl_every=0", "algorithms.grpo.mini_batches=2", f"rl.budget={{{budget}}}"]
    assert times.seconds(params_file.set_values(project.params, sets), "grpo", healthy) == rounds * (3.0 + 1.0 + 4.0)
