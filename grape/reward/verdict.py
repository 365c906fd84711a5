"""What a judge says: a verdict with its reason, many of them at once, or that there can be none. And what every verifier shares:
options, the reference answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from grape.types import Prompt


class Undecidable(Exception):
    """The check could not be made, e.g. the prompt has no reference answer: the score is missing, never 0.

    Args:
        reason: why. mend: what a person can do about it, where it is not the prompt's answer that is at fault.
    """

    def __init__(self, reason: str, mend: str | None = None) -> None:
        self.mend = mend
        super().__init__(reason)


class Verdict(float):
    """A score in [0, 1] that also says why.

    Attributes:
        reason: for people. It may quote what the response's program said, and never holds an expected answer.
        metrics: name -> number, for tracking, e.g. how many impossible cases passed.
    """

    reason: str
    metrics: Mapping[str, float]

    def __new__(cls, score: float, reason: str = "", metrics: Mapping[str, float] | None = None) -> Verdict:
        made = super().__new__(cls, score)
        made.reason, made.metrics = reason, dict(metrics or {})
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return float(self), self.reason, self.metrics


@dataclass(frozen=True)
class Verdicts:
    """A judge's answers about n responses.

    Attributes:
        score: (n,) in [0, 1], 1 is a clear yes. NaN: missing, with the reason in `reasons`; never 0.
        confidence: (n,) in [0, 1]; NaN: missing.
        reasons: n texts, why the score is what it is or why it is missing.
        evidence: (n,) log-odds of yes before calibration, what `calibration.calibrate` is fitted on; NaN where there are none.
        metrics: name -> (sum, weight): what was counted beside the scores.
    """

    score: Tensor
    confidence: Tensor
    reasons: tuple[str, ...]
    evidence: Tensor
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def valid(self) -> Tensor:
        """(n,) bool: the score could be had."""
        return torch.isfinite(self.score) & torch.isfinite(self.confidence)


class Options(BaseModel, ABC):
    """A verifier: its options, unknown ones being errors, and the check."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @abstractmethod
    def score(self, prompt: Prompt, text: str) -> float:
        """In [0, 1], a `Verdict` where there is a reason or a count worth keeping.

        Raises:
            Undecidable: the check cannot be made.
        """


def reference(prompt: Prompt) -> str:
    """The prompt's reference answer.

    Raises:
        Undecidable: it has none.
    """
    if prompt.answer is None:
        raise Undecidable(f"prompt {prompt.id} has no reference answer")
    return prompt.answer
