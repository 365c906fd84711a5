"""grape and TRL on the same work, timed in turns in one run; prints Markdown.

make bench                                            # both scales, every step, both dtypes
make bench ARGS="--scale tiny --only grpo,sft"        # less of it
make bench ARGS="--write docs/performance.md"         # put the tables between that page's markers
python -m benchmarks.speed --only growth              # grape alone, without TRL
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results_table import write
from benchmarks.speed import growth, tables
from benchmarks.speed.machine import Machine
from benchmarks.speed.tables import BEST, TITLES, Result
from benchmarks.speed.turns import WARM, Side, Times, Worker, check, contest
from benchmarks.speed.work import SCALES, Work
from grape.errors import GrapeError, nearest

MARKS = "<!-- speed -->", "<!-- /speed -->"
GROWTH = "growth"
DTYPES = ("float32", "bfloat16")
OURS, THEIRS = "benchmarks.speed.ours", "benchmarks.speed.theirs"
TRL = "TRL"


def listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type of arguments: names with commas between them."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"nothing is known of {name!r}: {nearest(name, known, 'one of %s')}")
        if not names:
            raise argparse.ArgumentTypeError(f"name some of {', '.join(known)}")
        return names

    return parse


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Time grape beside TRL on the same work.")
    made.add_argument("--scale", type=listed(list(SCALES)), default=list(SCALES), help=f"some of {', '.join(SCALES)}")
    made.add_argument(
        "--only", type=listed([*TITLES, GROWTH]), default=[*TITLES, GROWTH], help=f"some of {', '.join([*TITLES, GROWTH])}"
    )
    made.add_argument("--dtype", type=listed(DTYPES), default=list(DTYPES), help="of matrix products; float32, bfloat16 or both")
    made.add_argument("--micro", type=positive_list, default=[1024, 4096], help="micro-batch tokens that grape tries: 1024,4096")
    made.add_argument("--model", help="a folder, in place of the model of scale smollm2")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--turns", type=positive, default=5, help="steps of each side that count (5)")
    how.add_argument("--quick", action="store_true", help="one turn, the first settings alone: to see that it runs")
    made.add_argument(
        "--write", type=Path, nargs="+", metavar="FILE", default=[], help="put the tables between the markers of these files"
    )
    return made


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_list(text: str) -> list[int]:
    return [positive(part.strip()) for part in text.split(",")]


def sides(case: str, work: Path, dtype: str, scale: str, given: argparse.Namespace, threads: int) -> list[Side]:
    """Who takes part, grape first, and the settings that each is tried with. Small models may be faster with one thread: grape
    decides that itself, the others are tried with both."""
    base = {"case": case, "work": str(work), "dtype": dtype}
    counts = [0, 1] if scale == "tiny" and threads > 1 else [0]
    ours = [{**base, "micro": micro} for micro in (given.micro if case != "sampling" else given.micro[:1])]
    if case == "sampling":
        kept = [weights for weights in ("float32", "bfloat16") if weights == "float32" or dtype == "bfloat16"]
        jobs = [{**base, "weights": weights, "threads": count} for weights in kept for count in counts]
        others = [
            Side("`generate`", THEIRS, [{**job, "case": "generate"} for job in jobs]),
            Side("continuous batching", THEIRS, [{**job, "case": "continuous"} for job in jobs], optional=True),
        ]
    else:
        others = [Side(TRL, THEIRS, [{**base, "parts": parts, "threads": count} for parts in (1, 4) for count in counts])]
    found = [Side("grape", OURS, ours), *others]
    return [replace(side, jobs=side.jobs[:1]) for side in found] if given.quick else found


def compare(case: str, scale: str, folder: Path, given: argparse.Namespace, threads: int) -> list[Result]:
    """A contest for each dtype; and one of each side's best dtype, where they are not the same."""

    def held(dtype: str, taking: Sequence[Side]) -> Result:
        times, absent = contest(taking, folder, 1 if given.quick else given.turns, 0 if given.quick else 1)
        checks = [] if BEST in dtype else [line for other in times[1:] for line in check(case, dtype, times[0], other)]
        said(
            f"{scale}, {case}, {dtype}: {'; '.join(f'{t.side} {tables.clock(t.median)}' for t in times)}; same: {'; '.join(checks)}"
        )
        return Result(scale, case, dtype, times, absent, checks)

    results = [held(dtype, sides(case, folder / "work.json", dtype, scale, given, threads)) for dtype in given.dtype]
    quickest: dict[str, Times] = {}
    for times in (times for result in results for times in result.times):
        if times.side not in quickest or times.median < quickest[times.side].median:
            quickest[times.side] = times
    if len({times.job["dtype"] for times in quickest.values()}) > 1:
        chosen = [Side(t.side, OURS if t.side == "grape" else THEIRS, [t.job]) for t in quickest.values()]
        named = ", ".join(f"{t.side} {t.job['dtype']}" for t in quickest.values())
        results.append(held(f"{BEST}: {named}", chosen))
    return results


def grown(folder: Path, given: argparse.Namespace, dtype: str) -> list[str]:
    """The table of `benchmarks.speed.growth`."""
    job = {"work": str(folder / "work.json"), "dtype": dtype, "micro": given.micro[-1]}
    worker = Worker("benchmarks.speed.growth", job, folder / "growth.log")
    try:
        for _ in range((1 + (1 if given.quick else given.turns)) * len(growth.SHAPES)):
            worker.step()
        return tables.growth(worker.steps[len(growth.SHAPES) :])
    finally:
        worker.close()


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def asked(module: str, *arguments: str) -> str:
    """What a process of its own prints: this one stays small."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = " ".join((done.stderr.strip().splitlines() or ["it said nothing"])[-2:])
        raise GrapeError(f"{module} has failed: {last}", where=" ".join(arguments) or None)
    return done.stdout


def measured(given: argparse.Namespace) -> list[str]:
    """The page's lines."""
    peak = Machine(**json.loads(asked("benchmarks.speed.machine")))
    turns = 1 if given.quick else given.turns
    day = datetime.date.today().isoformat()
    lines = [
        *tables.machine(peak),
        "",
        f"{day}; medians of {turns} turns after {WARM} steps of warm-up or more; ratios: median [least, most].",
    ]
    fast = max(given.dtype, key=lambda dtype: peak.tflops[dtype])
    for scale in given.scale:
        with tempfile.TemporaryDirectory(prefix="speed-") as made:
            folder = Path(made)
            asked("benchmarks.speed.work", scale, (given.model or "") if scale != "tiny" else "", made)
            work = Work.read(folder / "work.json")
            lines += [
                "",
                f"**{scale}** ({(work.trunk + work.head) / 1e6:.1f} million weights, {work.head / 1e6:.1f} of them in the head)",
            ]
            cases = [case for case in given.only if case != GROWTH]
            results = [found for case in cases for found in compare(case, scale, folder, given, peak.threads)]
            lines += ["", *tables.comparison(results)] if results else []
            # grape computes a tiny model with one thread, and the peak is that of all.
            lines += tables.bounds(results, work, peak) if scale != "tiny" else []
            lines += ["", f"grape alone, {fast}:", "", *grown(folder, given, fast)] if GROWTH in given.only else []
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    # Nothing is fetched, nothing is reported elsewhere.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        refuse(given)
        text = "\n".join(measured(given))
        print(text)
        for path in given.write:
            write(path, text, *MARKS)
    except GrapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def refuse(given: argparse.Namespace) -> None:
    """
    Raises:
        GrapeError: what is asked for needs something that is not there.
    """
    if given.model and "smollm2" not in given.scale:
        raise GrapeError(
            "it would have no effect", where="--model", mend="it takes the place of scale smollm2's model: name that scale"
        )
    if given.model and not Path(given.model).exists():
        raise GrapeError("there is no such folder or file", where=f"--model {given.model}", mend="it counts from here")
    if set(given.only) - {GROWTH, "sampling"} and importlib.util.find_spec("trl") is None:
        raise GrapeError(
            "TRL is not installed here",
            where="--only",
            mend="run `make bench`, or pip install 'grape[bench]'; --only growth needs none",
        )
    for path in given.write:
        text: Any = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not all(mark in text for mark in MARKS):
            raise GrapeError(
                "the place for the tables is not marked", where=str(path), mend=f"put lines {MARKS[0]} and {MARKS[1]} into it"
            )


if __name__ == "__main__":
    sys.exit(main())
