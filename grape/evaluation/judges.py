"""What stands in reports/train/judges.json: how far the judges of rubric items agree with people and with each other.

On judgements that neither training nor calibration has seen. The critic stage writes it; report and `grape rubric show` read it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from grape.errors import GrapeError, first_problem
from grape.evaluation.record import Strict

JUDGES = "reports/train/judges.json"


class JudgeReport(Strict):
    """One judge, or all of a panel together.

    Attributes:
        name: `judge` is critic.judge, `panel` all together, else a judge's of critic.panel. backend, model: None for a panel.
        repeats: verdicts drawn per question. curves: of its calibration, 0: its confidence is its own.
        numbers: `agreement`, `kappa`, `ece`, `ece_floor`, `judged`, .. with people over all items, and `CATEGORY/ITEM/agreement`
            and so on of each item; none where nothing was held out.
    """

    name: str
    backend: str | None
    model: str | None
    repeats: int
    curves: int
    numbers: dict[str, float]

    def of(self, item: str, number: str) -> float | None:
        """A number of an item `category/item`, or over all ("")."""
        return self.numbers.get(f"{item}/{number}" if item else number)


class JudgesReport(Strict):
    """judges: critic.judge, those of critic.panel, and where there are several, `panel`. statistic, between: how far the judges
    agree with each other beyond chance, over all items ("") and by item `category/item`, where that is defined."""

    judges: tuple[JudgeReport, ...]
    statistic: str
    between: dict[str, float]


def read_judges(root: Path) -> JudgesReport | None:
    """The record below `root`; None: no critic stage has run. Raises GrapeError: it is not what the stage writes."""
    path = root / JUDGES
    if not path.is_file():
        return None
    try:
        return JudgesReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        what = ": ".join(first_problem(error)) if isinstance(error, ValidationError) else str(error)
        mend = "delete the file and run `grape run critic`"
        raise GrapeError(f"this file is not what stage critic writes: {what}", where=JUDGES, mend=mend) from error
