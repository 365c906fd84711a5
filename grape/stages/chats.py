"""A stage's tokenizer with its chat template, told what `model.template` says."""

from __future__ import annotations

from grape.models.chat import Chat
from grape.models.protocols import LanguageModel, Tokenizer
from grape.stages.stage import Stage


def chat_of(stage: Stage, tokenizer: Tokenizer, model: LanguageModel | None = None) -> Chat:
    """
    Args:
        model: where there is one; its generation config says what else ends an answer.
    """
    chat = Chat(tokenizer, stage.params.model.template, model)
    if chat.dated:
        date = chat.settings.date
        print(f"{stage.name}: the chat template asks for today's date and is told {date} (model.template.date)", flush=True)
    return chat
