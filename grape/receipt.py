"""The receipt of a stage: what ran, on what, with which result. A DVC output that no stage depends on.

A stage that DVC restores from its cache brings its old receipt back, so the receipt tells whether a stage ran now (its
nonce is the orchestrator's) and which MLflow run first made the artifacts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

from grape.errors import GrapeError

_MEND = "delete the file; the next run restores it from DVC's cache or runs the stage"


class Receipt(TypedDict):
    """One run of one stage. Times are UTC in ISO 8601, `seconds` wall clock, `peak_memory_mb` resident MiB."""

    stage: str
    run_id: str | None  # None: MLflow had not heard of the run when the stage ended; `spool` finds it
    spool: str  # name of the run's spool folder, also the tag grape.spool of the MLflow run
    nonce: str | None  # of the pipeline run that started the stage; None: started by `dvc repro` or by hand
    started: str
    ended: str
    seconds: float
    peak_memory_mb: float
    git_revision: str | None
    git_dirty: bool | None
    params: dict[str, Any]
    params_hash: str
    seed: int
    datasets: dict[str, str]  # project-relative path -> DVC's md5
    versions: dict[str, str]
    python: str
    platform: str
    headline: dict[str, float]
    facts: dict[str, str]  # about how it ran, e.g. grape.sandbox: the tier that the sandbox's canaries proved


def read(path: Path) -> Receipt | None:
    """The receipt at `path`, or None when there is none.

    Raises:
        GrapeError: the file is there but is not a receipt.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise GrapeError(f"this receipt cannot be read: {error}", where=str(path), mend=_MEND) from error
    if not isinstance(value, dict) or not Receipt.__required_keys__ <= value.keys():
        raise GrapeError("this is not a receipt of a stage", where=str(path), mend=_MEND)
    return Receipt(**value)  # type: ignore[typeddict-item]  # the keys were checked above
