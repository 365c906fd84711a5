"""`grape run compare`: many algorithms and seeds from the same SFT policy, at the same budget, as one run of the pipeline.

It is the pipeline with `rl.algorithms` and `rl.seeds` set: what DVC has from before is not computed again, all runs stand under
one MLflow parent, and the report stage makes the league table. Stages do not run side by side unless asked to, so that the
seconds in the table are of runs that had the machine to themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from grape import slot
from grape.commands.catalogue import known
from grape.errors import GrapeError
from grape.params import edited
from grape.project import Project

# The columns that show one number as it stands in metrics.json.
NUMBERS = {
    "proxy": "{proxy:.3f}", "wins": "{win_rate:.2f}", "KL": "{kl_sequence:.2f}", "length": "{length:.1f}",
    "entropy": "{entropy:.2f}", "samples": "{samples:.0f}", "tokens": "{tokens:.0f}", "seconds": "{seconds:.0f}",
    "updates": "{updates:.0f}", "MiB": "{memory_mb:.0f}",
}  # fmt: skip
COLUMNS = ("algorithm", "seeds", "score", "difference to SFT", *NUMBERS)


def assignments(project: Project, algorithms: str | None, seeds: str | None, sets: Sequence[str] = ()) -> list[str]:
    """What `--set` gets besides: rl.algorithms and rl.seeds, and an entry under `algorithms` for a name that has none.

    Args:
        sets: what `--set` says already; it may bring names that are compared.
        algorithms: comma-separated names, or `all`: grape's own, installed ones and those params.yaml names.
        seeds: comma-separated integers. None for either leaves what stands in params.yaml.

    Raises:
        GrapeError: seeds that are not integers.
    """
    installed = known(project.root)
    params = edited(project.params, sets)[1]
    more = []
    if algorithms is not None:
        every = [*installed, *(name for name in params.algorithms if name not in installed)]
        names = every if algorithms == "all" else [n.strip() for n in algorithms.split(",") if n.strip()]
        for name in names:  # unknown ones are refused here, before anything is edited
            slot.find(name, (params.algorithms.get(name) or {}).get(slot.USE), project.root)
        more += [f"algorithms.{name}={{}}" for name in names if name not in params.algorithms]
        more.append(f"rl.algorithms={json.dumps(names)}")
    if seeds is not None:
        try:
            more.append(f"rl.seeds={json.dumps([int(seed) for seed in seeds.split(',')])}")
        except ValueError as error:
            raise GrapeError(f"cannot read {seeds!r}", where="--seeds", mend="integers with commas, e.g. 0,1,2") from error
    return more


def read(project: Project) -> dict[str, Any]:
    """reports/metrics.json."""
    metrics: dict[str, Any] = json.loads((project.root / "reports" / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """The league table of reports/metrics.json: the header, then an algorithm a row, the best first. Intervals as evaluate says.

    A mean over several seeds has a t interval over them; one seed has none, since it says nothing about others.
    """
    judge = metrics["judge"]
    table: list[tuple[str, ...]] = [COLUMNS]
    for name, row in sorted(metrics["algorithms"].items(), key=lambda item: -item[1][judge]):
        low, high = row["difference_low"], row["difference_high"]
        interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        numbers = (number.format_map(row) for number in NUMBERS.values())
        table.append((name, str(row["seeds"]), f"{row[judge]:.3f}", f"{row['difference']:+.3f}{interval}", *numbers))
    return table


def caption(metrics: dict[str, Any]) -> str:
    judge = metrics["judge"]
    score = f"score: {judge}, on test prompts, SFT has {metrics['sft'][judge]:.3f}"
    return f"{score}; KL in nats per response; samples, tokens, seconds and updates of one run"


def lines(metrics: dict[str, Any]) -> Iterator[str]:
    """The league table as lines of text."""
    table = rows(metrics)
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    yield caption(metrics)
    yield ""
    for row in table:
        cells = zip(row, widths, strict=True)
        yield "  ".join(text.ljust(width) if i in (0, 3) else text.rjust(width) for i, (text, width) in enumerate(cells))
    yield from pairwise(metrics)


def pairwise(metrics: dict[str, Any]) -> Iterator[str]:
    """What the comparison of every two comes to."""
    found = metrics["pairs"]
    if not found:
        return
    different = [one for one in found if one["different"]]
    yield ""
    yield f"{len(different)} of {len(found)} pairs differ (Holm-corrected, paired by prompt and seed; {found[0]['standing']}):"
    yield from (f"- {one['sentence']} (p {max(one['adjusted'], 0.0001):.4f})" for one in different)
    yield from (f"- {one['sentence']}" for one in found if not one["different"])
