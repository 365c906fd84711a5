"""What every verifier shares: the score with its reason, the error that makes a score missing, options, the reference answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

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
