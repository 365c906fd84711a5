"""A stage's tokenizer with its chat template, told what `model.template` says."""

from __future__ import annotations

from typing import Any

from grape.models.chat import Chat
from grape.stages.stage import Stage


def chat_of(stage: Stage, tokenizer: Any, model: Any = None) -> Chat:
    """
    Args:
        model: where there is one; its generation config says what else ends an answer.
    """
    chat = Chat(tokenizer, stage.params.model.template, model)
    if chat.dated:
        date = chat.settings.date
        print(f"{stage.name}: the chat template asks for today's date and is told {date} (model.template.date)", flush=True)
    return chat
