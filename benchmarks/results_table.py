"""The results table of the README, from reports/metrics.json.

    python benchmarks/results_table.py                       print it
    python benchmarks/results_table.py --write README.md     put it between the markers of that file
    python benchmarks/results_table.py --league --write README.md docs/which.md      the table of `grape run compare`
    python benchmarks/results_table.py --league --mark smollm2 --metrics ../smol/reports/metrics.json --write docs/which.md
                                             between <!-- smollm2 --> and <!-- /smollm2 -->
    python benchmarks/results_table.py --tuned --write docs/tuning.md                what `grape tune` found

One row per policy and, with several seeds, a mean per algorithm. A policy's interval is a bootstrap over held-out prompts,
a mean's is a t interval over seeds; both at the level `evaluate.confidence`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grape.commands import league as comparison
from grape.commands import tune as tuning
from grape.errors import GrapeError
from grape.files import write_text
from grape.tuned import FILE as TUNED
from grape.tuned import read as read_tuned

BEGIN, END = "<!-- results -->", "<!-- /results -->"
METRICS = Path("reports/metrics.json")
HEADER = (
    "algorithm",
    "seed",
    "gold: SFT → policy",
    "proxy: SFT → policy",
    "difference ({judge})",
    "win rate",
    "KL per token",
    "length",
)


def read(path: Path) -> dict[str, Any]:
    """The report's numbers.

    Raises:
        GrapeError: there is no report, the file is not one, or it is of no algorithm.
    """
    mend = "run `grape run report`, or `grape run pipeline`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = found["sft"], found["policies"], found["algorithms"], found["judge"]
    except FileNotFoundError as error:
        raise GrapeError("there is no report to take the results from", where=str(path), mend=mend) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GrapeError(
            f"this is not a report's metrics.json: {type(error).__name__}: {error}", where=str(path), mend=mend
        ) from error
    if not found["algorithms"]:
        raise GrapeError("this report is of no algorithm: there is nothing to show", where=str(path), mend=mend)
    return dict(found)


def _interval(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    """`0.81 [0.78, 0.84]`; without the bounds where there are none, a dash where there is no value."""
    value, low, high = row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return "–"
    text = f"{value:{sign}.3f}"
    return text if low is None or high is None else f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _cells(name: str, seed: str, sft: Mapping[str, Any], row: Mapping[str, Any], difference: str) -> tuple[str, ...]:
    def change(judge: str) -> str:
        return "–" if row.get(judge) is None else f"{_interval({judge: sft.get(judge)}, judge)} → {_interval(row, judge)}"

    return (
        name,
        seed,
        change("gold"),
        change("proxy"),
        difference,
        _interval(row, "win_rate"),
        f"{row['kl_token']:.3f}",
        f"{row['length']:.1f}",
    )


def table(metrics: Mapping[str, Any]) -> str:
    """Markdown: every policy in order of algorithm and seed, each algorithm's mean after its seeds."""
    judge, sft = metrics["judge"], metrics["sft"]
    rows: list[Sequence[str]] = [tuple(cell.format(judge=judge) for cell in HEADER), ("---",) * len(HEADER)]
    for name, mean in metrics["algorithms"].items():
        runs = sorted((p for p in metrics["policies"].values() if p["algorithm"] == name), key=lambda p: int(p["seed"]))
        rows += [_cells(name, str(run["seed"]), sft, run, _interval(run["difference"], judge, "+")) for run in runs]
        if len(runs) > 1:
            label = f"mean of {mean['seeds']}"
            rows.append([f"**{cell}**" for cell in _cells(name, label, sft, mean, _interval(mean, "difference", "+"))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def league(metrics: dict[str, Any]) -> str:
    """Markdown: an algorithm a row, the best first, as `grape run compare` prints it."""
    head, *rows = comparison.rows(metrics)
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join([*lines, "", f"*{comparison.caption(metrics)}; {comparison.COLUMNS[3]}: mean and 95 % interval over seeds*"])


def tuned(root: Path) -> str:
    """Markdown: an algorithm a row with the settings found for it, as `grape tune` prints it.

    Raises:
        GrapeError: nothing was tuned there.
    """
    found = tuning.ordered(read_tuned(root))
    if not found:
        raise GrapeError("nothing was tuned yet", where=str(root / TUNED), mend="run `grape tune --algorithms all` there first")
    rows = [(*tuning.row(name, entry), tuning.settings(entry)) for name, entry in found]
    head = (*tuning.COLUMNS, "best settings")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def write(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between the markers of `path` by `text`, in one step.

    Raises:
        GrapeError: the file cannot be read, or does not have each marker once, in order.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GrapeError(f"cannot be read: {error}", where=str(path)) from error
    head, found, rest = before.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed or begin in rest or end in head + tail:
        raise GrapeError(
            "the place for the results is not marked",
            where=str(path),
            mend=f"put a line {begin} and below it a line {end} where the table belongs, once",
        )
    write_text(path, f"{head}{begin}\n{text}\n{end}{tail}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the results of the last report as a Markdown table.")
    parser.add_argument("--metrics", type=Path, default=METRICS, help=f"default: {METRICS}")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", nargs="+", default=[], help="replace the block between the markers of these files"
    )
    parser.add_argument("--league", action="store_true", help="the table of `grape run compare`")
    parser.add_argument("--tuned", action="store_true", help="the table of `grape tune`")
    parser.add_argument("--project", type=Path, default=Path(), help="whose inputs/tuned.yaml; default: here")
    parser.add_argument("--mark", metavar="NAME", help="write between <!-- NAME --> and <!-- /NAME -->")
    given = parser.parse_args(arguments)
    try:
        if given.tuned:
            text, mark = tuned(given.project), "tuned"
        elif given.league:
            text, mark = league(read(given.metrics)), "league"
        else:
            text, mark = table(read(given.metrics)), "results"
        if not given.write:
            print(text)
        mark = given.mark or mark
        for path in given.write:
            write(path, text, f"<!-- {mark} -->", f"<!-- /{mark} -->")
    except GrapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
