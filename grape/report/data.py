"""Inputs of the report: evaluations, training records, samples, read by the names in params.yaml and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grape.errors import GrapeError, first_problem
from grape.files import read_lines

Judge = Literal["gold", "proxy"]
Record = dict[str, float]
KEPT = "rows/kept"  # only the record that says what a stage left out has it


class Strict(BaseModel):
    """Values as the evaluate stage writes them; further keys are its own business."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Interval(Strict):
    mean: float
    low: float
    high: float


class Scores(Strict):
    """A score by each judge: `gold` never seen by training (None: there is none), `proxy` the one trained on."""

    gold: Interval | None
    proxy: Interval

    def of(self, judge: Judge) -> Interval:
        found = self.gold if judge == "gold" else self.proxy
        assert found is not None, "gold is asked for only where every evaluation has it"
        return found


class Category(Scores):
    n: int


class Greedy(Strict):
    gold: float | None
    proxy: float


class Item(Strict):
    """One rubric item: mean score and confidence in [0, 1], share of missing scores, mean standard deviation of the scores of one
    prompt's answers, correlation of score and length within prompts. None: there is no such number."""

    score: float | None
    confidence: float | None
    missing: float
    spread: float | None
    length_correlation: float | None


class Overlap(Strict):
    """Correlation of two items, `category/item` each, over the responses both were asked about; None where one is constant."""

    a: str
    b: str
    correlation: float | None


class Side(Scores):
    """One model's held-out results; `length` in tokens, `entropy` in nats per token, `finished` a share."""

    greedy: Greedy
    length: float
    finished: float
    entropy: float
    pass_at: dict[str, float] = Field(default_factory=dict)
    categories: dict[str, Category]
    items: dict[str, Item]
    overlap: list[Overlap]


class WinRate(Interval):
    judge: Judge


class KL(Strict):
    """Divergence from the SFT policy in nats, per token and per response."""

    token: float
    sequence: float


class Evaluation(Strict):
    algorithm: str
    seed: int
    prompts: int
    samples: int
    sft: Side
    policy: Side
    difference: Scores
    win_rate: WinRate
    kl: KL
    dropped: dict[str, int] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.algorithm}-{self.seed}"


@dataclass(frozen=True)
class Cost:
    """Of one rl run: seconds in its rounds (loading and saving aside), prompt and response tokens it learned from, peak
    resident MiB of its process, everything loaded included."""

    seconds: float
    tokens: float
    memory_mb: float


@dataclass(frozen=True)
class Inputs:
    """All the report is made from. `training` maps base, sft, critic, reward to records; `rl` each policy's name; `left` a stage
    to what it says of its rows: `rows/kept`, `dropped/REASON`."""

    evaluations: tuple[Evaluation, ...]
    samples: dict[str, list[dict[str, Any]]]
    training: dict[str, list[Record]]
    rl: dict[str, list[Record]]
    left: dict[str, Record]

    def cost(self, name: str) -> Cost:
        """What training policy `name` took."""
        records = self.rl[name]
        return Cost(seconds=sum(r.get("step_time", 0.0) for r in records),
                    tokens=sum(r.get("num_tokens", 0.0) for r in records),
                    memory_mb=max((r.get("memory/peak_mb", 0.0) for r in records), default=0.0))

    @property
    def judge(self) -> Judge:
        """Gold where every policy has it, else proxy."""
        return "gold" if all(e.policy.gold and e.sft.gold and e.difference.gold for e in self.evaluations) else "proxy"

    @property
    def algorithms(self) -> list[str]:
        return list(dict.fromkeys(evaluation.algorithm for evaluation in self.evaluations))

    def of(self, algorithm: str) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if evaluation.algorithm == algorithm]


def read(root: Path, algorithms: Sequence[str], seeds: Sequence[int]) -> Inputs:
    """Everything below `root`/reports for algorithms x seeds; what other folders hold is left alone.

    Raises:
        GrapeError: a file is missing or is not what its stage writes; says which stage to run.
    """
    names = [f"{algorithm}-{seed}" for algorithm in algorithms for seed in seeds]
    reports = root / "reports"
    stages = ("base", "sft", "critic", "reward")
    training = {stage: _records(root, reports / "train" / f"{stage}.jsonl", stage) for stage in stages}
    rl = {name: _records(root, reports / "train" / "rl" / f"{name}.jsonl", f"rl@{name}") for name in names}
    first = {name: _records(root, reports / "train" / f"{name}.jsonl", name) for name in ("prepare", "preferences")}
    first |= training | {f"rl@{name}": records for name, records in rl.items()}
    evaluations = tuple(_evaluation(root, reports / "evaluate" / name / "metrics.json", f"evaluate@{name}") for name in names)
    left = {stage: records[0] for stage, records in first.items() if records and KEPT in records[0]}
    for e in evaluations:
        if any(e.dropped.values()):
            left[f"evaluate@{e.name}"] = {KEPT: float(e.prompts), **{f"dropped/{why}": float(n) for why, n in e.dropped.items()}}
    return Inputs(
        evaluations=evaluations,
        samples={name: _lines(root, reports / "evaluate" / name / "samples.jsonl", f"evaluate@{name}")
                 for name in names},
        training={stage: [r for r in records if KEPT not in r] for stage, records in training.items()},
        rl={name: [r for r in records if KEPT not in r] for name, records in rl.items()},
        left=left,
    )


def _text(root: Path, path: Path, stage: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise GrapeError(f"the report needs this file and it is not there; stage {stage} writes it",
                         where=str(path.relative_to(root)), mend=f"run `grape run {stage}`, or `grape run pipeline`") \
            from error


def _bad(root: Path, path: Path, stage: str, problem: str) -> GrapeError:
    return GrapeError(f"this file is not what stage {stage} writes: {problem}", where=str(path.relative_to(root)),
                      mend=f"delete the file and run `grape run {stage}`")


def _evaluation(root: Path, path: Path, stage: str) -> Evaluation:
    try:
        return Evaluation.model_validate_json(_text(root, path, stage))
    except ValidationError as error:
        place, what = first_problem(error)
        raise _bad(root, path, stage, f"{place or 'the file'}: {what}") from error


def _lines(root: Path, path: Path, stage: str) -> list[dict[str, Any]]:
    _text(root, path, stage)
    try:
        return [row for _, row in read_lines(path)]
    except GrapeError as error:
        raise _bad(root, path, stage, f"line {str(error.where).rpartition(':')[2]}: {error.what}") from error


def _records(root: Path, path: Path, stage: str) -> list[Record]:
    """Training records; values that are not finite numbers (null for a metric a step does not have) are left out."""
    records = []
    for number, row in enumerate(_lines(root, path, stage), start=1):
        record = {name: float(value) for name, value in row.items() if isinstance(value, (int, float)) and isfinite(value)}
        if "step" not in record:
            raise _bad(root, path, stage, f"line {number} has no step")
        records.append(record)
    return records
