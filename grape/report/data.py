"""Inputs of the report: evaluations, training records, samples, read by the names in params.yaml and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from pydantic import ValidationError

from grape import looks, tuned
from grape.budget import COUNTS, used
from grape.errors import GrapeError, first_problem
from grape.evaluation.judges import JudgesReport, read_judges
from grape.evaluation.record import Evaluation, JudgeName, Sample
from grape.files import Row, read_lines
from grape.looks import Look
from grape.needed import KEY as NOT_NEEDED
from grape.needed import REASONS
from grape.needed import UNMADE_KEY as UNMADE
from grape.tuned import Tuned

TrainingRecord = dict[str, float]
KEPT = "rows/kept"  # only the record that says what a stage left out has it


@dataclass(frozen=True)
class Cost:
    """Of one rl run: seconds in its rounds (loading and saving aside), answers that were sampled (of pairs: read), their tokens
    with those of the prompts, optimiser updates; peak resident MiB of its process, everything loaded included."""

    seconds: float
    samples: float
    tokens: float
    updates: float
    memory_mb: float


@dataclass(frozen=True)
class ReportInputs:
    """All the report is made from.

    Attributes:
        evaluations, samples: of the test prompts, which every number is made from that compares policies.
        validation, shown: of the validation prompts, which the champion is chosen by and people look at.
        looks: at this test split, at other policies than these.
        training: base, sft, critic, reward to records. rl: each policy's name likewise.
        left: a stage to what it says of its rows: `rows/kept`, `dropped/REASON`.
        unneeded: a stage that was not run to the reason. unmade: one that found nothing to make.
        judges: how far they agree, where the critic stage has run. tuned: what `grape tune` found for an algorithm.
    """

    evaluations: tuple[Evaluation, ...]
    validation: tuple[Evaluation, ...]
    samples: dict[str, list[Sample]]
    shown: dict[str, list[Sample]]
    looks: tuple[Look, ...]
    training: dict[str, list[TrainingRecord]]
    rl: dict[str, list[TrainingRecord]]
    left: dict[str, TrainingRecord]
    unneeded: dict[str, str]
    unmade: dict[str, str]
    judges: JudgesReport | None = None
    tuned: dict[str, Tuned] = field(default_factory=dict)

    def cost(self, name: str) -> Cost:
        """What training policy `name` took."""
        records = self.rl[name]
        took = {unit: used(records, unit) for unit in COUNTS}
        return Cost(**took, memory_mb=max((r.get("memory/peak_mb", 0.0) for r in records), default=0.0))

    @property
    def judge(self) -> JudgeName:
        """Gold where every policy has it, else proxy."""
        return "gold" if all(e.policy.gold and e.sft.gold and e.difference.gold for e in self.evaluations) else "proxy"

    @property
    def algorithms(self) -> list[str]:
        return list(dict.fromkeys(evaluation.algorithm for evaluation in self.evaluations))

    def of(self, algorithm: str) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if evaluation.algorithm == algorithm]


def read(root: Path, algorithms: Sequence[str], seeds: Sequence[int]) -> ReportInputs:
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
    found = {kind: {name: _evaluation(root, kind, name) for name in names} for kind in ("evaluate", "test")}
    _refuse_others(found["evaluate"], found["test"])
    left = {stage: records[0] for stage, records in first.items() if records and KEPT in records[0]}
    for kind, evaluations in found.items():
        for e in evaluations.values():
            if any(e.dropped.values()):
                left[f"{kind}@{e.name}"] = {KEPT: float(e.prompts), **{f"dropped/{why}": float(n) for why, n in e.dropped.items()}}
    samples = {
        kind: {name: _samples(root, reports / kind / name / "samples.jsonl", f"{kind}@{name}") for name in names} for kind in found
    }
    unneeded, unmade = (_said(root, key) for key in (NOT_NEEDED, UNMADE))
    training = {stage: [] if stage in unneeded or stage in unmade else found for stage, found in training.items()}
    steps = [{name: [r for r in found if KEPT not in r] for name, found in records.items()} for records in (training, rl)]
    tested = tuple(found["test"].values())
    return ReportInputs(
        evaluations=tested,
        validation=tuple(found["evaluate"].values()),
        samples=samples["test"],
        shown=samples["evaluate"],
        # No dependency of the stage: it says how often the prompts had been looked at when this comparison was made.
        looks=tuple(looks.others(root, tested[0].data, {run.weights for run in tested})),
        training=steps[0],
        rl=steps[1],
        left=left,
        unneeded=unneeded,
        unmade=unmade,
        judges=None if "critic" in unneeded else read_judges(root),
        tuned=tuned.read(root),
    )


def _refuse_others(validation: Mapping[str, Evaluation], test: Mapping[str, Evaluation]) -> None:
    """
    Raises:
        GrapeError: what was tested is not what was evaluated.
    """
    for name, run in test.items():
        if run.weights != validation[name].weights:
            what, where = f"{name} was tested with other weights than it was evaluated with", f"reports/test/{name}/metrics.json"
            raise GrapeError(what, where=where, mend=f"run `grape run test@{name} evaluate@{name}`")


def _text(root: Path, path: Path, stage: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        what, mend = f"the report needs this file and it is not there; stage {stage} writes it", f"run `grape run {stage}`"
        raise GrapeError(what, where=str(path.relative_to(root)), mend=f"{mend}, or `grape run pipeline`") from error


def _bad(root: Path, path: Path, stage: str, problem: str) -> GrapeError:
    what, mend = f"this file is not what stage {stage} writes: {problem}", f"delete the file and run `grape run {stage}`"
    return GrapeError(what, where=str(path.relative_to(root)), mend=mend)


def _evaluation(root: Path, kind: str, name: str) -> Evaluation:
    path, stage = root / "reports" / kind / name / "metrics.json", f"{kind}@{name}"
    try:
        return Evaluation.model_validate_json(_text(root, path, stage))
    except ValidationError as error:
        place, what = first_problem(error)
        raise _bad(root, path, stage, f"{place or 'the file'}: {what}") from error


def _samples(root: Path, path: Path, stage: str) -> list[Sample]:
    samples = []
    for number, row in _lines(root, path, stage):
        try:
            samples.append(Sample.model_validate(row))
        except ValidationError as error:
            raise _bad(root, path, stage, f"line {number}: {': '.join(first_problem(error))}") from error
    return samples


def _lines(root: Path, path: Path, stage: str) -> list[tuple[int, Row]]:
    _text(root, path, stage)
    try:
        return list(read_lines(path))
    except GrapeError as error:
        raise _bad(root, path, stage, f"line {str(error.where).rpartition(':')[2]}: {error.what}") from error


def _said(root: Path, key: str) -> dict[str, str]:
    """Stage -> the reason that stands under `key` in its records, of those that have one."""
    files = {stage: root / "reports" / "train" / f"{stage}.jsonl" for stage in REASONS}
    return {stage: str(row[key]) for stage, path in files.items() for _, row in _lines(root, path, stage) if key in row}


def _records(root: Path, path: Path, stage: str) -> list[TrainingRecord]:
    """Training records; values that are not finite numbers (null for a metric a step does not have) are left out."""
    records = []
    for number, row in _lines(root, path, stage):
        record = {name: float(value) for name, value in row.items() if isinstance(value, (int, float)) and isfinite(value)}
        if "step" not in record:
            raise _bad(root, path, stage, f"line {number} has no step")
        records.append(record)
    return records
