"""What the stages evaluate and test share: a policy beside the SFT policy it came from, on the prompts of one held-out split (gold,
rubric, win rate, KL, lengths, samples)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from grape.artifacts import read_prompts
from grape.evaluation.record import Benchmark, Evaluation, JudgeName, Sample, Split
from grape.evaluation.sides import COLUMNS, Answers, dataset_differences, describe, difference, samples, table, win_rate
from grape.evaluation.statistics import Bootstrap
from grape.files import write_json, write_lines, write_text
from grape.models.encode import fitting_prompts
from grape.models.load import load_tokenizer
from grape.stages.answers import Answering, Evaluated
from grape.stages.chats import chat_of
from grape.stages.judges import gold_judge, reward_source
from grape.stages.stage import Stage
from grape.track import digest
from grape.types import Prompt

TABLE = "samples.json"  # its place among the artifacts of the MLflow run
LINEAGE = ("models/base", "models/sft")


@dataclass(frozen=True)
class HeldOut:
    """The prompts of a split that fit the model, and what answers them.

    Attributes:
        dropped: prompts that do not fit.
    """

    stage: Stage
    split: Split
    answered: Answering
    dropped: int

    @classmethod
    def read(cls, stage: Stage, split: Split) -> HeldOut:
        """
        Raises:
            GrapeError: none fits, no rubric is about one, or the judges cannot be had.
        """
        place = place_of(split)
        prompts = read_prompts(stage.path(place))
        stage.datasets(place, "rubrics", context=split)
        source, gold = reward_source(stage, prompts, place), gold_judge(stage)
        chat = chat_of(stage, load_tokenizer(stage.model("models/sft")))
        room = stage.params.model.positions - stage.params.rl.max_new_tokens
        prompts, dropped = fitting_prompts(chat, prompts, room, place)
        longest = f"model.positions - rl.max_new_tokens = {room} tokens"
        stage.left_out({"dropped/too_long": len(dropped)}, len(prompts), f"{split} prompts", longest)
        return cls(stage, split, Answering(stage, prompts, source, gold), len(dropped))

    @property
    def place(self) -> str:
        return place_of(self.split)

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.answered.prompts

    @cached_property
    def sft(self) -> Evaluated:
        return Evaluated(self.stage, "SFT", LINEAGE)

    @cached_property
    def policy(self) -> Evaluated:
        return Evaluated(self.stage, self.stage.policy, (*LINEAGE, f"models/policy/{self.stage.policy}"))

    def compare(
        self, sft: Answers, own: Answers, base: Answers | Literal["sft"] | None = None, benchmarks: Sequence[Benchmark] = ()
    ) -> Evaluation:
        """Everything that is said of the policy `own`. base: "sft": the two are one model; None: it was not asked."""
        stage, prompts = self.stage, self.prompts
        over = bootstrap(stage)
        assert own.kl is not None
        return Evaluation(
            split=self.split,
            data=digest.tracked(stage.project, self.place),
            weights=self.policy.identity[-1],
            algorithm=stage.algorithm,
            seed=stage.seed,
            prompts=len(prompts),
            samples=stage.params.evaluate.samples,
            base=describe(prompts, base, over) if isinstance(base, Answers) else base,
            sft=describe(prompts, sft, over),
            policy=describe(prompts, own, over),
            difference=difference(sft, own, over),
            dataset_differences=dataset_differences(prompts, sft, own, over),
            win_rate=win_rate(sft, own, over),
            dropped={"too_long": self.dropped},
            kl=own.kl,
            benchmarks=list(benchmarks),
        )

    def write(self, found: Evaluation, sft: Answers, own: Answers) -> None:
        """Into the stage's folder of reports/ and its run."""
        stage, answers = self.stage, samples(self.prompts, sft, own)
        folder, judge = stage.path(f"reports/{stage.kind}/{stage.policy}"), found.win_rate.judge
        write_json(folder / "metrics.json", found.model_dump())
        write_lines(folder / "samples.jsonl", (answer.row() for answer in answers))
        log_table(stage, answers)
        gain, base = found.difference.of(judge), found.base_side
        numbers = {
            "policy": found.policy.of(judge).mean,
            "sft": found.sft.of(judge).mean,
            **({"base": base.of(judge).mean} if base else {}),
            "difference": gain.mean,
            "difference_low": gain.low,
            "win_rate": found.win_rate.mean,
            "kl": found.kl.token,
            "length": found.policy.length,
            **parts(found, judge),
        }
        numbers = {f"{self.split}/{name}": number for name, number in numbers.items()}
        stage.run.headline(numbers, model=f"models/policy/{stage.policy}", dataset=self.place)


def place_of(split: Split) -> str:
    return f"data/prompts/{split}.jsonl"


def bootstrap(stage: Stage) -> Bootstrap:
    """Of every interval over held-out prompts."""
    return Bootstrap(stage.params.evaluate.confidence, (stage.params.seed, "evaluate", "bootstrap"))


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
