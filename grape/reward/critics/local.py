"""The local critic: any causal language model, asked for a yes or no about what stands behind a fence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grape.errors import GrapeError
from grape.models.chat import Chat
from grape.models.forward import Dtype
from grape.models.load import device, load_language_model
from grape.models.template import Template, is_plain
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.fence import messages, new_mark, special_tokens
from grape.reward.critics.logits import Fork, LogitCritic, part
from grape.reward.critics.question import Certainty, Question

# Where a template knows reasoning, the verdict is to come first and not a chain of thought. Others ignore the argument.
AT_ONCE = Template(arguments={"enable_thinking": False})
ENDING = "Reply with one word alone, {} or {}."


class FencedPrompts:
    """Questions with the policy's text fenced.

    Args:
        chat: ask through this chat template; None: as plain text that ends in "Answer:".
        verdicts: the words for yes and no.
    """

    def __init__(self, tokenizer: Any, chat: Chat | None, verdicts: tuple[str, str] = ("yes", "no")) -> None:
        self.tokenizer, self.chat, self.verdicts = tokenizer, chat, verdicts
        self.pad, self.special = int(tokenizer.pad_token_id), special_tokens(tokenizer)
        self.takes_system = chat is not None and _takes_system(chat)

    def text(self, question: Question) -> str:
        turns = messages(question, new_mark(question), ENDING.format(*self.verdicts), self.special)
        joined = "\n\n".join(turn["content"] for turn in turns)
        if self.chat is None:
            return f"{joined}\n\nAnswer:"
        return self.chat.text(turns if self.takes_system else [{"role": "user", "content": joined}], True, "critic")

    def fork(self, text: str) -> Fork:
        """With either verdict behind it the text is tokenised as a whole, because a tokenizer may join the two."""
        if self.chat is None:
            return part(*(self.tokenizer(f"{text} {word}")["input_ids"] for word in self.verdicts))
        return part(*(self.chat.tokens(text + word) for word in self.verdicts))


def local_critic(
    base: str, calibration: Calibration, revision: str | None = None, dtype: Dtype = "float32", max_tokens: int = 16384,
    certainty: Certainty = "margin",
) -> LogitCritic:  # fmt: skip
    """From a directory, a GGUF file or a hub id."""
    model, tokenizer = load_language_model(base, revision)
    # Loading gives a tokenizer without a template ours, which a model that grape trained has on disk.
    templated = not is_plain(tokenizer) or (Path(base) / "chat_template.jinja").is_file()
    chat = Chat(tokenizer, AT_ONCE, model) if templated else None
    return LogitCritic(model.to(device()), FencedPrompts(tokenizer, chat), calibration, certainty, max_tokens, dtype)


def _takes_system(chat: Chat) -> bool:
    """Whether the chat template has a place for a system message: some refuse it, some leave it out without a word."""
    turns = [{"role": "system", "content": "of the system"}, {"role": "user", "content": "of the user"}]
    try:
        chat.text(turns, True)
    except GrapeError:
        return False
    return True
