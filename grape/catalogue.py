"""The algorithms as a list for people and machines: what each learns from, what it needs, its knobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from grape.algorithms import ALGORITHMS
from grape.algorithms.base import Algorithm


def entries() -> list[dict[str, Any]]:
    return [_entry(name, algorithm) for name, algorithm in ALGORITHMS.items()]


def _entry(name: str, algorithm: Algorithm) -> dict[str, Any]:
    module = sys.modules[algorithm.loss.__module__]
    fields = algorithm.params.model_fields
    knobs = [{"name": key, "default": field.default, "help": field.description or ""} for key, field in fields.items()]
    return {"name": name, "what": (module.__doc__ or "").strip().split("\n")[0], "data": algorithm.data,
            "needs": sorted(algorithm.needs(algorithm.params())), "knobs": knobs}


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    for entry in found:
        needs = f", needs {', '.join(entry['needs'])}" if entry["needs"] else ""
        yield f"{entry['name']}: {entry['what']}"
        yield f"    learns from {entry['data']}{needs}"
        for knob in entry["knobs"]:
            yield f"    {knob['name']:<16} {knob['default']!s:<14} {knob['help']}".rstrip()
        yield ""
    yield "choose with rl.algorithms in params.yaml; the knobs stand under algorithms.NAME"
