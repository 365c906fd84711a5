"""What every critic is asked, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from grape.reward.critics.calibration import Calibration

Certainty = Literal["right", "margin"]
_PLACE = re.compile(r"\{(question|prompt|response)\}")


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


@dataclass(frozen=True)
class Verdicts:
    """Answers to n questions. Iterating gives (score, confidence).

    Attributes:
        score: (n,) in [0, 1], 1 is a clear yes. NaN: missing, with the reason in `reasons`; never 0.
        confidence: (n,) in [0, 1]; NaN where the score is missing.
        reasons: n texts, why the score is what it is or why it is missing.
        evidence: (n,) log-odds of yes before calibration, what `calibration.calibrate` is fitted on; NaN where missing.
    """

    score: Tensor
    confidence: Tensor
    reasons: tuple[str, ...]
    evidence: Tensor

    @property
    def valid(self) -> Tensor:
        """(n,) bool: the score could be had."""
        return torch.isfinite(self.score) & torch.isfinite(self.confidence)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.score, self.confidence))


class Critic(Protocol):
    """Whoever can judge. Neither the order of the questions nor what else is asked changes an answer."""

    def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
        """Answers in the questions' order. names: n item names `category/item`, by which the calibration is chosen."""


def certainty(p: Tensor, kind: Certainty) -> Tensor:
    """How sure a probability of yes is of its verdict: "right": max(p, 1 - p), the chance that it is right; "margin": |2p - 1|."""
    return torch.maximum(p, 1 - p) if kind == "right" else (2 * p - 1).abs()


def from_log_odds(
    names: Sequence[str], z: Tensor, calibration: Calibration, kind: Certainty, missing: Mapping[int, str]
) -> Verdicts:
    """Verdicts of a language model whose log-odds of yes are z; missing: why, by index, where z is NaN."""
    score = calibration.apply(names, z)
    reasons = tuple(
        missing.get(i, f"critic says yes with probability {p:.2f}" if p == p else "the critic's logits are not finite")
        for i, p in enumerate(score.tolist())
    )
    return Verdicts(score, certainty(score, kind), reasons, z)
