"""Every stage, for real, on tiny models of three architectures; and the inputs they refuse."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grape import params as params_file
from grape.artifacts import Demonstration, Judgement, Preference, PromptRow, read_rows
from grape.commands.chat import answers, model_folder
from grape.errors import GrapeError
from grape.models import micro
from grape.models.load import load_language_model
from grape.project import Project
from grape.stages.inputs import identity, resolved
from grape.stages.modules import load_module
from grape.stages.prepare import content
from grape.stages.stage import Stage
from grape.track import StageRun
from tests import tiny
from tests.cards import ask_for

MINIATURE = [
    "model.layers=1",
    "model.width=16",
    "model.heads=2",
    "prepare.documents=60",
    "prepare.demonstrations=40",
    "prepare.prompts=24",
    "prepare.validation=6",
    "prepare.test=6",
    "prepare.judgements=60",
    "base.steps=2",
    "base.batch_size=4",
    "sft.steps=2",
    "sft.batch_size=4",
    "critic.steps=2",
    "critic.batch_size=4",
    "critic.heldout=0.5",
    "preferences.prompts=24",
    "preferences.samples=16",
    "preferences.margin=0",
    "reward.steps=2",
    "reward.batch_size=2",
    "rl.steps=3",
    "rl.learning_rate=0.01",
    "rl.warmup_steps=0",
    "rl.prompts=4",
    "rl.samples=4",
    "rl.max_new_tokens=8",
    "rl.kl_every=2",
    "evaluate.samples=2",
]
CHAIN = ("prepare", "base", "sft", "critic", "preferences", "reward")


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path / name)
    for name in ("rubrics", "grape", "algorithms"):
        shutil.copytree(root / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    params_file.set_values(tmp_path / "params.yaml", MINIATURE)
    return Project(tmp_path)


def run(project: Project, kind: str, algorithm: str | None = None, seed: int | None = None) -> None:
    """As `python3 -m grape.stages` does, without MLflow."""
    params = params_file.load(project.params)
    name = kind if algorithm is None else f"{kind}@{algorithm}-{seed}"
    if algorithm is not None:
        ask_for(project, algorithm, seed or 0)
    with StageRun(project, name, resolved(project, params, name), 0, deliver=False) as stage_run:
        stage = Stage(name, kind, params, project, stage_run, algorithm or "", seed or 0)
        importlib.import_module(f"grape.stages.{kind}").run(stage)


def headline(project: Project, name: str) -> dict[str, float]:
    values: dict[str, float] = json.loads(project.receipt(name).read_text())["headline"]
    return values


def strengthen(project: Project) -> None:
    """Make the SFT model end its answers, as a trained one would, so that pairs can be formed."""
    folder = project.root / "models/sft"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0 if parameter.dim() >= 2 else 1.0)
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 3
    model.save_pretrained(folder)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])  # llama is the default world's
def test_the_whole_chain_on_every_architecture(project: Project, architecture: str) -> None:
    params_file.set_values(
        project.params,
        [f"model.architecture={architecture}", "rl.seeds=[0]", f"algorithms.grpo.beta={0.1 if architecture == 'gpt2' else 0.0}"],
    )
    for kind in CHAIN:
        run(project, kind)
        if kind == "sft":
            strengthen(project)
    run(project, "rl", "grpo", 0)
    run(project, "evaluate", "grpo", 0)
    run(project, "test", "grpo", 0)
    for folder in ("base", "sft", "critic", "policy/grpo-0"):
        model = AutoModelForCausalLM.from_pretrained(project.root / "models" / folder)
        assert model.config.model_type == architecture
    result = json.loads((project.root / "reports/evaluate/grpo-0/metrics.json").read_text())
    assert result["prompts"] == 6 and 0 <= result["policy"]["gold"]["mean"] <= 1 and result["kl"]["token"] > 0
    assert result["sft"]["gold"]["low"] <= result["sft"]["gold"]["mean"] <= result["sft"]["gold"]["high"]
    assert {"spread", "length_correlation"} <= result["policy"]["items"]["courtesy/polite"].keys() and result["sft"]["overlap"]
    facts = json.loads(project.receipt("evaluate@grpo-0").read_text())["facts"]
    assert json.loads(facts["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]
    params_file.set_values(project.params, ["rl.algorithms=[grpo]"])
    run(project, "report")
    metrics = json.loads((project.root / "reports/metrics.json").read_text())
    assert metrics["rubric"]["items"].keys() == result["sft"]["items"].keys()
    assert headline(project, "report")["alarms"] >= 0 and "grape.alarms" in project.receipt("report").read_text()
    history = [json.loads(line) for line in (project.root / "reports/train/rl/grpo-0.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [1, 2, 3] and all(
        key in history[0] for key in ("reward", "entropy", "grad_norm", "num_tokens", "kl")
    )
    assert "ece" in headline(project, "critic") and "accuracy" in headline(project, "reward")
    assert [*answers(model_folder(project, "sft"), iter(["What is 1 + 1?", "/reset", "hi"]), 8, 256)] != []


def test_pairs_say_who_preferred_what_and_by_how_much(trained: Project) -> None:
    pairs = read_rows(trained.root / "data/preferences/train.jsonl", Preference)
    assert pairs and all(p.chosen != p.rejected and p.source == "rubric" for p in pairs)
    assert all((p.chosen_score or 0) > (p.rejected_score or 0) for p in pairs)


def test_prepare_leaks_nothing_and_is_the_same_twice(project: Project) -> None:
    run(project, "prepare")
    data = project.root / "data"
    before = {p.relative_to(data): p.read_bytes() for p in data.rglob("*.jsonl")}
    splits = {name: read_rows(data / f"prompts/{name}.jsonl", PromptRow) for name in ("validation", "test")}
    rows = [row for split in splits.values() for row in split]
    heldout = {content(row) for row in rows}
    assert len(heldout) == len(rows) == 12
    kinds: dict[str, Any] = {"prompts": PromptRow, "sft": Demonstration, "judgements": Judgement}
    for name, kind in kinds.items():
        assert heldout.isdisjoint(content(row) for row in read_rows(data / name / "train.jsonl", kind))
    corpus = (data / "corpus/train.jsonl").read_text()
    assert not any(row.prompt[0].content in corpus for row in rows)
    run(project, "prepare")
    assert before == {p.relative_to(data): p.read_bytes() for p in data.rglob("*.jsonl")}
    assert len(read_rows(data / "prompts/train.jsonl", PromptRow)) == 24 and read_rows(data / "judgements/train.jsonl", Judgement)


def own_data(project: Project) -> Path:
    folder = project.root / "mine"
    folder.mkdir()
    questions = [
        {"category": "letters", "prompt": [{"role": "user", "content": f"Write {c} in capitals."}], "answer": c.upper()}
        for c in "abcdefghij"
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    turns = [{"messages": [*q["prompt"], {"role": "assistant", "content": q["answer"]}], "category": "letters"} for q in questions]  # type: ignore[misc]
    (folder / "sft.jsonl").write_text("".join(json.dumps(t) + "\n" for t in turns))
    (folder / "corpus.jsonl").write_text(json.dumps({"text": "Write a in capitals: A."}) + "\n")
    params_file.set_values(project.params, ["prepare.source=mine", "prepare.validation=2", "prepare.test=3"])
    return folder


def test_own_data_is_imported_split_by_content_and_checked(project: Project) -> None:
    own_data(project)
    run(project, "prepare")
    names = ("train", "validation", "test")
    splits = [read_rows(project.root / f"data/prompts/{name}.jsonl", PromptRow) for name in names]
    assert [len(split) for split in splits] == [5, 2, 3] and len({q.id for split in splits for q in split}) == 10
    assert len((project.root / "data/sft/train.jsonl").read_text().splitlines()) == 5, "demonstrations of held-out prompts leave"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("prompts.jsonl", '{"category": "letters"}', "prompt"),
        ("prompts.jsonl", "not json", "JSON"),
        (
            "sft.jsonl",
            '{"category": "x", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "assistant",
        ),
    ],
)
def test_a_wrong_row_of_own_data_is_refused_with_its_place(project: Project, file: str, line: str, message: str) -> None:
    folder = own_data(project)
    with (folder / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(GrapeError, match=message) as caught:
        run(project, "prepare")
    assert file in str(caught.value.where)
    assert not (project.root / "data").exists()


def test_missing_files_and_worlds_are_named(project: Project) -> None:
    (own_data(project) / "sft.jsonl").unlink()
    with pytest.raises(GrapeError, match="missing"):
        run(project, "prepare")
    params_file.set_values(project.params, ["prepare.source=nowhere.py"])
    with pytest.raises(GrapeError, match="no such Python file"):
        run(project, "prepare")
    params_file.set_values(project.params, ["prepare.source=grape/world.py", "prepare.prompts=100000"])
    with pytest.raises(GrapeError, match="fewer different questions"):
        run(project, "prepare")


def test_a_base_that_is_not_there_or_damaged_is_named(project: Project) -> None:
    run(project, "prepare")
    for base in ("./nowhere", "nowhere.gguf"):
        params_file.set_values(project.params, [f"model.base={base}"])
        with pytest.raises(GrapeError, match="no such"):
            run(project, "base")
    params_file.set_values(project.params, ["model.base=scratch"])
    run(project, "base")
    weights = project.root / "models/base/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(GrapeError, match="cannot be loaded"):
        run(project, "sft")


def test_a_directory_is_a_base_model(project: Project) -> None:
    from grape.models.load import save_model

    save_model(tiny.model("qwen3", positions=256), tiny.tokenizer(), project.root / "pretrained")
    params_file.set_values(project.params, ["model.base=pretrained", "base.steps=0"])
    run(project, "prepare")
    run(project, "base")
    assert {path.name for path in (project.root / "models/base").iterdir()} == {"same_as.json"}, "nothing is copied"
    ours = load_language_model(str(project.root / "models/base"))[0]
    for a, b in zip(ours.parameters(), tiny.model("qwen3", positions=256).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["rl.prompts=25"], "takes 25 prompts"),
        (["rl.samples=1"], "at least two"),
        (["algorithms.grpo.mini_batches=8"], "mini-batches"),
        (["algorithms.grpo.mini_batches=3"], "do not come out even"),
        (["algorithms.grpo.rounds=2"], "cannot be spread evenly over 2 rounds"),
        (["rl.reward=reward_model"], "models/reward is missing, and rl.reward needs it"),
        (["algorithms.grpo.reward=reward_model"], "models/reward is missing, and algorithms.grpo.reward needs it"),
        (["algorithms.grpo.revise=0.01"], "needs plain prompts and revisions"),
        (["algorithms.grpo.revise=0.99"], "needs plain prompts and revisions"),
        (["rl.algorithms=[ppo]"], "models/reward is missing, and algorithms.ppo.value_init needs it"),
        (["rl.algorithms=[dpo]"], "data/preferences/train.jsonl is missing, and algorithm dpo needs it"),
        (["rl.algorithms=[trpo]", "algorithms.trpo.rounds=3", "model.lora.rank=2"], "only those can move"),
        (["rl.algorithms=[trpo]", "algorithms.trpo.rounds=3", "algorithms.trpo.parameters=adapters"], "no adapters to move"),
        (["rl.algorithms=[reinforce]", "rl.samples=1"], "at least two"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(
    project: Project, change: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(project, "prepare")
    params = params_file.set_values(project.params, ["rl.algorithms=[grpo]", *change])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(GrapeError, match=message):
        run(project, "rl", params.rl.algorithms[0], 0)


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(project: Project, _trained: Path) -> Project:
    """A project whose stages before rl have run, once for all tests of this module."""
    if not (_trained / "models").exists():
        for kind in CHAIN:
            run(project, kind)
            if kind == "sft":
                strengthen(project)
        for name in ("data", "models"):
            shutil.copytree(project.root / name, _trained / name)
    for name in ("data", "models"):
        shutil.copytree(_trained / name, project.root / name, dirs_exist_ok=True)
    return project


def test_without_steps_the_sft_model_is_the_base_model(trained: Project) -> None:
    """And no demonstration is looked for: an instruct model goes straight to RL."""
    params_file.set_values(trained.params, ["sft.steps=0"])
    shutil.rmtree(trained.root / "data/sft")
    run(trained, "sft")
    base, sft = trained.root / "models/base", trained.root / "models/sft"
    assert [path.name for path in sft.iterdir()] == ["same_as.json"], "nothing is copied"
    weights = [load_language_model(str(folder))[0].state_dict() for folder in (base, sft)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert [*answers(model_folder(trained, "sft"), iter(["hi"]), 8, 256)] != []
    run(trained, "rl", "grpo", 0)
    assert headline(trained, "rl@grpo-0")["reward"] >= 0


@pytest.mark.parametrize(
    ("algorithm", "change", "metric"),
    [
        ("rejection", ["algorithms.rejection.epochs=2"], "accepted"),
        ("reinforce", ["algorithms.reinforce.reward=reward_model"], "rewards/reward_model/score/mean"),
        ("reinforce", ["rl.reward=reward_model", "algorithms.reinforce.beta=0.05"], "rewards/reward_model/score/mean"),
        ("trpo", ["algorithms.trpo.rounds=1"], "trpo/kl"),
        ("trpo", ["algorithms.trpo.rounds=3", "model.lora.rank=2", "algorithms.trpo.parameters=adapters"], "trpo/accepted"),
        ("ppo", [], "value/explained_variance"),
        ("ppo", ["algorithms.ppo.value=head", "algorithms.ppo.objective=penalty"], "approx_kl"),
        ("grpo", ["model.lora.rank=2", "algorithms.grpo.resample=1"], "groups_drawn_again"),
        ("dpo", [], "rewards/chosen"),
        ("grape", ["algorithms.grape.scope=ema"], "rubric/courtesy/polite/weight"),
        ("grape", ["algorithms.grape.revise=0.5"], "revision/share"),
        ("grape", ["algorithms.grape.revise=0.5", "algorithms.grape.revision=distil"], "revision/share"),
    ],
)
def test_every_algorithm_goes_through_the_stage(trained: Project, algorithm: str, change: list[str], metric: str) -> None:
    params_file.set_values(trained.params, [f"rl.algorithms=[{algorithm}]", *change])
    run(trained, "rl", algorithm, 0)
    rows = [json.loads(line) for line in (trained.root / f"reports/train/rl/{algorithm}-0.jsonl").read_text().splitlines()]
    assert any(metric in row for row in rows) and rows[-1]["memory/peak_mb"] > 0
    rounds = json.loads(trained.receipt(f"rl@{algorithm}-0").read_text())["params"][f"algorithms.{algorithm}"].get("rounds")
    assert len(rows) == (rounds or 3)
    names = ("sft", f"policy/{algorithm}-0")
    sft, policy = (load_language_model(str(trained.root / "models" / n))[0].state_dict() for n in names)
    assert sft.keys() == policy.keys() and any(not torch.equal(sft[name], policy[name]) for name in sft)


@pytest.mark.parametrize("algorithm", ["grpo", "dpo", "trpo"])
def test_validation_while_training_changes_no_weight(trained: Project, algorithm: str) -> None:
    """Its draws are its own, and it comes before every round but the first, of large rounds likewise."""

    def made() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        run(trained, "rl", algorithm, 0)
        rows = (trained.root / f"reports/train/rl/{algorithm}-0.jsonl").read_text().splitlines()
        return load_language_model(str(trained.root / f"models/policy/{algorithm}-0"))[0].state_dict(), [*map(json.loads, rows)]

    params_file.set_values(trained.params, ["algorithms.trpo.rounds=3"])
    plain, silent = made()
    params_file.set_values(trained.params, ["rl.validate_every=1"])
    weights, rows = made()
    assert all(torch.equal(weights[name], value) for name, value in plain.items())
    assert not any("validation/reward" in row for row in silent)
    assert [row["step"] for row in rows if 0 <= row.get("validation/reward", -1) <= 1] == [2, 3]


def test_large_models_are_trained_in_micro_batches_of_a_measured_size(trained: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way of training goes through; once measured the size stays, and so do the bits."""

    def made(kind: str, algorithm: str | None = None) -> tuple[str, bytes]:
        run(trained, kind, algorithm, None if algorithm is None else 0)
        name, folder = (f"rl@{algorithm}-0", f"policy/{algorithm}-0") if algorithm else (kind, kind)
        facts = json.loads(trained.receipt(name).read_text())["facts"]
        return facts["grape.micro_batch_tokens"], (trained.root / "models" / folder / "model.safetensors").read_bytes()

    params_file.set_values(trained.params, ["rl.kl_every=1"])
    assert made("rl", "grpo")[0] == "1024 (fixed)"
    monkeypatch.setattr(micro, "LARGE", 0)
    found = [made(*which) for which in (("sft",), ("reward",), ("rl", "dpo"), ("rl", "ppo"), ("rl", "grpo"), ("rl", "grpo"))]
    assert all(by.endswith(" (measured)") for by, _ in found) and found[-1] == found[-2]
    kept = sorted((trained.state / "micro_batches").iterdir())
    assert len(kept) == 5 and trained.root in kept[0].parents
    monkeypatch.setenv(micro.VARIABLE, "77")
    assert made("rl", "grpo")[0] == "77 (environment)"


def test_an_algorithm_of_ones_own_goes_through_the_stage(trained: Project) -> None:
    params_file.set_values(trained.params, ["algorithms.rloo.use=algorithms.rloo:ALGORITHM", "rl.algorithms=[rloo]"])
    run(trained, "rl", "rloo", 0)
    receipt = json.loads(trained.receipt("rl@rloo-0").read_text())
    assert receipt["params"]["algorithms.rloo"]["use"] == "algorithms.rloo:ALGORITHM"


SIMPO = """
import torch.nn.functional as F
from grape.algorithms.base import Algorithm, SlotParams
from grape.maths.preference import split_pairs
from grape.types import Loss

def loss(outputs, batch, params):
    chosen, rejected = split_pairs(outputs.logp.sum(1) / batch.mask.sum(1))
    value = -F.logsigmoid(2 * (chosen - rejected))
    return Loss(value, value.detach() * 0 + 1, value.detach() * 0 + 1, {})

ALGORITHM = Algorithm(params=SlotParams, data="pairs", loss=loss, needs=lambda _: frozenset(NEEDS))
"""


def test_pairs_without_a_reference_load_none_and_an_unknown_need_is_refused(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n == "algorithms" or n.startswith("algorithms.")]:
        monkeypatch.delitem(sys.modules, name)
    (trained.root / "algorithms/simpo.py").write_text(SIMPO.replace("NEEDS", "()"))
    (trained.root / "algorithms/wrong.py").write_text(SIMPO.replace("NEEDS", '{"scores"}'))
    uses = [f"algorithms.{name}.use=algorithms.{name}:ALGORITHM" for name in ("simpo", "wrong")]
    params_file.set_values(trained.params, [*uses, "rl.algorithms=[simpo, wrong]"])
    run(trained, "rl", "simpo", 0)
    assert not (trained.state / "reference").exists()
    with pytest.raises(GrapeError, match="nothing is known of the need 'scores'"):
        run(trained, "rl", "wrong", 0)


def test_a_stage_opens_only_what_dvc_yaml_declares_for_it(project: Project) -> None:
    params = params_file.load(project.params)
    with StageRun(project, "sft", resolved(project, params, "sft"), 0, deliver=False) as stage_run:
        stage = Stage("sft", "sft", params, project, stage_run)
        assert stage.path("data/sft/train.jsonl") == project.root / "data/sft/train.jsonl"
        assert stage.path("models/sft") == project.root / "models/sft"
        for undeclared in ("data/prompts/validation.jsonl", "data", "models/sftish", "data/sft/../prompts"):
            with pytest.raises(GrapeError, match="which it does not declare"):
                stage.path(undeclared)


def test_a_policy_whose_tokenizer_is_another_models_is_refused(trained: Project) -> None:
    path = trained.root / "models/sft/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": 20}))
    with pytest.raises(GrapeError, match="the tokenizer has ids up to"):
        run(trained, "rl", "grpo", 0)
    path.write_text(json.dumps(config))
    tiny.tokenizer().save_pretrained(trained.root / "models/reward")
    params_file.set_values(trained.params, ["rl.algorithms=[ppo]"])
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(trained.root / "models/reward")
    with pytest.raises(GrapeError, match="another tokenizer than the policy"):
        run(trained, "rl", "ppo", 0)


def test_a_reward_model_without_numbers_is_refused(trained: Project) -> None:
    params_file.set_values(trained.params, ["rl.reward=reward_model"])
    (trained.root / "models/reward/reward_statistics.json").write_text('{"mean": NaN, "std": 1.0}')
    with pytest.raises(GrapeError, match="cannot be used: mean nan"):
        run(trained, "rl", "grpo", 0)


def test_members_of_an_ensemble_come_to_the_reward_model_and_leave_it_as_it_is(trained: Project) -> None:
    run(trained, "reward")
    folder, alone = trained.root / "models/reward", headline(trained, "reward")
    before = (folder / "model.safetensors").read_bytes()
    params_file.set_values(trained.params, ["reward.members=3"])
    run(trained, "reward")
    assert (folder / "model.safetensors").read_bytes() == before
    weights = [(folder / f"members/{i}/model.safetensors").read_bytes() for i in (1, 2)]
    assert before != weights[0] != weights[1] != before
    told = headline(trained, "reward")
    assert told.items() >= alone.items() and {"doubt", "ensemble/accuracy", "ensemble/confidence"} <= told.keys()
    assert json.loads((folder / "reward_statistics.json").read_text()).keys() == {"mean", "std", "doubt"}
    params_file.set_values(trained.params, ["rl.reward=reward_model"])
    run(trained, "rl", "ppo", 0)
    run(trained, "evaluate", "ppo", 0)
    assert 0 < load_confidence(trained, "ppo-0") <= 1


def load_confidence(project: Project, policy: str) -> float:
    found = json.loads((project.root / f"reports/evaluate/{policy}/metrics.json").read_text())
    return float(found["policy"]["items"]["reward_model/score"]["confidence"])


def test_reference_log_probabilities_are_computed_once(trained: Project) -> None:
    params_file.set_values(trained.params, ["rl.algorithms=[dpo]"])
    run(trained, "rl", "dpo", 0)
    (path,) = (trained.state / "reference").glob("*.safetensors")
    before = path.stat().st_mtime_ns
    params_file.set_values(trained.params, ["algorithms.dpo.beta=0.3"])
    run(trained, "rl", "dpo", 1)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"cut short")
    run(trained, "rl", "dpo", 2)
    assert path.stat().st_size > 100


def test_the_identity_of_a_stage_follows_its_params_code_and_data(project: Project) -> None:
    run(project, "prepare")
    ask_for(project, "grpo")

    def now(name: str = "rl@grpo-0") -> str:
        return identity(project, params_file.load(project.params), name)

    first = now()
    params_file.set_values(project.params, ["rl.seeds=[0, 1]", "evaluate.samples=3", "algorithms.reinforce.decay=0.5"])
    assert now() == first
    params_file.set_values(project.params, ["algorithms.grpo.clip_low=0.1"])
    second = now()
    (project.root / "grape/algorithms/reinforce.py").write_text("# changed")
    assert now() == second != first
    (project.root / "grape/algorithms/grpo.py").write_text("# changed")
    assert now() != second


def test_gold_and_its_world_agree(root: Path) -> None:
    import random

    world = load_module(root / "grape/world.py")
    rng = random.Random(0)
    for category, question in world.QUESTIONS.items():
        for _ in range(200):
            text, answer = question(rng)
            prompt = tiny.prompt(text, category, answer)
            assert world.gold(prompt, world.good(category, answer, rng)) == 1
            assert world.gold(prompt, world.bad(category, answer, rng)) < 1


def test_chat_names_what_is_not_there(project: Project) -> None:
    with pytest.raises(GrapeError, match="no model yet"):
        model_folder(project, "sft")
    with pytest.raises(GrapeError, match="no stage"):
        model_folder(project, "evaluate")


def test_a_judge_from_outside_is_calibrated_and_not_trained(trained: Project) -> None:
    from grape.models.load import save_model

    save_model(tiny.model(positions=2048), tiny.tokenizer(), trained.root / "outside")
    params_file.set_values(trained.params, ["critic.judge.model=outside", "critic.judge.backend=local", "critic.heldout=0.3"])
    run(trained, "critic")
    folder = trained.root / "models/critic"
    assert {path.name for path in folder.iterdir()} == {"calibration.json", "judge.json"}
    assert {"agreement", "ece", "ece_before"} <= headline(trained, "critic").keys()
    run(trained, "rl", "grpo", 0)
    with pytest.raises(GrapeError, match="critic.judge"):
        params_file.set_values(trained.params, ["critic.judge.backend=trained"])


def test_a_panel_is_calibrated_judge_by_judge_and_compared(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    from grape.commands.rubrics import show
    from grape.evaluation.judges import read_judges
    from grape.models.load import save_model

    for number, name in enumerate(("outside", "other")):
        save_model(tiny.model(positions=2048, seed=number), tiny.tokenizer(), trained.root / name)
    panel = "critic.panel=[{name: second, backend: local, model: other, repeats: 3, temperature: 1.0, confidence: agreement}]"
    params_file.set_values(trained.params, ["critic.judge.model=outside", "critic.judge.backend=local", panel])
    run(trained, "critic")
    folder = trained.root / "models/critic"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.json")} == {
        "calibration.json", "judge.json", "panel/second/calibration.json", "panel/second/judge.json"
    }  # fmt: skip
    found = read_judges(trained.root)
    assert found and [judge.name for judge in found.judges] == ["judge", "second", "panel"]
    assert found.statistic == "Cohen's kappa" and all(judge.numbers["judged"] == 15 for judge in found.judges)
    said = headline(trained, "critic")
    assert said["agreement"] == found.judges[2].numbers["agreement"] and {"judge/judge/ece", "judge/second/ece"} <= said.keys()
    assert any("second: agrees with people in" in line for line in show(trained, "courtesy"))
    run(trained, "rl", "grpo", 0)
    assert '"judges/agreement"' in (trained.root / "reports/train/rl/grpo-0.jsonl").read_text()

    # Nobody has judged anything: a normal project, which says what its confidence is worth.
    (trained.root / "data/judgements/train.jsonl").write_text("")
    capsys.readouterr()
    run(trained, "critic")
    out = capsys.readouterr().out
    assert all(f"{name} is not calibrated" in out for name in ("judge", "second", "panel")) and "no labelled judgements" in out
    found = read_judges(trained.root)
    assert found and not any(judge.curves for judge in found.judges) and not found.between
    assert any("compared with nobody" in line for line in show(trained, "courtesy"))
    run(trained, "rl", "grpo", 0)


def test_an_algorithm_under_another_name_gives_the_same_bits_and_others_see_the_same_draws(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grape.sampling import own

    (project.root / "algorithms/twin.py").write_text((project.root / "grape/algorithms/grpo.py").read_text())
    knobs = "{}"
    params_file.set_values(
        project.params,
        [
            "algorithms.twin.use=algorithms.twin:ALGORITHM", f"algorithms.grpo={knobs}", f"algorithms.reinforce={knobs}",
            "rl.algorithms=[grpo, twin, reinforce]",
        ],
    )  # fmt: skip
    for kind in CHAIN:
        run(project, kind)
        if kind == "sft":
            strengthen(project)
    drawn: dict[str, list[tuple[list[str], Any]]] = {}
    uniforms = own.uniforms
    for name in ("grpo", "twin", "reinforce"):
        seen = drawn.setdefault(name, [])

        def noted(names: Any, *rest: Any, seen: Any = seen) -> Any:
            made = uniforms(names, *rest)
            seen.append((names, made))
            return made

        monkeypatch.setattr(own, "uniforms", noted)
        run(project, "rl", name, 0)
    assert drawn["grpo"], "nothing was drawn"
    for name in ("twin", "reinforce"):
        for (ids, numbers), (others, theirs) in zip(drawn["grpo"], drawn[name], strict=True):
            assert ids == others and torch.equal(numbers, theirs)
    weights = {name: (project.root / f"models/policy/{name}-0/model.safetensors").read_bytes() for name in drawn}
    assert weights["grpo"] == weights["twin"] != weights["reinforce"]
    records = {
        name: [
            {k: v for k, v in json.loads(line).items() if not k.endswith(("time", "mb"))}
            for line in (project.root / f"reports/train/rl/{name}-0.jsonl").read_text().splitlines()
        ]
        for name in drawn
    }
    assert records["grpo"] == records["twin"] != records["reinforce"]
