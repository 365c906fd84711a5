"""Stage `report`: read the evaluations and training records, write metrics.json, report.md and index.html.

Also moves the champion alias of the registered policy, and puts the plots, the page and the alarms into MLflow.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from grape.files import write_sorted, write_text
from grape.report import alarms, conclusions, data, findings, pairs, plots, render, tuning

if TYPE_CHECKING:
    from grape.stages.stage import Stage


def run(stage: Stage) -> None:
    """Write the report of the policies named by rl.algorithms x rl.seeds."""
    params, root = stage.params, stage.project.root
    inputs = data.read(root, params.rl.algorithms, params.rl.seeds)
    level = params.evaluate.confidence
    figures = plots.draw(inputs, level)
    values = render.context(inputs, level, params.report, figures, params.rl.budget)
    metrics = {**conclusions.metrics(inputs, level), "rubric": findings.numbers(inputs, params.report)}
    metrics["pairs"] = pairs.numbers(pairs.compared(inputs, level))
    metrics["tuned"] = tuning.numbers(inputs)
    reports = root / "reports"
    pages = {"report.md": render.markdown(values), "index.html": render.html(values)}
    write_sorted(reports / "metrics.json", metrics)
    for name, text in pages.items():
        write_text(reports / name, text)

    for name in sorted(inputs.samples):
        stage.run.dataset(f"reports/evaluate/{name}", "validation")
        stage.run.dataset(f"reports/test/{name}", "test")
    for name in ("metrics.json", *pages):
        stage.run.artifact(reports / name)
    with tempfile.TemporaryDirectory() as folder:
        for name, png in figures.items():
            path = Path(folder) / f"{name}.png"
            path.write_bytes(png)
            stage.run.artifact(path, "plots")
    found = alarms.alarms(inputs, params.report.missing)
    stage.run.tag({"grape.alarms": alarms.text(found)})
    stage.run.headline({**conclusions.headline(inputs, level), "alarms": float(len(found))})
    stage.run.champion(conclusions.candidates(inputs))
