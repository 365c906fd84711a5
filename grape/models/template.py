"""What a chat template is told, and what its text and a tokenizer say of control tokens, thinking and the date."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from grape.errors import GrapeError
from grape.models.protocols import Tokenizer

TEMPLATES = "params.yaml, model.template"
_ASKS_FOR_THE_DATE = re.compile(r"strftime_now\s*\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
# How reasoning is marked by the templates that know it.
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"))


# How a model whose tokenizer has no chat template is told who speaks. It lives in the tokenizer: no other code knows the
# delimiters.
# The prompt ends with a line feed, not with a space: byte-pair tokenizers join a space with the word behind it, so that a prompt
# that ends in one asks for tokens the model has never seen.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'Model:\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n' }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + '\n' }}"
    "{% else %}{{ raise_exception('no turns of a ' + m['role']) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Model:\n' }}{% endif %}"
)
# With a token for each character nothing is ever joined; a space it is there, as in the world's documents.
CHARACTER_TEMPLATE = CHAT_TEMPLATE.replace("Model:\n", "Model: ")


class Template(BaseModel):
    """`model.template` of params.yaml: what the chat template is told. Everything that decides a prompt's tokens stands here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    text: str | None = Field(default=None, min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    date: str = Field(default="2025-01-01", pattern=r"^\d{4}-\d{2}-\d{2}$")
    thinking: Literal["auto", "none"] | list[str] = "auto"

    @field_validator("date")
    @classmethod
    def _a_day(cls, date: str) -> str:
        datetime.date.fromisoformat(date)
        return date

    @field_validator("thinking")
    @classmethod
    def _two_tags(cls, thinking: Any) -> Any:
        if isinstance(thinking, list) and (len(thinking) != 2 or not all(thinking)):
            raise ValueError('two tags, e.g. ["<think>", "</think>"], or auto, or none')
        return thinking

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        taken = {"messages", "conversation", "add_generation_prompt", "tokenize", "chat_template", "return_dict", "strftime_now"}
        if wrong := sorted(taken & arguments.keys()):
            raise ValueError(f"{wrong[0]} is set by grape")
        return arguments


# What transformers puts before and behind a control token that is to be text.
MARK, CLOSE = "\U000f0000", "\U000f0001"


def mark(value: Any, tokens: frozenset[str]) -> Any:
    """A text, or the texts within a mapping (its keys too) or list, with each of these tokens marked."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    if isinstance(value, Mapping):
        return {mark(key, tokens): mark(inner, tokens) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [mark(inner, tokens) for inner in value]
    return mark_control_tokens(value, _pattern(tokens))


def texts(value: Any) -> list[str]:
    """Every text within, keys of arguments included."""
    if isinstance(value, Mapping):
        inner = [v for k, v in value.items() if k not in ("id", "type")]
        return texts(inner) + [k for k in value if k not in ("id", "type", "name", "arguments", "function")]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


def outside(pieces: Sequence[Any], begin: Any, end: Any, opened: bool) -> list[Any]:
    """What stands outside of the thinking. One that has no end takes all that follows; an end that comes first of all tags takes
    all before it; an end behind that is text."""
    kept: list[Any] = []
    within, first = opened, not opened
    for piece in pieces:
        if piece == begin:
            within, first = True, False
        elif piece == end and (within or first):
            kept, within, first = ([] if first else kept), False, False
        elif not within:
            kept.append(piece)
    return kept


@lru_cache(maxsize=64)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=lambda t: (-len(t), t)))) or "(?!)")


def template_of(tokenizer: Tokenizer) -> str:
    """
    Raises:
        GrapeError: it has several templates and none by default.
    """
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        what, mend = f"no chat template can be chosen: {error}", "give one (text)"
        raise GrapeError(what.splitlines()[0], where=TEMPLATES, mend=mend) from error


def at_a_fixed_date(template: str, date: str) -> tuple[str, bool]:
    """The template with today's date, where it asks for it, fixed: prompts must not change at midnight.

    Raises:
        GrapeError: it asks in a way that cannot be seen from its text.
    """
    day = datetime.datetime.fromisoformat(date)
    fixed = _ASKS_FOR_THE_DATE.sub(lambda found: json.dumps(day.strftime(found["format"])), template)
    if re.search(r"strftime_now(?!\s+is\s)", fixed):
        raise GrapeError(
            "the chat template asks for today's date in a form that cannot be fixed, so its prompts would change from day to day",
            where=TEMPLATES,
            mend="give the template with a date of your own in it (text)",
        )
    return fixed, fixed != template


def thinking_tags(said: Any, template: str, tokenizer: Tokenizer) -> tuple[str, str] | None:
    if isinstance(said, list):
        return said[0], said[1]
    if said == "none":
        return None
    known = tokenizer.get_added_vocab()
    return next((tags for tags in THINKING if tags[1] in template or tags[1] in known), None)


def is_plain(tokenizer: Tokenizer) -> bool:
    """Whether its template is one of grape's plain ones: the model comes without a chat template of its own."""
    return str(tokenizer.chat_template).endswith((CHAT_TEMPLATE, CHARACTER_TEMPLATE))
