"""`grape generate FILE`: answers to the prompts of a file, by the model of any stage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape.artifacts import PromptRow, checked
from grape.data.converted import Told, converted
from grape.data.shapes import SHAPES
from grape.data.tables import read
from grape.errors import GrapeError
from grape.export.checks import model_path, recorded, refuse_output
from grape.files import write_lines
from grape.models.chat import Chat
from grape.models.encode import fitting_prompts
from grape.models.load import device, load_language_model, positions
from grape.params import Params, load
from grape.progress import Progress
from grape.project import Project
from grape.sampling import sample
from grape.types import Prompt

TALKING = ("base", "sft", "critic", "rl")
ROWS = 64  # answers written at once


@dataclass(frozen=True)
class Draws:
    """How answers are drawn. None: greedy for one answer, `evaluate.temperature` for several; `rl.max_new_tokens`."""

    samples: int = 1
    temperature: float | None = None
    max_new_tokens: int | None = None


def generate(project: Project, file: Path, stage: str, out: Path | None, draws: Draws, say: Callable[[str], None]) -> None:
    """Write a row for each prompt: `id`, `prompt`, `reference` if there is one; of each answer its text in `answers`, whether it
    came to an end in `finished`, its length in `tokens`.

    Args:
        out: JSON Lines, whole or not there; None: standard output.

    Raises:
        GrapeError: a row is wrong, or does not fit and `model.too_long` refuses such rows; settings that cannot be.
    """
    params, path = load(project.params, []), model_path(stage, TALKING)
    temperature, longest = _settled(params, draws)
    if out is not None:
        refuse_output(project, out, file)
    prompts = _prompts(file, say)
    recorded(project, stage, path)
    model, tokenizer = load_language_model(str(project.root / path))
    chat = Chat(tokenizer, params.model.template, model.to(device()))
    room = min(params.model.positions, positions(model))
    prompts = _fitting(params, chat, file, prompts, room - longest, say)
    told = Progress("generate", len(prompts))
    rows: list[dict[str, Any]] = []
    at_once = max(1, ROWS // draws.samples)
    for start in range(0, len(prompts), at_once):
        chunk = prompts[start : start + at_once]
        answers = sample(
            model,
            chat,
            chunk,
            draws.samples,
            temperature=temperature,
            max_new_tokens=longest,
            positions=room,
            keys=(params.seed, "generate"),
            dtype=params.model.dtype,
        )
        groups = [answers[i : i + draws.samples] for i in range(0, len(answers), draws.samples)]
        rows += [_row(prompt, group) for prompt, group in zip(chunk, groups, strict=True)]
        told(len(rows), {})
    if out is not None:
        write_lines(out, rows)
    else:
        print("".join(json.dumps(row) + "\n" for row in rows), end="", flush=True)
    cut = sum(not finished for row in rows for finished in row["finished"])
    say(f"{len(rows)} prompts, {draws.samples} answers each; {cut} answers were cut at {longest} tokens")


def _settled(params: Params, draws: Draws) -> tuple[float, int]:
    """Temperature and longest answer, tokens.

    Raises:
        GrapeError: they cannot be.
    """
    longest = draws.max_new_tokens or params.rl.max_new_tokens
    if longest >= params.model.positions:
        what = f"{longest} tokens leave no room for a prompt within model.positions = {params.model.positions}"
        raise GrapeError(what, where="--max-new-tokens", mend="give fewer, or raise model.positions in params.yaml")
    if draws.temperature == 0 and draws.samples > 1:
        what = "at temperature 0 all answers to a prompt are the same"
        raise GrapeError(what, where="--samples", mend="give --temperature above 0, or --samples 1")
    given = draws.temperature
    return (0.0 if draws.samples == 1 else params.evaluate.temperature) if given is None else given, longest


def _prompts(file: Path, say: Callable[[str], None]) -> list[Prompt]:
    """Rows of any shape of prompts; they need no category here."""
    if not file.exists():
        raise GrapeError("no such file", where=str(file), mend="JSON Lines, JSON, CSV, Parquet, or a folder that datasets saved")
    try:
        rows = checked(converted(read(file), "prompts", str(file), Told(category="any"), say, Counter()), PromptRow)
    except GrapeError as error:
        if "prepare.columns" not in (error.mend or ""):
            raise
        known = "; or ".join(shape.name for shape in SHAPES["prompts"])  # its mend is for what prepare reads
        raise GrapeError(error.what, where=error.where, mend=f"name the columns so: {known}") from None
    if not rows:
        raise GrapeError("there is no prompt in it", where=str(file), mend="give a row for each prompt")
    return [row.value() for row in rows]


def _fitting(params: Params, chat: Chat, file: Path, prompts: list[Prompt], room: int, say: Callable[[str], None]) -> list[Prompt]:
    """The prompts of at most `room` tokens; the others are counted, or refused as `model.too_long` says."""
    kept, dropped = fitting_prompts(chat, prompts, room, str(file))
    what = f"{len(dropped)} of {len(prompts)} prompts are longer than model.positions less the longest answer, {room} tokens"
    if dropped and (params.model.too_long == "refuse" or not kept):
        mend = "shorten them, lower --max-new-tokens" + (", or let them be left out (model.too_long: drop)" if kept else "")
        raise GrapeError(what, where=f"{file}, {prompts[dropped[0]].id}", mend=mend)
    if dropped:
        say(f"{what}, and left out: {', '.join(prompts[i].id for i in dropped[:3])}{', ..' * (len(dropped) > 3)}")
    return kept


def _row(prompt: Prompt, answers: list[Any]) -> dict[str, Any]:
    reference = {} if prompt.answer is None else {"reference": prompt.answer}
    return {
        "id": prompt.id,
        "prompt": list(prompt.messages),
        **reference,
        "answers": [answer.text for answer in answers],
        "finished": [answer.finished for answer in answers],
        "tokens": [len(answer.ids) for answer in answers],
    }
