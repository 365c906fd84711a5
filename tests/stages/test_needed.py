"""Stages that nobody needs: who reads what, the cards that say so, what a stage that is left out leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grape import dvc, needed
from grape import params as params_file
from grape.commands.chat import model_folder
from grape.commands.rubrics import attempt
from grape.dvc import Graph
from grape.errors import GrapeError
from grape.pipeline import closing, plan
from grape.pipeline.execute import Outcome
from grape.project import NONCE, Project
from grape.stages.__main__ import main
from grape.stages.inputs import entry
from tests.odd_inputs.own_data import FILES, line, question

ROOT = Path(__file__).resolve().parents[2]
VERIFY = "version: 1\ncategory: sums\nitems:\n  - {id: right, question: Is it right?, kind: verify, verifier: numeric}\n"
CRITIC = VERIFY + "  - {id: kind, question: Is it kind?, kind: critic}\n"
LEARNED = VERIFY + "  - {id: liked, question: Is it liked?, kind: reward_model}\n"
SPARE = "reward.when=needed"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Sums of one's own, which a verifier judges."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "inputs", tmp_path / "inputs")
    for folder in ("rubrics", "mine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rubrics" / "sums.yaml").write_text(VERIFY)
    for name in ("prompts", "validation", "test", "corpus"):
        (tmp_path / "mine" / f"{name}.jsonl").write_bytes(FILES[f"{name}.jsonl"])
    (tmp_path / "algorithms").symlink_to(ROOT / "algorithms")
    (tmp_path / "grape").symlink_to(ROOT / "grape")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(NONCE, "1")  # as under `grape run`, which tells MLflow itself
    params_file.set_values(tmp_path / "params.yaml", ["prepare.source=mine", "rl.algorithms=[grpo]"])
    return Project(tmp_path)


def settle(project: Project, *sets: str) -> dict[str, str]:
    """As a run does before it looks: the knobs set, the cards true. Stage -> why it is left out."""
    params_file.set_values(project.params, sets)
    reasons = needed.unneeded(project)
    needed.write(project, reasons)
    return reasons


ALL = {"critic", "preferences", "reward"}
PAIRED = {"preferences", "reward"}


@pytest.mark.parametrize(
    ("rubric", "sets", "left"),
    [
        (CRITIC, [], set()),
        (VERIFY, [], {"critic"}),
        (VERIFY, [SPARE], ALL),
        (CRITIC, [SPARE], PAIRED),
        (VERIFY, [SPARE, "rl.algorithms=[grpo, dpo]"], {"critic", "reward"}),
        (VERIFY, [SPARE, "rl.algorithms=[ppo]"], {"critic"}),  # its value model begins as the reward model
        (VERIFY, [SPARE, "rl.algorithms=[ppo]", "algorithms.ppo.value_init=policy"], ALL),
        (VERIFY, [SPARE, "rl.algorithms=[ppo]", "algorithms.ppo.value=head"], ALL),
        (VERIFY, [SPARE, "algorithms.ppo.value_init=reward_model"], ALL),  # a knob of an algorithm that does not run
        (VERIFY, [SPARE, "algorithms.grpo.reward=reward_model"], {"critic"}),
        (VERIFY, [SPARE, "rl.reward=reward_model"], {"critic"}),
        (VERIFY, [SPARE, "rl.reward=reward_model", "algorithms.grpo.reward=rubric"], {"critic"}),  # evaluate reads it
        (CRITIC, [SPARE, "rl.reward=reward_model"], set()),  # the critic judges the pairs
        (CRITIC, [SPARE, "rl.reward=reward_model", "preferences.source=people"], {"critic"}),
        (CRITIC, [SPARE, "rl.reward=reward_model", "preferences.source=people", "algorithms.grpo.reward=rubric"], set()),
        (LEARNED, [SPARE], {"critic"}),
        (LEARNED, [SPARE, "preferences.source=people", "rl.reward=reward_model"], {"critic"}),
        (VERIFY, [SPARE, "preferences.source=critic"], ALL),  # read by nobody, so there is nothing to refuse
        (CRITIC, [SPARE, "rl.algorithms=[rloo]", "algorithms.rloo.use=algorithms.rloo:ALGORITHM"], PAIRED),
    ],
)
def test_what_nobody_reads_is_left_out(project: Project, rubric: str, sets: list[str], left: set[str]) -> None:
    (project.root / "rubrics" / "sums.yaml").write_text(rubric)
    params = params_file.edited(project.params, sets)[1]
    assert set(needed.answered(params, project.root).unneeded) == left


def test_critics_pairs_without_a_critic_item_are_refused(project: Project) -> None:
    with pytest.raises(GrapeError, match="no rubric has an item for a critic"):
        settle(project, "preferences.source=critic")


def test_a_card_changes_with_the_answer_and_at_no_other_time(project: Project) -> None:
    def cards() -> dict[str, str]:
        return {stage: (project.root / "inputs" / stage).read_text() for stage in needed.REASONS}

    reasons = settle(project, SPARE)
    assert set(reasons) == ALL and all(cards()[stage] == f"# The stage {stage} is not needed: {why}. grape keeps this true.\n"
                                       for stage, why in reasons.items())  # fmt: skip
    before = cards()
    settle(project, "rl.algorithms=[grpo, reinforce]")
    assert cards() == before and not needed.write(project, needed.unneeded(project))
    settle(project, "rl.algorithms=[grpo, reinforce, dpo]")
    assert {stage for stage in ALL if cards()[stage] != before[stage]} == {"preferences"}
    (project.root / "rubrics" / "sums.yaml").write_text(LEARNED)  # seen, though params.yaml is as it was
    assert set(needed.unneeded(project)) == {"critic"}
    (project.state / "needed.json").write_bytes(b"\0torn")
    assert set(needed.unneeded(project)) == {"critic"}
    (project.root / "inputs" / "reward").unlink()
    assert needed.write(project, needed.unneeded(project)) and cards()["reward"] == needed.card("reward", ())


def test_an_untrue_card_is_refused_when_a_stage_is_run_by_hand(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    settle(project, SPARE)
    params_file.set_values(project.params, ["rl.algorithms=[dpo]"])
    needed.unneeded(project)  # known, and the card is not yet written
    assert main(["preferences"]) == 2
    shown = capfd.readouterr().err
    assert "inputs/preferences does not say whether preferences is needed now" in shown and "grape plan" in shown
    assert not (project.root / "data").exists()
    project.params.write_text(project.params.read_text().replace("when: needed", "when: neded"))
    assert main(["preferences"]) == 2 and "reward.when" in capfd.readouterr().err


def test_a_stage_that_is_left_out_says_why_and_loads_nothing(project: Project) -> None:
    reasons = settle(project, SPARE)
    code = "import sys; from grape.stages.__main__ import main; code = main([sys.argv[1]]); "
    code += "assert not {'torch', 'transformers', 'mlflow', 'pydantic'} & set(sys.modules); sys.exit(code)"
    for stage, reason in reasons.items():
        shown = subprocess.run([sys.executable, "-c", code, stage], check=True, capture_output=True, text=True).stdout
        assert shown == f"{stage}: not needed: {reason}\n"
        folder = project.root / ("data/preferences" if stage == "preferences" else f"models/{stage}")
        assert [path.name for path in folder.iterdir()] == [needed.NOTE] and needed.why_not(folder) == reason
        record = json.loads((project.root / f"reports/train/{stage}.jsonl").read_text())
        assert record == {"step": 0, "not_needed": reason}
        receipt = json.loads(project.receipt(stage).read_text())
        assert receipt["facts"] == {"grape.not_needed": reason} and not receipt["headline"]
        assert receipt["params"]["model.positions"] == 256
        graph = Graph({stage: ()})
        table = list(closing.table(graph, {stage: Outcome(stage, "ran", 1.0)}, {stage: receipt}))
        assert table[1].endswith(f"not needed: {reason}")
    readers_refuse(project, reasons)


def readers_refuse(project: Project, reasons: dict[str, str]) -> None:
    """Whoever meets what was left out says why it is not there."""
    with pytest.raises(GrapeError, match=reasons["critic"]):
        model_folder(project, "critic")
    (project.root / "rubrics" / "sums.yaml").write_text(CRITIC)
    found = attempt(project, "sums", "What is 1 + 1?", "2", "2")
    assert found["reward"] == 1.0 and reasons["critic"] in found["items"]["kind"]["reason"]
    for path in ("models/reward", "models/critic", "data/preferences/train.jsonl"):
        with pytest.raises(GrapeError, match="it was not made, because"):
            needed.made(project.root / path)
    assert needed.made(project.root / "models/sft") == project.root / "models/sft"


def test_the_plan_says_what_is_left_out_and_why() -> None:
    steps = (plan.Step("sft", "ready"), plan.Step("reward", "run", ("models/sft changed",)))
    drawn = plan.Plan(Graph({"sft": (), "reward": ("sft",)}), steps, {"reward": "nobody reads it"})
    assert list(drawn.lines()) == ["sft     up to date", "reward  not needed: nobody reads it"]
    assert [step["not_needed"] for step in drawn.as_json()] == [None, "nobody reads it"]
    assert plan.left_out({"reward": "a", "critic": "b"}) == ["reward  not needed: a", "critic  not needed: b"]
    assert plan.left_out({}) == []


TINY = (
    "prepare.source=mine model.layers=1 model.width=16 model.heads=2 model.positions=64 base.steps=1 sft.steps=0 rl.steps=1 "
    "rl.prompts=4 rl.samples=2 rl.max_new_tokens=4 rl.warmup_steps=0 rl.kl_every=0 evaluate.samples=1 report.samples=1"
).split()


def run(*stages: str) -> None:
    for stage in stages:
        kind, _, item = stage.partition("@")
        algorithm, _, seed = item.rpartition("-")
        assert main([kind, *(["--algorithm", algorithm, "--seed", seed] if item else [])]) == 0, stage


def test_where_no_answer_is_right_grpo_needs_no_pair(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """Every group of answers is a tie, so that there is no pair: DPO says so, beside GRPO, which goes on to the report."""
    settle(project, *TINY)
    run("prepare", "base", "sft", "critic", "preferences", "reward", "rl@grpo-0", "evaluate@grpo-0", "test@grpo-0", "report")
    assert "not one pair was found" in capfd.readouterr().out
    facts = [json.loads(project.receipt(stage).read_text())["facts"] for stage in ("preferences", "reward")]
    assert (
        facts[0]["grape.not_made"]
        == facts[1]["grape.not_made"]
        == "not one pair was found: in no group do finished answers differ by enough"
    )
    assert [path.name for path in (project.root / "models/reward").iterdir()] == ["NOT_MADE.json"]
    page = (project.root / "reports/report.md").read_text()
    assert "preferences: nothing was made: not one pair was found" in page.replace("*", "").replace("`", "")
    settle(project, "rl.algorithms=[grpo, dpo]")
    assert main(["rl", "--algorithm", "dpo", "--seed", "0"]) == 2
    assert "it was not made, because not one pair was found" in (said := capfd.readouterr().err) and "preferences.samples" in said
    reasons = settle(project, SPARE, "rl.algorithms=[grpo]")
    run("preferences", "reward", "report")
    page = (project.root / "reports/report.md").read_text()
    assert all(f"{stage} ({reason})" in page for stage, reason in reasons.items())
    assert "Not run, because nobody needs it" in (project.root / "reports/index.html").read_text()
    assert not [path for path in (project.root / "reports/train").rglob("*") if path.is_file() and not path.stat().st_size]
    capfd.readouterr()
    settle(project, "rl.algorithms=[grpo, dpo]")
    assert main(["rl", "--algorithm", "dpo", "--seed", "0"]) == 2  # by hand, before the stage that it waits for
    assert "it was not made, because no algorithm learns from pairs" in capfd.readouterr().err
    run("preferences")  # now an algorithm asks for it: what said that nobody does is gone
    assert [path.name for path in (project.root / "data/preferences").iterdir()] == ["NOT_MADE.json"]


@pytest.mark.parametrize(
    ("sets", "there", "refused"),
    [
        (["preferences.source=people"], False, True),
        (["preferences.source=people"], True, False),
        (["preferences.source=people", SPARE], False, False),
        (["preferences.source=people", SPARE, "rl.reward=reward_model"], False, True),
        ([], False, False),
    ],
)
def test_a_table_that_nobody_needs_may_be_missing(project: Project, sets: list[str], there: bool, refused: bool) -> None:
    if there:
        answers = {"chosen": [{"role": "assistant", "content": "1"}], "rejected": [{"role": "assistant", "content": "2"}]}
        pair = {**question(0), **answers}
        (project.root / "mine" / "preferences.jsonl").write_bytes(line(**{k: v for k, v in pair.items() if k != "answer"}))
    settle(project, *TINY, *sets)
    assert (main(["prepare"]) == 2) == refused


@pytest.mark.parametrize(
    ("rubric", "sets", "name", "rl", "evaluate"),
    [
        (CRITIC, [], "grpo", {"critic"}, {"critic"}),
        (VERIFY, ["rl.algorithms=[grpo, dpo]"], "grpo", set(), set()),
        (CRITIC, ["rl.algorithms=[grpo, dpo]"], "dpo", {"preferences"}, {"critic"}),
        (CRITIC, ["rl.algorithms=[grpo, ppo]"], "grpo", {"critic"}, {"critic"}),
        (CRITIC, ["rl.algorithms=[grpo, ppo]"], "ppo", {"critic", "reward"}, {"critic"}),
        (CRITIC, ["rl.algorithms=[ppo]", "algorithms.ppo.value_init=policy"], "ppo", {"critic"}, {"critic"}),
        (CRITIC, ["algorithms.grpo.reward=reward_model"], "grpo", {"reward"}, {"critic"}),
        (CRITIC, ["rl.reward=reward_model"], "grpo", {"reward"}, {"reward"}),
        (LEARNED, [], "grpo", {"reward"}, {"reward"}),
        (
            CRITIC,
            ["rl.algorithms=[grpo, dpo]", "rl.validate_every=2"],
            "dpo",
            {"preferences", "critic", needed.VALIDATION},
            {"critic"},
        ),
    ],
)
def test_a_run_waits_for_what_it_reads(
    project: Project, rubric: str, sets: list[str], name: str, rl: set[str], evaluate: set[str]
) -> None:
    """DVC's graph has no edge from what a run does not read, so that it neither waits for that nor runs again when that changes."""
    (project.root / "rubrics" / "sums.yaml").write_text(rubric)
    settle(project, SPARE, *sets)
    deps = {kind: set(entry(project, "mine", f"{kind}@{name}-0")["deps"]) for kind in ("rl", "evaluate", "test")}
    made = {kind: {stage for stage, path in needed.MAKES.items() if path in deps[kind]} for kind in deps}
    assert made == {"rl": rl, "evaluate": evaluate | {needed.VALIDATION}, "test": evaluate}
    assert {what for what, path in needed.WITHOUT.items() if path in deps["rl"]} == (ALL | {needed.VALIDATION}) - rl
    assert all((project.root / path).read_text().startswith("# Stands for") for path in needed.WITHOUT.values())


def test_dvc_draws_what_the_cards_say(project: Project) -> None:
    settle(project, "rl.algorithms=[grpo, dpo]", "rl.seeds=[0, 3]")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    needs = dvc.graph(project).needs
    runs = {f"rl@{name}-{seed}" for name in ("grpo", "dpo") for seed in (0, 3)}
    assert {stage for stage in needs if stage.startswith("rl@")} == runs
    assert all(("preferences" in needs[run]) == run.startswith("rl@dpo") and "reward" not in needs[run] for run in runs)


def test_runs_that_the_card_does_not_name_are_refused(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """params.yaml was edited, and `dvc repro` called without grape."""
    settle(project, "rl.algorithms=[grpo]")
    before = (project.root / needed.RUNS).read_text()
    params_file.set_values(project.params, ["rl.algorithms=[grpo, dpo]"])
    assert main(["report"]) == 2 and "does not name the runs that rl.algorithms and rl.seeds ask for" in capfd.readouterr().err
    assert main(["rl", "--algorithm", "dpo", "--seed", "0"]) == 2
    shown = capfd.readouterr().err
    assert f"{needed.RUNS} does not name this run" in shown and "grape plan" in shown
    settle(project)
    text = (project.root / needed.RUNS).read_text()
    assert text != before
    for damaged in ("runs: [1]\n", "runs: {grpo-0: 1}\n", "\0", "runs:\n"):
        (project.root / needed.RUNS).write_text(damaged)
        assert main(["rl", "--algorithm", "grpo", "--seed", "0"]) == 2 and "Traceback" not in capfd.readouterr().err
        settle(project)
        assert (project.root / needed.RUNS).read_text() == text


def test_a_run_whose_reward_changed_since_is_refused(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    settle(project, *TINY)
    run("prepare", "base", "sft")
    params_file.set_values(project.params, ["rl.reward=reward_model"])
    assert main(["rl", "--algorithm", "grpo", "--seed", "0"]) == 2
    shown = capfd.readouterr().err
    assert f"{needed.RUNS} does not say that rl@grpo-0 reads models/reward" in shown and "grape plan" in shown
