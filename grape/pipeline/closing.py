"""What a run tells at its end: stages, failures, where to look next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from grape.dvc import Graph
from grape.needed import KEY, UNMADE_KEY
from grape.pipeline.execute import Outcome
from grape.progress import duration
from grape.project import Project
from grape.rehearsal.record import Rehearsal

# The number of a stage that is worth a column, best first; otherwise the first one it has.
_HEADLINES: tuple[str, ...] = ("test/difference", "validation/difference")
_HEADLINES += ("gold", "agreement", "accuracy", "reward", "perplexity", "loss", "pairs", "rows/train")
_WHY = {"blocked": "after {} failed", "stopped": "by {}"}


def headline(receipt: Mapping[str, Any] | None) -> str:
    facts = (receipt or {}).get("facts") or {}
    for key, said in ((KEY, "not needed"), (UNMADE_KEY, "nothing was made")):
        if reason := facts.get(f"grape.{key}"):
            return f"{said}: {reason}"
    values = (receipt or {}).get("headline") or {}
    gains = [name for name in values if name.endswith("_difference")]
    for name in (*_HEADLINES, *gains, *values):
        if name in values:
            return f"{name} {values[name]:.4g}"
    return ""


def table(graph: Graph, outcomes: Mapping[str, Outcome], receipts: Mapping[str, Any]) -> Iterator[str]:
    rows = [("stage", "", "time", "result")]
    for stage in graph.order():
        outcome = outcomes.get(stage, Outcome(stage, "cached"))
        time = duration(outcome.seconds) if outcome.seconds else ""
        result = _WHY.get(outcome.status, "{}").format(outcome.because) if outcome.because else headline(receipts.get(stage))
        rows.append((stage, outcome.status, time, result if outcome.good or outcome.because else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for a, b, c, d in rows:
        yield f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip()


def failures(project: Project, outcomes: Mapping[str, Outcome], rehearsals: Iterable[Rehearsal] = ()) -> Iterator[str]:
    for outcome in outcomes.values():
        if outcome.status != "failed":
            continue
        yield ""
        yield f"{outcome.stage} failed" + (f" ({outcome.because})" if outcome.because else "") + "; its last lines:"
        yield from (f"    {line}" for line in outcome.tail)
        if outcome.log:
            yield f"  the whole log: {outcome.log.relative_to(project.root)}"
    for rehearsal in rehearsals:
        if not rehearsal.passed:
            yield f"\ngrape: error: {rehearsal.refusal()}"


def ending(project: Project, good: bool) -> Iterator[str]:
    """The report, MLflow, the next command."""
    report = project.root / "reports" / "index.html"
    if report.is_file() and good:
        yield f"report:  {report.relative_to(project.root)}"
    yield "MLflow:  grape ui"
    if good:
        yield "next:    grape chat        (talk to the policy), or change params.yaml and `grape plan`"
    else:
        yield "next:    mend the cause and run the same command again; what is done stays done"
