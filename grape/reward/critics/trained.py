"""The trained critic: the critic stage's model, which answers yes or no to a rubric's question in the very words it was trained on.

A raw language model is overconfident: the critic stage fits the calibration on held-out judgements. Control tokens in the policy's
text are encoded as text, so that it cannot end its turn.
"""

from __future__ import annotations

from typing import Any

from grape.models.chat import Chat
from grape.models.forward import Dtype
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.logits import Fork, LogitCritic, part
from grape.reward.critics.question import Question

YES, NO = "yes", "no"


class TrainedPrompts:
    """Questions as the critic stage taught them."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.pad = chat, chat.pad
        self.verdicts = verdict_tokens(chat)

    def text(self, question: Question) -> str:
        return question.text

    def fork(self, text: str) -> Fork:
        asked = self.chat.prompt([{"role": "user", "content": text}], "critic")
        return self.verdicts._replace(ids=asked + self.verdicts.ids)


def trained_critic(
    model: Any, chat: Chat, calibration: Calibration, max_tokens: int = 16384, dtype: Dtype = "float32"
) -> LogitCritic:
    """Its confidence is the calibrated probability that its verdict is right."""
    return LogitCritic(model, TrainedPrompts(chat), calibration, "right", max_tokens, dtype)


def verdict_tokens(chat: Chat) -> Fork:
    """What both verdicts begin with in this tokenizer, and the first token at which they differ."""
    asked = {"role": "user", "content": "?"}
    return part(*(chat.conversation([asked, {"role": "assistant", "content": v}], "critic").row.response for v in (YES, NO)))
