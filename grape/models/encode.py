"""From records to padded token rows. A conversation becomes ids once (`grape.models.chat`), split at the response; after that it
is ids in and ids out. What does not fit is left out whole and counted: cutting would remove EOS or the answer."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, overload

import numpy as np
import torch

from grape.artifacts import Demonstration, Preference
from grape.files import Spilled
from grape.models.chat import Chat, Encoded, Row
from grape.types import Prompt, Tokens

__all__ = ["Row", "Rows", "TokenRows", "collate", "encode_documents", "encode_pairs", "encode_turns", "fitting_prompts"]


Where = str | Callable[[Any], str]  # the folder of the records, or what says where each stands; for messages


def _at(where: Where, record: Demonstration | Preference | Prompt) -> str:
    return where(record) if callable(where) else f"{where}, {record.id}"


class TokenRows(Sequence[Row]):
    """Rows of token ids, as 4 bytes a token that lie on the disk where they are many; a row is read when it is asked for."""

    def __init__(self) -> None:
        self._ids, self._sizes = Spilled(), array("i")

    def __len__(self) -> int:
        return len(self._ids)

    def append(self, row: Row) -> None:
        ids = np.fromiter(chain(row.prompt, row.response), np.int32, row.tokens)
        self._ids.append(ids.tobytes() + bytes(row.given))
        self._sizes.extend((len(row.prompt), len(row.response)))

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        place = range(len(self))[place]
        before, behind = self._sizes[2 * place : 2 * place + 2]
        entry, tokens = self._ids[place], before + behind
        ids = np.frombuffer(entry, np.int32, tokens).tolist()
        return Row(ids[:before], ids[before:], tuple(map(bool, entry[4 * tokens :])))


@dataclass
class Rows:
    """Rows to learn from, and what became of the others.

    Attributes:
        rows: those that fit, `unit` of them for each record.
        kept: places of the records they come from.
        counts: `dropped/REASON` -> records left out; `spelled_tokens`, `encoded_apart` -> records whose text holds a control
            token, or whose answer the tokenizer would join with the prompt.
    """

    rows: Sequence[Row] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def _fitting(encoded: Iterable[Sequence[Encoded]], positions: int, keep: bool = True) -> Rows:
    """The records whose rows all fit into `positions` tokens. keep: the rows themselves, not their number alone."""
    fitting = TokenRows()
    made = Rows(fitting)
    made.counts["dropped/too_long"] = 0
    for i, parts in enumerate(encoded):
        made.counts["spelled_tokens"] += any(part.spelled for part in parts)
        made.counts["encoded_apart"] += any(part.apart for part in parts)
        if any(part.row.tokens > positions for part in parts):
            made.counts["dropped/too_long"] += 1
            continue
        for part in parts if keep else ():
            fitting.append(part.row)
        made.kept.append(i)
    return made


def encode_turns(
    chat: Chat, demonstrations: Iterable[Demonstration], positions: int, where: Where, turns: str = "last", keep: bool = True
) -> Rows:
    """Demonstrations, loss on all of the assistant's turns or on the last one.

    Args:
        keep: the rows; else they are counted alone.
    """

    def encoded(record: Demonstration) -> list[Encoded]:
        messages = [turn.message() for turn in record.messages]
        learned = [i for i, m in enumerate(messages) if m["role"] == "assistant"] if turns == "all" else None
        return [chat.conversation(messages, _at(where, record), learned)]

    return _fitting(map(encoded, demonstrations), positions, keep)


def encode_pairs(chat: Chat, pairs: Iterable[Preference], positions: int, where: Where) -> Rows:
    """Rows chosen, rejected, chosen, .. of preference pairs; of an answer of several turns all that the assistant says counts."""

    def encoded(pair: Preference) -> list[Encoded]:
        prompt = [turn.message() for turn in pair.prompt]
        both = []
        for side in (pair.chosen, pair.rejected):
            messages = [*prompt, *(turn.message() for turn in side)]
            learned = [i for i, m in enumerate(messages) if i >= len(prompt) and m["role"] == "assistant"]
            both.append(chat.conversation(messages, _at(where, pair), learned))
        return both

    return _fitting(map(encoded, pairs), positions)


def encode_documents(chat: Chat, texts: Iterable[str], positions: int, keep: bool = True) -> Rows:
    """Pre-training documents: an empty prompt (BOS, or EOS where a tokenizer has no BOS) and the text with EOS. keep: as above."""
    start, end = chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id

    def encoded(text: str) -> list[Encoded]:
        ids, spelled = chat.plain(text)
        return [Encoded(Row([end if start is None else start], [*ids, end]), spelled)]

    return _fitting(map(encoded, texts), positions, keep)


def fitting_prompts(chat: Chat, prompts: Iterable[Prompt], room: int, where: Where) -> tuple[list[Prompt], list[int]]:
    """The prompts of at most `room` tokens, and the places of the others.

    Raises:
        GrapeError: the template refuses a prompt.
    """
    kept, dropped = [], []
    for i, prompt in enumerate(prompts):
        if len(chat.prompt(prompt.messages, _at(where, prompt))) <= room:
            kept.append(prompt)
        else:
            dropped.append(i)
    return kept, dropped


def collate(rows: Sequence[Row | tuple[list[int], list[int]]], pad_id: int, unit: int = 1) -> Tokens:
    """Left-padded prompts and right-padded responses with masks from the recorded lengths."""
    made = [Row(*row) for row in rows]
    width = max(len(row.prompt) for row in made)
    length = max(max(len(row.response) for row in made), 1)
    prompt = torch.full((len(made), width), pad_id, dtype=torch.long)
    response = torch.full((len(made), length), pad_id, dtype=torch.long)
    prompt_mask = torch.zeros(len(made), width, dtype=torch.bool)
    present = torch.zeros(len(made), length, dtype=torch.bool)
    given = torch.zeros(len(made), length, dtype=torch.bool)
    for i, row in enumerate(made):
        prompt[i, width - len(row.prompt) :] = torch.tensor(row.prompt, dtype=torch.long)
        prompt_mask[i, width - len(row.prompt) :] = True
        response[i, : len(row.response)] = torch.tensor(row.response, dtype=torch.long)
        present[i, : len(row.response)] = True
        given[i, : len(row.given)] = torch.tensor(row.given, dtype=torch.bool)
    tokens = Tokens(prompt, prompt_mask, response, present & ~given, unit=unit)
    return tokens.with_(given=given) if bool(given.any()) else tokens
