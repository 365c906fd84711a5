"""What `grape tune` found, beside the results: an algorithm whose trials lie far apart needs care, whatever its best one is."""

from __future__ import annotations

import json
from typing import Any

from grape.report.data import ReportInputs


def rows(inputs: ReportInputs) -> list[dict[str, Any]]:
    """An algorithm a row, the best first."""
    found = sorted(inputs.tuned.items(), key=lambda item: (-item[1].spread.best, item[0]))
    return [
        {"name": name, "tuned": entry, "knobs": ", ".join(f"{knob} {json.dumps(value)}" for knob, value in entry.knobs.items())}
        for name, entry in found
    ]


def numbers(inputs: ReportInputs) -> dict[str, Any]:
    """Of metrics.json: `tuned`, by algorithm."""
    apart = {"made_for", "scores"}
    return {name: entry.model_dump(exclude=apart) | {"trials": entry.trials} for name, entry in sorted(inputs.tuned.items())}
