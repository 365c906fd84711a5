"""The algorithms as a list for people and machines: what each learns from, what it needs, its knobs, its page."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grape import slot
from grape.algorithms import ALGORITHMS, reward_model, sft
from grape.algorithms.base import Algorithm
from grape.errors import GrapeError, nearest
from grape.params import load

# They have stages of their own and cannot be slotted, but a page all the same.
STAGES: Mapping[str, Algorithm] = {"sft": sft.ALGORITHM, "reward_model": reward_model.ALGORITHM}


def known(root: Path | None = None) -> dict[str, Algorithm]:
    """What can be slotted: grape's own, what installed packages bring, what params.yaml of the project in `root` names."""
    names = dict.fromkeys([*ALGORITHMS, *slot.installed()])
    given = {} if root is None else load(root / "params.yaml").algorithms
    uses = {name: (given.get(name) or {}).get(slot.USE) for name in dict.fromkeys([*names, *given])}
    return {name: slot.find(name, use, root) for name, use in uses.items()}


def entries(root: Path | None = None) -> list[dict[str, Any]]:
    return [_entry(name, algorithm) for name, algorithm in known(root).items()]


def _page(algorithm: Algorithm) -> str:
    return inspect.cleandoc(sys.modules[algorithm.loss.__module__].__doc__ or "")


def _entry(name: str, algorithm: Algorithm) -> dict[str, Any]:
    fields = algorithm.params.model_fields
    knobs = [{"name": key, "default": field.default, "help": field.description or ""} for key, field in fields.items()]
    what, needs = _page(algorithm).split("\n")[0], sorted(algorithm.needs(algorithm.params()))
    return {"name": name, "what": what, "data": algorithm.data, "needs": needs, "knobs": knobs}


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    for entry in found:
        yield f"{entry['name']}: {entry['what']}"
        yield from _facts(entry)
        yield ""
    yield "choose with rl.algorithms in params.yaml; the knobs stand under algorithms.NAME; `grape explain NAME` has more"


def _facts(entry: Mapping[str, Any]) -> Iterator[str]:
    needs = f", needs {', '.join(entry['needs'])}" if entry["needs"] else ""
    yield f"    learns from {entry['data']}{needs}"
    for knob in entry["knobs"]:
        default = "null" if knob["default"] is None else knob["default"]
        yield f"    {knob['name']:<20} {default!s:<14} {knob['help']}".rstrip()


def explain(name: str, root: Path | None = None) -> Iterator[str]:
    """The algorithm's page: what it does and why, its equations, its knobs, where its code is.

    Raises:
        GrapeError: no such algorithm.
    """
    pages = {**STAGES, **known(root)}
    if name not in pages:
        raise GrapeError(f"unknown algorithm {name!r}", mend=nearest(name, pages, "known: %s"))
    algorithm = pages[name]
    yield from _page(algorithm).split("\n")
    yield ""
    yield from _facts(_entry(name, algorithm))
    yield ""
    yield f"code: {sys.modules[algorithm.loss.__module__].__file__}"
