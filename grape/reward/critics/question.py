"""What every critic is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from grape.reward.verdict import Verdicts

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


class Critic(Protocol):
    """Whoever can judge. Neither the order of the questions nor what else is asked changes an answer."""

    explains: bool  # its reasons say why, so they can be given back to the policy

    def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
        """Answers in the questions' order. names: n item names `category/item`, by which the calibration is chosen."""
