"""The trained critic: the critic stage's model, which answers yes or no to a rubric's question.

    z = log p(yes) - log p(no) at the first token of its answer that tells them apart,   p = calibration(z),   score = p,
    confidence = max(p, 1 - p): the calibrated probability that its verdict is right.

A raw language model is overconfident: the critic stage fits the calibration on held-out judgements. No text is generated, so
the policy's text cannot be mistaken for the verdict; control tokens in it are encoded as text, so that it cannot end its turn
either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from grape.models.chat import Chat
from grape.models.forward import Dtype
from grape.models.load import device, load_language_model, positions
from grape.models.template import Template
from grape.reward.critics.base import Question, Verdicts, from_log_odds
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.logits import TOO_LONG, Asked, log_odds, part

YES, NO = "yes", "no"


class TrainedCritic:
    """A critic model ready to judge."""

    def __init__(
        self, model: Any, chat: Chat, calibration: Calibration, max_tokens: int = 16384, dtype: Dtype = "float32"
    ) -> None:
        self.model, self.chat, self.calibration = model, chat, calibration
        self.max_tokens, self.dtype = max_tokens, dtype
        self.prefix, self.yes, self.no = verdict_tokens(chat)

    @classmethod
    def load(
        cls, folder: Path, dtype: Dtype = "float32", max_tokens: int = 16384, template: Template | None = None
    ) -> TrainedCritic:
        model, tokenizer = load_language_model(str(folder))
        return cls(model.to(device()), Chat(tokenizer, template, model), Calibration.read(folder), max_tokens, dtype)

    def log_odds(self, texts: Sequence[str]) -> Tensor:
        """(n,) z = log p(yes) - log p(no); NaN where the text is too long."""
        return self._read([self._asked(text) for text in texts])

    def judge(self, names: Sequence[str], questions: Sequence[Question | str], /) -> Verdicts:
        """Answers to questions, or to texts as `Question.text` writes them; missing where the text is too long to judge."""
        texts = [q if isinstance(q, str) else q.text for q in questions]
        unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        rows = [self._asked(text) for text in unique]
        limit = positions(self.model)
        missing = {i: TOO_LONG for i, text in enumerate(texts) if len(rows[unique[text]][0]) >= limit}
        return from_log_odds(names, self._read(rows)[[unique[t] for t in texts]], self.calibration, "right", missing)

    def _asked(self, text: str) -> Asked:
        return self.chat.prompt([{"role": "user", "content": text}], "critic") + self.prefix, self.yes, self.no

    def _read(self, rows: Sequence[Asked]) -> Tensor:
        return log_odds(self.model, rows, self.chat.pad, self.max_tokens, self.dtype)


def verdict_tokens(chat: Chat) -> tuple[list[int], int, int]:
    """(prefix, yes, no): what both verdicts begin with in this tokenizer, and the first token at which they differ."""
    asked = {"role": "user", "content": "?"}
    yes, no = (chat.conversation([asked, {"role": "assistant", "content": v}], "critic").row.response for v in (YES, NO))
    same, first, other = part(yes, no)
    return yes[:same], first, other
