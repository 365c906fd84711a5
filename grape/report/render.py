"""The page (HTML, self-contained: inline style and pictures, no script) and its short form in Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from grape.budget import Unit
from grape.evaluation.record import Interval
from grape.report import evolution, findings, pairs, tables, tuning
from grape.report.alarms import alarms
from grape.report.conclusions import candidates
from grape.report.data import ReportInputs
from grape.report.first import answers
from grape.track.registry import best

if TYPE_CHECKING:
    from grape.schema import Report


def context(
    inputs: ReportInputs, level: float, knobs: Report, figures: dict[str, bytes], budget: Mapping[Unit, float] | None = None
) -> dict[str, Any]:
    """Everything the templates show. budget: rl.budget."""
    winner = best(candidates(inputs))
    champion = winner.name if winner else None
    first = inputs.evaluations[0]
    algorithms = tables.algorithms(inputs, level)
    found, alarmed = pairs.compared(inputs, level), alarms(inputs, knobs.missing)
    return {
        "first": answers(inputs, found, alarmed),
        "title": tables.title(algorithms),
        "algorithms": algorithms,
        "names": inputs.algorithms,
        "judge": inputs.judge,
        "budget": equal(budget),
        "level": level,
        "champion": champion,
        "prompts": first.prompts,
        "per_prompt": first.samples,
        "sft": first.sft.of(inputs.judge),
        "pairs": found,
        "league": tables.league(inputs, champion),
        "tuned": tuning.rows(inputs),
        "pass_at": sorted(first.sft.pass_at, key=int),
        "unneeded": inputs.unneeded,
        "left": tables.left_out(inputs),
        "base": tables.apart(inputs) is not None,
        "categories": tables.categories(inputs),
        "datasets": tables.datasets(inputs, level),
        "benchmarks": tables.benchmarks(inputs, level),
        "items": tables.items(inputs),
        "judges": tables.judges(inputs),
        "judges_agree": inputs.judges.statistic if inputs.judges and len(inputs.judges.judges) > 1 else None,
        "alarms": alarmed,
        "findings": findings.findings(inputs, knobs),
        "evolution": evolution.read(inputs),
        "samples": tables.samples(inputs, knobs.samples, champion),
        "figures": {name: base64.b64encode(png).decode() for name, png in figures.items()},
    }


def equal(budget: Mapping[Unit, float] | None) -> str:
    """What every policy had the same of, as a clause."""
    if budget is None:
        return " with the same number of samples"
    ((unit, amount),) = budget.items()
    return f", each until the end of the round in which it had used {amount:g} {unit}"


def html(values: dict[str, Any]) -> str:
    return _environment(autoescape=True).get_template("report.html.j2").render(values)


def markdown(values: dict[str, Any]) -> str:
    return _environment(autoescape=False).get_template("report.md.j2").render(values)


def _environment(autoescape: bool) -> Environment:
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=PackageLoader("grape.report"), autoescape=autoescape, undefined=StrictUndefined, **blocks)
    filters: tuple[Callable[..., str], ...] = (number, signed, share, interval, signed_interval, direction, chance, cell)
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def interval(value: Interval | float | None, sign: str = "") -> str:
    """`0.84 [0.81, 0.87]`; a number without an interval alone."""
    if isinstance(value, float):
        return f"{value:{sign}.2f}"
    return "–" if value is None else f"{value.mean:{sign}.2f} [{value.low:{sign}.2f}, {value.high:{sign}.2f}]"


def signed_interval(value: Interval | float | None) -> str:
    return interval(value, "+").replace("-", "−")


def direction(value: Interval | float, higher_is_better: bool | None = True) -> str:
    """The colour of a difference whose interval excludes 0, `up` for the better."""
    if isinstance(value, float) or value.low <= 0 <= value.high or higher_is_better is None:
        return ""
    return "up" if (value.low > 0) == higher_is_better else "down"


def chance(p: float) -> str:
    """A p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cell(text: object) -> str:
    """Text for a Markdown table: nothing in it ends the cell, the row or the table, or is taken for HTML."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))
