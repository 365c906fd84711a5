"""From text to padded token rows. A conversation becomes ids once, split at the response; after that, ids in and ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grape.errors import GrapeError
from grape.types import Batch

Row = tuple[list[int], list[int]]  # prompt ids, response ids


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a response: the tokenizer's EOS and the generation config's, which may be a list."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = named if isinstance(named, (list, tuple)) else [named]
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)


def prompt_text(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    text = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def encode_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of the conversation up to where the model speaks. The template writes BOS itself if there is one to write."""
    return list(tokenizer(prompt_text(tokenizer, messages), add_special_tokens=False)["input_ids"])


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], response: str, where: str = "") -> Row:
    """(prompt ids, response ids incl. EOS): the template's own text for the whole conversation, split at its generation prompt.

    Raises:
        GrapeError: the template's text of the whole does not begin with its text of the prompt, so that training would see
            another prefix than sampling does.
    """
    head = prompt_text(tokenizer, messages)
    whole = tokenizer.apply_chat_template(
        [*(dict(m) for m in messages), {"role": "assistant", "content": response}], tokenize=False
    )
    if not whole.startswith(head):
        raise GrapeError(
            "the chat template is not prefix-stable: the conversation with its answer does not begin with the prompt the "
            "model is sampled from",
            where=where or None,
            mend="use a chat template whose generation prompt is a prefix of the answer's text",
        )
    prompt = list(tokenizer(head, add_special_tokens=False)["input_ids"])
    rest = list(tokenizer(whole[len(head) :], add_special_tokens=False)["input_ids"])
    eos = tokenizer.eos_token_id
    # Templates put a newline or the like behind EOS; sampling stops at EOS, so training does too.
    rest = rest[: rest.index(eos) + 1] if eos in rest else [*rest, eos]
    return prompt, rest


def encode_document(tokenizer: Any, text: str) -> Row:
    """A pre-training document: an empty prompt (BOS, or EOS where a tokenizer has no BOS) and the text with EOS."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [start], [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def fitting(rows: Sequence[Row], positions: int) -> tuple[list[Row], list[int]]:
    """The rows that fit into `positions` tokens, and the indices of those that do not: cutting would remove EOS or the answer."""
    kept, dropped = [], []
    for i, row in enumerate(rows):
        if len(row[0]) + len(row[1]) <= positions and row[1]:
            kept.append(row)
        else:
            dropped.append(i)
    return kept, dropped


def fitting_pairs(tokenizer: Any, pairs: Sequence[Any], positions: int) -> tuple[list[Row], list[int]]:
    """Rows chosen, rejected, chosen, .. of the preference pairs that fit into `positions` tokens, and the indices of the others."""
    rows: list[Row] = []
    dropped = []
    for i, pair in enumerate(pairs):
        turns = [turn.model_dump() for turn in pair.prompt]
        both = [encode_chat(tokenizer, turns, side[-1].content, pair.id) for side in (pair.chosen, pair.rejected)]
        if len(fitting(both, positions)[0]) == 2:
            rows += both
        else:
            dropped.append(i)
    return rows, dropped


def collate(rows: Sequence[Row], pad_id: int, unit: int = 1) -> Batch:
    """Left-padded prompts and right-padded responses with masks from the recorded lengths."""
    width = max(len(p) for p, _ in rows)
    length = max(max(len(r) for _, r in rows), 1)
    prompt = torch.full((len(rows), width), pad_id, dtype=torch.long)
    response = torch.full((len(rows), length), pad_id, dtype=torch.long)
    prompt_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (p, r) in enumerate(rows):
        prompt[i, width - len(p) :] = torch.tensor(p, dtype=torch.long)
        prompt_mask[i, width - len(p) :] = True
        response[i, : len(r)] = torch.tensor(r, dtype=torch.long)
        mask[i, : len(r)] = True
    return Batch(prompt, prompt_mask, response, mask, unit=unit)
