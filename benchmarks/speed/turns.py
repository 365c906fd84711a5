"""Processes that step in turns, A B A B .., so that what else runs here meets both alike; and whether they do the same work."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from grape.errors import GrapeError

Step = dict[str, Any]
WARM = 2  # steps before any that counts: the first compares losses, the second is the first of its kind
COMPARED = 3  # steps whose losses are compared, where both learn from the same rows
# Both sides do the same sums in another order, in bfloat16 with 8 bits. Adam makes a full step of a gradient that is nearly
# nothing, whatever its sign, so what differs at first in the last bits differs more from step to step.
LOSS_OFF = {"float32": 1e-4, "bfloat16": 2e-2}
NORM_OFF = {"float32": 1e-3, "bfloat16": 5e-2}


class Worker:
    """A process that steps when it is told to (`benchmarks.speed.gate`)."""

    def __init__(self, module: str, job: Mapping[str, Any], log: Path) -> None:
        self.module, self.job, self.log, self.steps = module, dict(job), log, list[Step]()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(self.job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def step(self) -> Step:
        """
        Raises:
            GrapeError: the process has ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells more
        self.steps.append(self._read())
        return self.steps[-1]

    def _read(self) -> Step:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            said = self.log.read_text(errors="replace").strip().splitlines()
            raise GrapeError(
                f"{self.module} ended before its step was done: {said[-1] if said else 'it said nothing'}",
                where=json.dumps(self.job),
                mend="run that line's job alone: python -m MODULE JOB",
            )
        found: Step = json.loads(line)
        return found


@dataclass(frozen=True)
class Side:
    """Who takes part: its name, its module, and the settings among which the fastest is taken."""

    name: str
    module: str
    jobs: Sequence[Mapping[str, Any]]
    optional: bool = False  # it may not run on this machine


@dataclass(frozen=True)
class Times:
    """What a side took: seconds of each turn, its source's share of them (sampling, the reference), and its settings.

    Attributes:
        steps: those that count. all: the first ones too.
    """

    side: str
    job: Mapping[str, Any]
    steps: Sequence[Step]
    all: Sequence[Step] = field(default=(), repr=False)

    @property
    def seconds(self) -> list[float]:
        return [step["seconds"] for step in self.steps]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def source(self) -> float:
        return median(step.get("source", 0.0) for step in self.steps)

    @property
    def peak(self) -> float:
        """MiB."""
        return float(self.steps[-1]["peak_mb"])


def fastest(side: Side, logs: Path, tries: int) -> Worker:
    """A process of the side's fastest settings, warm. The slower ones are ended, so that few are there at once."""
    best: Worker | None = None
    for i, job in enumerate(side.jobs):
        worker = Worker(side.module, job, logs / f"{side.name}-{i}.log".replace(" ", "-"))
        try:
            for _ in range(WARM + (tries if len(side.jobs) > 1 else 0)):
                worker.step()
        except BaseException:
            worker.close()
            if best:
                best.close()
            raise
        loser = worker
        if best is None or _tried(worker) < _tried(best):
            loser, best = best, worker  # type: ignore[assignment]
        if loser:
            loser.close()
    assert best is not None
    return best


def _tried(worker: Worker) -> float:
    return min((step["seconds"] for step in worker.steps[WARM:]), default=math.inf)


def contest(sides: Sequence[Side], logs: Path, turns: int, tries: int = 2) -> tuple[list[Times], dict[str, str]]:
    """`turns` steps of each side, in turns; and of those that do not run here, why."""
    workers, absent = dict[str, Worker](), dict[str, str]()
    try:
        for side in sides:
            try:
                workers[side.name] = fastest(side, logs, tries)
            except GrapeError as error:
                if not side.optional:
                    raise
                absent[side.name] = error.what
        for _ in range(turns):
            for worker in workers.values():
                worker.step()
        return [Times(name, w.job, w.steps[-turns:], w.steps) for name, w in workers.items()], absent
    finally:
        for worker in workers.values():
            worker.close()


def ratios(ours: Times, theirs: Times) -> tuple[float, float, float]:
    """Their time over ours: median, smallest and largest of the turns."""
    found = sorted(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True))
    return median(found), found[0], found[-1]


def check(case: str, dtype: str, ours: Times, theirs: Times) -> list[str]:
    """That both did the same work: tokens of every step, and of those on the same rows, losses and norms of the gradient.

    Returns:
        What was compared, for people.

    Raises:
        GrapeError: something differs.
    """
    both = list(zip(ours.all, theirs.all, strict=False))
    for i, (a, b) in enumerate(both):
        for name in ("tokens", "learned"):
            if name in a and name in b and a[name] != b[name]:
                raise _differs(case, dtype, theirs, i, name, a[name], b[name])
    if "loss" not in ours.all[0]:
        return [f"{ours.all[-1]['tokens']} tokens"]
    same = both[: 1 if case == "grpo" else COMPARED]  # from the second on GRPO learns from samples, which differ
    for i, (a, b) in enumerate(same):
        # What Adam makes of rounding grows; a wrong objective differs at once.
        more = 1 if i == 0 else 10
        if not abs(a["loss"] - b["loss"]) <= more * LOSS_OFF[dtype] * max(abs(a["loss"]), 0.01):
            raise _differs(case, dtype, theirs, i, "loss", a["loss"], b["loss"])
        if not abs(a["grad_norm"] - b["grad_norm"]) <= more * NORM_OFF[dtype] * max(abs(a["grad_norm"]), 1e-3):
            raise _differs(case, dtype, theirs, i, "grad_norm", a["grad_norm"], b["grad_norm"])
    if case == "dpo" and not abs(ours.all[0]["loss"] - math.log(2)) <= LOSS_OFF[dtype]:
        raise _differs(case, dtype, theirs, 0, "loss of ln 2", ours.all[0]["loss"], math.log(2))
    losses = ", ".join(f"{a['loss']:.5f} / {b['loss']:.5f}" for a, b in same)
    norms = ", ".join(f"{a['grad_norm']:.4f} / {b['grad_norm']:.4f}" for a, b in same)
    return [f"{ours.all[-1]['tokens']} tokens", f"losses {losses}", f"norms of the gradient {norms}"]


def _differs(case: str, dtype: str, theirs: Times, step: int, name: str, a: float, b: float) -> GrapeError:
    return GrapeError(
        f"the two sides do not do the same work: {name} {a} of grape, {b} of {theirs.side}",
        where=f"{case} in {dtype}, step {step}",
        mend="nothing was written; see what changed in either (benchmarks/speed/ours.py, theirs.py)",
    )
