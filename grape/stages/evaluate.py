"""evaluate: a policy beside the SFT policy it came from and the base model: on held-out prompts (gold, rubric, win rate, KL,
lengths, samples), and on standard benchmarks, where one sees what was forgotten."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from grape.artifacts import read_prompts
from grape.evaluation.harness import Measured
from grape.evaluation.record import Evaluation, JudgeName, Sample
from grape.evaluation.sides import COLUMNS, Answers, dataset_differences, describe, difference, samples, table, win_rate
from grape.evaluation.statistics import Bootstrap
from grape.files import write_json, write_lines, write_text
from grape.models.encode import fitting_prompts
from grape.models.load import load_tokenizer
from grape.stages.answers import Answering, Evaluated
from grape.stages.benchmarks import benchmarked, beside
from grape.stages.chats import chat_of
from grape.stages.judges import gold_judge, reward_source
from grape.stages.stage import Stage
from grape.types import Prompt

TABLE = "samples.json"  # its place among the artifacts of the MLflow run
LINEAGE = ("models/base", "models/sft")


class Found(NamedTuple):
    """What was found out about one model."""

    answers: Answers
    tasks: Measured


def run(stage: Stage) -> None:
    prompts = read_prompts(stage.path("data/prompts/heldout.jsonl"))
    stage.datasets("data/prompts", "rubrics", context="evaluation")
    source, gold = reward_source(stage, prompts, "data/prompts/heldout.jsonl"), gold_judge(stage)
    chat = chat_of(stage, load_tokenizer(stage.model("models/sft")))
    room = stage.params.model.positions - stage.params.rl.max_new_tokens
    prompts, dropped = fitting_prompts(chat, prompts, room, "data/prompts")
    longest = f"model.positions - rl.max_new_tokens = {room} tokens"
    stage.left_out({"dropped/too_long": len(dropped)}, len(prompts), "held-out prompts", longest)
    answered = Answering(stage, prompts, source, gold)
    measured = partial(_measured, answered)
    # One after the other, so that no more than two are in memory: a policy and, for its KL, SFT.
    base = measured(Evaluated(stage, "base", LINEAGE[:1])) if stage.params.sft.steps else None
    reference = Evaluated(stage, "SFT", LINEAGE)
    sft = measured(reference)
    own = measured(Evaluated(stage, stage.policy, (*LINEAGE, f"models/policy/{stage.policy}")), reference)
    found = compare(stage, prompts, base, sft, own, len(dropped))
    write(stage, found, samples(prompts, sft.answers, own.answers))


def _measured(answered: Answering, model: Evaluated, reference: Evaluated | None = None) -> Found:
    return Found(answered(model, reference), benchmarked(answered.stage, model))


def compare(stage: Stage, prompts: Sequence[Prompt], base: Found | None, sft: Found, own: Found, too_long: int) -> Evaluation:
    """Everything that reports/evaluate says of the policy `own`. base: None: it is the SFT model."""
    over = Bootstrap(stage.params.evaluate.confidence, (stage.params.seed, "evaluate", "bootstrap"))
    assert own.answers.kl is not None
    return Evaluation(
        algorithm=stage.algorithm,
        seed=stage.seed,
        prompts=len(prompts),
        samples=stage.params.evaluate.samples,
        base=describe(prompts, base.answers, over) if base else "sft",
        sft=describe(prompts, sft.answers, over),
        policy=describe(prompts, own.answers, over),
        difference=difference(sft.answers, own.answers, over),
        dataset_differences=dataset_differences(prompts, sft.answers, own.answers, over),
        win_rate=win_rate(sft.answers, own.answers, over),
        dropped={"too_long": too_long},
        kl=own.answers.kl,
        benchmarks=list(beside((base or sft).tasks, sft.tasks, own.tasks, over)),
    )


def write(stage: Stage, found: Evaluation, answers: Sequence[Sample]) -> None:
    """Into reports/evaluate and the stage's run."""
    folder, judge = stage.path(f"reports/evaluate/{stage.policy}"), found.win_rate.judge
    write_json(folder / "metrics.json", found.model_dump())
    write_lines(folder / "samples.jsonl", (answer.row() for answer in answers))
    log_table(stage, answers)
    gain, base = found.difference.of(judge), found.base_side
    assert base is not None
    stage.run.headline(
        {
            "policy": found.policy.of(judge).mean,
            "sft": found.sft.of(judge).mean,
            "base": base.of(judge).mean,
            "difference": gain.mean,
            "difference_low": gain.low,
            "win_rate": found.win_rate.mean,
            "kl": found.kl.token,
            "length": found.policy.length,
            **parts(found, judge),
        },
        model=f"models/policy/{stage.policy}",
        dataset="data/prompts",
    )


def parts(found: Evaluation, judge: JudgeName) -> dict[str, float]:
    """The numbers of every data set and benchmark, as metrics of the run."""
    numbers: dict[str, float] = {}
    for name, gain in found.dataset_differences.items():
        sides = {"policy": found.policy, "sft": found.sft, "base": found.base_side}
        numbers |= {f"dataset/{name}/{who}": side.datasets[name].of(judge).mean for who, side in sides.items() if side}
        numbers |= {f"dataset/{name}/difference": gain.of(judge).mean, f"dataset/{name}/difference_low": gain.of(judge).low}
    for row in found.benchmarks:
        gained, place = row.difference, f"benchmark/{row.task}/{row.metric}"
        numbers |= {f"{place}/policy": row.policy, f"{place}/sft": row.sft}
        numbers |= {f"{place}/difference": gained if isinstance(gained, float) else gained.mean}
        numbers |= {} if row.base is None else {f"{place}/base": row.base}
    return numbers


def log_table(stage: Stage, answers: Sequence[Sample]) -> None:
    """The samples as a table in MLflow's UI, a row per item: the file and the tag that MlflowClient.log_table would leave."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TABLE
        write_text(path, json.dumps({"columns": COLUMNS, "data": list(table(answers, stage.policy))}, allow_nan=False))
        stage.run.artifact(path)
    stage.run.tag({"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])})
