"""What came of it, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.speed.growth import BASE, SHAPES, Shape
from benchmarks.speed.machine import Machine
from benchmarks.speed.turns import Step, Times, ratios
from benchmarks.speed.work import NEW, PAIRS, PROMPTS, ROWS, SAMPLES, Work

TITLES = {
    "grpo": f"GRPO, {PROMPTS} x {SAMPLES} rows",
    "sft": f"SFT, {ROWS} rows",
    "dpo": f"DPO, {PAIRS} pairs, reference included",
    "reward": f"reward model, {PAIRS} pairs",
    "sampling": f"sampling alone, {PROMPTS} x {SAMPLES} rows",
}
BEST = "best of each"


@dataclass(frozen=True)
class Result:
    """A contest: grape's times first, then the others'; and why others are not there."""

    scale: str
    case: str
    dtype: str
    times: Sequence[Times]
    absent: Mapping[str, str] = field(default_factory=dict)
    checked: Sequence[str] = ()


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rows(*lines: Sequence[str]) -> list[str]:
    """A table whose first line is its head."""
    return [row(lines[0]), row(["---"] * len(lines[0])), *map(row, lines[1:])]


def machine(found: Machine) -> list[str]:
    known = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    return [
        f"{found.name}, {found.cores} cores, {found.threads} threads ({', '.join(found.flags) or 'no flags known'}), computing on "
        f"{found.device}; {known}. Matrix products reach {found.tflops['float32']:.3f} TFLOP/s in float32 and "
        f"{found.tflops['bfloat16']:.3f} in bfloat16, copies {found.copy:.1f} GB/s (read and written)."
    ]


def settings(times: Times) -> str:
    """Which of its settings a side was fastest with."""
    job = times.job
    if "micro" in job:
        return f"micro-batches of {job['micro']}" if times.side == "grape" and job["case"] != "sampling" else ""
    said = [f"{job['parts']} micro-batches"] if job.get("parts", 1) > 1 else []
    said += [f"weights in {job['weights']}"] if job.get("weights", "float32") != "float32" else []
    said += [f"{job['threads']} thread" + "s" * (job["threads"] > 1)] if job.get("threads") else []
    return ", ".join(said)


def seconds(times: Times) -> str:
    more = f" (sampling {clock(times.source)})" if times.job["case"] == "grpo" else ""
    return clock(times.median) + more


def clock(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def comparison(results: Sequence[Result]) -> list[str]:
    """A line a contest and opponent."""
    head = ("step", "dtype", "grape", "against", "theirs", "theirs / ours", "MiB: ours, theirs", "settings: ours; theirs")
    lines: list[Sequence[str]] = [head]
    for result in results:
        ours = result.times[0]
        for theirs in result.times[1:]:
            middle, low, high = ratios(ours, theirs)
            lines.append((
                TITLES[result.case], result.dtype, seconds(ours), theirs.side, seconds(theirs),
                f"**{middle:.2f}** [{low:.2f}, {high:.2f}]", f"{ours.peak:.0f}, {theirs.peak:.0f} ({ours.peak / theirs.peak:.2f})",
                f"{settings(ours) or 'one'}; {settings(theirs) or 'one'}",
            ))  # fmt: skip
    notes = {f"{name} does not run here: {why}" for result in results for name, why in result.absent.items()}
    return rows(*lines) + [line for note in sorted(notes) for line in ("", note)]


def bounds(results: Sequence[Result], work: Work, peak: Machine) -> list[str]:
    """The share of the matrix products' peak that grape's updates reach, and of the copies' rate that its sampling does."""
    lines: list[Sequence[str]] = [("step", "dtype", "update", "TFLOP", "TFLOP/s", "share of the peak")]
    for result in results:
        if result.case not in ("grpo", "sft") or " " in result.dtype:
            continue
        ours = result.times[0]
        took = median(step["seconds"] - step.get("source", 0.0) for step in ours.steps)
        repeated = (SAMPLES - 1) * sum(len(ids) for _, ids in work.prompts) if result.case == "grpo" else 0
        needed = flops(work, ours.steps[-1], repeated) / 1e12
        reached = f"{needed / took:.3f}", f"{needed / took / peak.tflops[result.dtype]:.0%}"
        lines.append((TITLES[result.case], result.dtype, clock(took), f"{needed:.2f}", *reached))
    parts = (rows(*lines) if len(lines) > 1 else [], reading(results, work, peak))
    return [line for part in parts if part for line in ("", *part)]


def reading(results: Sequence[Result], work: Work, peak: Machine) -> list[str]:
    """What a token costs to sample at least: every weight is read once for all rows."""
    lines = []
    for result in results:
        if result.case == "sampling" and " " not in result.dtype:
            read = 4 * (work.trunk + work.head) * NEW / 1e9
            rate = read / result.times[0].median
            share = f"{rate:.1f} GB/s, {rate / peak.copy:.0%} of what copies reach."
            lines.append(f"Sampling in {result.dtype} reads all weights for each of {NEW} tokens, {read:.1f} GB: {share}")
    return lines


def flops(work: Work, step: Step, repeated: int = 0) -> float:
    """6 x (weights of the blocks x tokens + weights of the head x tokens learned): 2 forward and 4 back, of what must be computed.
    Padding, `repeated` tokens of prompts that another row has, what is computed twice and attention's products do not count."""
    return 6.0 * (work.trunk * (float(step["tokens"]) - repeated) + work.head * float(step["learned"]))


def growth(steps: Sequence[Step]) -> list[str]:
    """Of a process that took the shapes in turn: medians, and each over the base shape's."""
    found = {shape: steps[i :: len(SHAPES)] for i, shape in enumerate(SHAPES)}

    def parts(shape: Shape) -> tuple[float, float]:
        return (median(step["source"] for step in found[shape]), median(step["seconds"] - step["source"] for step in found[shape]))

    base = parts(BASE)
    lines: list[Sequence[str]] = [
        ("prompts", "group", "prompt", "completion", "blocks", "sampling", "update", "sampling / base", "update / base")
    ]
    for shape in SHAPES:
        mine = parts(shape)
        over = (f"{a / b:.2f}" for a, b in zip(mine, base, strict=True))
        which = (str(shape.prompts), str(shape.samples), str(shape.prompt), str(shape.new), f"{shape.blocks:.0%}")
        lines.append((*which, *map(clock, mine), *over))
    return rows(*lines)
