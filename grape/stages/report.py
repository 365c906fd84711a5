"""Stage `report`: read the evaluations and training records, write metrics.json, report.md and index.html.

Also moves the champion alias of the registered policy, and puts the plots, the page and the alarms into MLflow.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from grape.report import alarms, data, plots, render, rubric, summary

if TYPE_CHECKING:
    from grape.stages.stage import Stage


def run(stage: Stage) -> None:
    """Write the report of the policies named by rl.algorithms x rl.seeds."""
    params, root = stage.params, stage.project.root
    inputs = data.read(root, params.rl.algorithms, params.rl.seeds)
    level = params.evaluate.confidence
    figures = plots.draw(inputs)
    values = render.context(inputs, level, params.report, figures)
    metrics = {**summary.metrics(inputs, level), "rubric": rubric.numbers(inputs, params.report)}
    files = {"metrics.json": json.dumps(metrics, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
             "report.md": render.markdown(values), "index.html": render.html(values)}
    for name, text in files.items():
        _write(root / "reports" / name, text)

    for name in sorted(inputs.samples):
        stage.run.dataset(f"reports/evaluate/{name}", "evaluation")
    for name in files:
        stage.run.artifact(root / "reports" / name)
    with tempfile.TemporaryDirectory() as folder:
        for name, png in figures.items():
            path = Path(folder) / f"{name}.png"
            path.write_bytes(png)
            stage.run.artifact(path, "plots")
    found = alarms.alarms(inputs, params.report.missing)
    stage.run.tag({"grape.alarms": alarms.text(found)})
    stage.run.headline({**summary.headline(inputs, level), "alarms": float(len(found))})
    stage.run.champion(summary.candidates(inputs))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
