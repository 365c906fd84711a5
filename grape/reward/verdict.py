"""What judges are asked and what they say: a question, a verdict with its reason, many of them at once, or that there can be none.
And what every verifier shares: options, the reference answer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from grape.types import Prompt

Certainty = Literal["right", "margin", "agreement"]
Scoring = Literal["graded", "verdict"]
_PLACE = re.compile(r"\{(question|prompt|response)\}")


class Undecidable(Exception):
    """The check could not be made, e.g. the prompt has no reference answer: the score is missing, never 0. `reason` says why,
    `mend` what a person can do about it, where it is not the prompt's answer that is at fault."""

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

    def scored(self, scoring: Scoring) -> Verdicts:
        """With `verdict` a yes or a no in the place of each score, 1 above one half and else 0; how sure it is stays as it was."""
        if scoring == "graded":
            return self
        return replace(self, score=torch.where(self.score.isnan(), self.score, (self.score > 0.5).to(self.score)))


@dataclass(frozen=True)
class Question:
    """A rubric item's question about one answer, in parts, so that a critic can keep what the policy wrote apart from the rest.

    Attributes:
        question: of the item. prompt: what was asked of the policy. response: what the policy wrote.
        template: how the parts stand together, with the places {question}, {prompt} and {response}.
        system: the item's system prompt for critics that take one; "": the critic's own.
        version: of the rubric.
    """

    question: str
    prompt: str
    response: str
    template: str = "{question}\nQuestion: {prompt}\nAnswer: {response}"
    system: str = ""
    version: int = 1

    def filled(self, prompt: str, response: str) -> str:
        """The template with these texts in its places, in one pass, so that a text cannot smuggle in another place."""
        parts = {"question": self.question, "prompt": prompt, "response": response}
        return _PLACE.sub(lambda place: parts[place[1]], self.template)

    @property
    def text(self) -> str:
        """The parts as they stand, not fenced: what the trained critic was trained on."""
        return self.filled(self.prompt, self.response)


class Critic(Protocol):
    """Whoever can judge. Neither the order of the questions nor what else is asked changes an answer."""

    explains: bool  # its reasons say why, so they can be given back to the policy

    def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
        """Answers in the questions' order. names: n item names `category/item`, by which the calibration is chosen."""


class Options(BaseModel, ABC):
    """A verifier: its options, unknown ones being errors, and the check."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @abstractmethod
    def score(self, prompt: Prompt, text: str) -> float:
        """In [0, 1], a `Verdict` where there is a reason or a count worth keeping. Raises Undecidable: the check cannot be made."""


def reference(prompt: Prompt) -> str:
    """The prompt's reference answer. Raises Undecidable: it has none."""
    if prompt.answer is None:
        raise Undecidable(f"prompt {prompt.id} has no reference answer")
    return prompt.answer
