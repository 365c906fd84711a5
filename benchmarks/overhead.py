"""What the pipeline costs beside its stages' own work: every stage of the default world with next to nothing to do.

    python -m benchmarks.overhead                                  # prints Markdown; about two minutes
    python -m benchmarks.overhead --write docs/performance.md      # puts it between that page's markers

Works in a copy of the last commit. `own work` is the stage's from the receipt, from its first line to its last artifact.
`imports` is a process that imports the stage's module and ends. The rest is the process's start, DVC (hashes, cache, lock file),
MLflow and Prefect; stages of a run wait for one another, and for Prefect's server at its beginning.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_table import write
from benchmarks.speed.machine import processor

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- overhead -->", "<!-- /overhead -->"
LITTLE = ["base.steps=2", "sft.steps=2", "critic.steps=2", "reward.steps=2", "rl.steps=1", "preferences.margin=0"]
ASKED = (["--help"], ["plan"], ["run", "pipeline"])


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of a command, and what it says. Raises SystemExit: it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRAPE")} | {"PYTHONPATH": str(folder)}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began, done.stdout


def median(command: list[str], folder: Path, times: int = 3) -> float:
    return statistics.median(timed(command, folder)[0] for _ in range(times))


def grape(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "grape.cli", *arguments]


def measured(folder: Path) -> dict[str, Any]:
    """Commands -> seconds; stages -> (of the run, own work, imports)."""
    settings = [part for knob in LITTLE for part in ("--set", knob)]
    whole, said = timed(grape("run", "pipeline", "--json", *settings), folder)
    stages = {}
    for name, facts in json.loads(said)["stages"].items():
        receipt = json.loads((folder / f"reports/receipts/{name}.json").read_text())
        imports = median([sys.executable, "-c", f"import grape.stages.{name.partition('@')[0]}"], folder, 1)
        stages[name] = (facts["seconds"], receipt["seconds"], imports)
    commands = {" ".join(["grape", *words]): median(grape(*words), folder) for words in ASKED}
    return {"whole": whole, "stages": stages, "commands": commands}


def table(found: dict[str, Any], machine: str) -> str:
    lines = [machine, "", "| command, everything up to date | s |", "| --- | --- |"]
    lines += [f"| `{command}` | {seconds:.2f} |" for command, seconds in found["commands"].items()]
    lines += ["", "| stage | in the run, s | own work | imports | the rest |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {of_run:.1f} | {own:.1f} | {imports:.1f} | {max(of_run - own - imports, 0):.1f} |"
        for name, (of_run, own, imports) in found["stages"].items()
    ]
    sums = [sum(column) for column in zip(*found["stages"].values(), strict=True)]
    rest = max(sums[0] - sums[1] - sums[2], 0)
    lines += [f"| all | {sums[0]:.1f} | {sums[1]:.1f} | {sums[2]:.1f} | {rest:.1f} |", ""]
    return "\n".join([*lines, f"The run took {found['whole']:.1f} s."])


def main() -> None:
    given = argparse.ArgumentParser(description="Time what the pipeline costs beside its stages' own work.")
    given.add_argument("--write", type=Path, help="a page with the markers; else the tables are printed")
    asked = given.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        text = table(measured(folder), f"{processor()[0]}, {os.cpu_count()} cores, {datetime.date.today()}")
    if asked.write:
        write(asked.write, text, *MARKS)
    print(text)


if __name__ == "__main__":
    main()
