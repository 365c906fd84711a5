"""The local critic: any causal language model, asked for a yes or no and read from the probabilities of its verdict tokens.

    z = log p(yes) - log p(no) at the first token that tells them apart,   p = calibration(z),   score = p,
    confidence = |2p - 1|, or max(p, 1 - p) if asked for.

Nothing is generated, so there is no temperature and no reply that the policy's text could forge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grape.errors import GrapeError
from grape.models.chat import Chat
from grape.models.forward import Dtype
from grape.models.load import device, load_language_model, positions
from grape.models.template import Template, is_plain
from grape.reward.critics.base import Certainty, Question, Verdicts, from_log_odds
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.fence import Messages, messages, new_mark, special_tokens
from grape.reward.critics.logits import TOO_LONG, Asked, log_odds, part

# Where a template knows reasoning, the verdict is to come first and not a chain of thought. Others ignore the argument.
AT_ONCE = Template(arguments={"enable_thinking": False})
ENDING = "Reply with one word alone, {} or {}."


class LocalCritic:
    """A causal language model as a judge.

    Args:
        chat: ask through the tokenizer's chat template; else as plain text that ends in "Answer:".
        verdicts: the words for yes and no.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        calibration: Calibration,
        max_tokens: int = 16384,
        dtype: Dtype = "float32",
        certainty: Certainty = "margin",
        chat: bool = True,
        verdicts: tuple[str, str] = ("yes", "no"),
    ) -> None:
        self.model, self.tokenizer, self.calibration = model, tokenizer, calibration
        self.max_tokens, self.dtype, self.certainty = max_tokens, dtype, certainty
        self.chat, self.verdicts = chat, verdicts
        self.special = special_tokens(tokenizer)
        self.template = Chat(tokenizer, AT_ONCE, model) if chat else None
        self.takes_system = self.template is not None and _takes_system(self.template)

    @classmethod
    def load(
        cls, base: str, calibration: Calibration, revision: str | None = None, dtype: Dtype = "float32",
        max_tokens: int = 16384, certainty: Certainty = "margin",
    ) -> LocalCritic:  # fmt: skip
        """From a directory, a GGUF file or a hub id."""
        model, tokenizer = load_language_model(base, revision)
        # Loading gives a tokenizer without a template ours, which a model that grape trained has on disk.
        chat = not is_plain(tokenizer) or (Path(base) / "chat_template.jinja").is_file()
        return cls(model.to(device()), tokenizer, calibration, max_tokens, dtype, certainty, chat)

    def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
        """Answers to questions; missing where the text is too long to judge."""
        unique = {question: i for i, question in enumerate(dict.fromkeys(questions))}
        rows = [self._asked(question) for question in unique]
        z = log_odds(self.model, rows, self.tokenizer.pad_token_id, self.max_tokens, self.dtype)
        limit = positions(self.model)
        missing = {i: TOO_LONG for i, q in enumerate(questions) if len(rows[unique[q]][0]) >= limit}
        return from_log_odds(names, z[[unique[q] for q in questions]], self.calibration, self.certainty, missing)

    def _asked(self, question: Question) -> Asked:
        """The tokens of the question with either verdict behind it: where they part is where the verdict is read.

        Both are tokenised as a whole, because a tokenizer may join a verdict with what stands before it.
        """
        head = self._head(messages(question, new_mark(question), ENDING.format(*self.verdicts), self.special))
        yes, no = (
            self.template.tokens(head + word) if self.template is not None else self.tokenizer(f"{head} {word}")["input_ids"]
            for word in self.verdicts
        )
        same, first, other = part(yes, no)
        return list(yes[:same]), first, other

    def _head(self, turns: Messages) -> str:
        if self.template is None:
            return "\n\n".join(turn["content"] for turn in turns) + "\n\nAnswer:"
        if not self.takes_system:
            turns = [{"role": "user", "content": "\n\n".join(turn["content"] for turn in turns)}]
        return self.template.text(turns, True, "critic")


def _takes_system(chat: Chat) -> bool:
    """Whether the chat template has a place for a system message: some refuse it, some leave it out without a word."""
    turns = [{"role": "system", "content": "of the system"}, {"role": "user", "content": "of the user"}]
    try:
        chat.text(turns, True)
    except GrapeError:
        return False
    return True
