"""Prompts to ids and ids to responses, whatever the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from grape.models.chat import Chat, Row
from grape.models.forward import Dtype
from grape.models.protocols import LanguageModel
from grape.sampling.engine import RolloutEngine, Wanted, Written
from grape.sampling.own import Own
from grape.types import Prompt, Response


def answers(
    engine: RolloutEngine,
    chat: Chat,
    prompts: Sequence[Prompt],
    samples: int,
    *,
    temperature: float,
    max_new_tokens: int,
    positions: int,
    keys: Sequence[object],
    greedy: bool = False,
    told: Callable[[Response], None] | None = None,
) -> list[Response]:
    """G = `samples` responses per prompt, grouped: responses p*G .. p*G+G-1 answer prompt p, with the engine's log-probabilities.

    Args:
        temperature: > 0; 0 takes the most likely token (greedy), then samples must be 1.
        positions: prompt and response together stay within this many tokens.
        keys: what the draws are for, e.g. (seed, "rl", update).
        greedy: every group has one response more, its last: the most likely tokens, written beside the others.
        told: may be called with each response as soon as it is finished.
    """
    if temperature == 0 and (samples != 1 or greedy):
        raise ValueError("greedy decoding gives one response per prompt")
    encoded = [chat.prompt(prompt.messages, prompt.id) for prompt in prompts]
    limits = [min(max_new_tokens, positions - len(row)) for row in encoded]
    if limits and min(limits) < 1:
        raise ValueError(
            f"prompt {prompts[limits.index(min(limits))].id} leaves no room for a response within {positions} positions"
        )
    group, names = samples + greedy, [prompt.id for prompt in prompts]
    wanted = Wanted(encoded, names, limits, group, temperature, keys, chat.stops, chat.pad, greedy)

    def response(i: int, written: Written) -> Response:
        ids, logp = written
        text, raw = chat.read(ids)
        finished, raw = bool(ids) and ids[-1] in chat.stops, "" if raw == text else raw
        return Response(prompts[i // group], i % group, tuple(ids), text, finished, raw, tuple(logp))

    rows = engine.write(wanted, (lambda i, written: told(response(i, written))) if told else None)
    return [response(i, written) for i, written in enumerate(rows)]


def sample(
    model: LanguageModel,
    chat: Chat,
    prompts: Sequence[Prompt],
    samples: int,
    *,
    temperature: float,
    max_new_tokens: int,
    positions: int,
    keys: Sequence[object],
    dtype: Dtype = "float32",
    rows_at_once: int | None = None,
    greedy: bool = False,
) -> list[Response]:
    """`answers` of grape's own engine, without its log-probabilities.

    Args:
        dtype, rows_at_once: as `Own` has them.
    """
    drawn = answers(
        Own(model, dtype, rows_at_once), chat, prompts, samples,
        temperature=temperature, max_new_tokens=max_new_tokens, positions=positions, keys=keys, greedy=greedy,
    )  # fmt: skip
    return [replace(response, logp=None) for response in drawn]


def response_rows(chat: Chat, responses: Sequence[Response]) -> list[Row]:
    """Rows for `collate`: the sampled ids themselves, never a re-encoding of their text."""
    return [Row(chat.prompt(r.prompt.messages, r.prompt.id), list(r.ids)) for r in responses]
