"""`grape chat [STAGE]`: talk to the model of a trained stage, through the chat template its tokenizer carries."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape.errors import GrapeError
from grape.models.folder import holds_model
from grape.needed import made
from grape.params import load
from grape.project import Project
from grape.types import Prompt, Response

if TYPE_CHECKING:
    from grape.models.template import Template

HELP = "type a question; /reset forgets the conversation, /quit (or Ctrl-D) leaves"


def model_folder(project: Project, stage: str | None) -> Path:
    """Where the model of `stage` lies; None: the best policy of the last report, else SFT.

    Raises:
        GrapeError: the stage has no language model, or has not run.
    """
    name = stage or best_policy(project)
    kind, _, policy = name.partition("@")
    if kind not in ("base", "sft", "critic", "rl") or (kind == "rl" and not policy):
        mend = "one of: base, sft, critic, rl@ALGORITHM-SEED (e.g. rl@grape-0)"
        raise GrapeError(f"no stage {name!r} with a model to talk to", where="grape chat", mend=mend)
    folder = project.root / "models" / (f"policy/{policy}" if kind == "rl" else kind)
    if not holds_model(made(folder)):
        raise GrapeError(f"{name} has no model yet", where=str(folder), mend=f"run it: grape run {name}")
    return folder


def best_policy(project: Project) -> str:
    """The policy with the highest gold (else proxy) score in reports/metrics.json, as a stage name."""
    try:
        policies: Mapping[str, Any] = json.loads((project.root / "reports/metrics.json").read_text())["policies"]
    except (OSError, ValueError, KeyError):
        return "sft"
    there = {n: p for n, p in policies.items() if holds_model(project.root / "models/policy" / n)}

    def score(name: str) -> float:
        gold = there[name].get("gold")
        return float(there[name]["proxy"] if gold is None else gold)

    return f"rl@{max(there, key=score)}" if there else "sft"


def answers(
    folder: Path, questions: Iterator[str], max_new_tokens: int, positions: int, template: Template | None = None
) -> Iterator[str]:
    """One greedy answer per question; earlier turns stay in the conversation until /reset, or until they no longer fit."""
    # Here, so that a stage without a model is named before transformers is there, which takes seconds.
    from grape.models.chat import Chat
    from grape.models.load import device, load_language_model
    from grape.sampling import sample

    model, tokenizer = load_language_model(str(folder))
    model.to(device())
    chat = Chat(tokenizer, template, model)
    turns: list[dict[str, str]] = []

    def answer() -> Response:
        asked = [Prompt("chat", "chat", tuple(turns))]
        return sample(model, chat, asked, 1, temperature=0.0, max_new_tokens=max_new_tokens, positions=positions, keys=("chat",))[0]

    for question in questions:
        if question == "/reset":
            turns = []
            continue
        turns.append({"role": "user", "content": question})
        while True:
            try:
                given = answer()
                break
            except ValueError as error:
                if len(turns) == 1:
                    what, mend = "this question is longer than the model's positions", "ask a shorter one"
                    raise GrapeError(what, where="grape chat", mend=mend) from error
                turns = turns[2:]
        turns.append({"role": "assistant", "content": given.text})
        yield given.text if given.finished else given.text + " ..."


def _typed() -> Iterator[str]:
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = input("you> " if terminal else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            yield line


def chat(project: Project, stage: str | None) -> None:
    """Talk on the terminal, or answer the lines of standard input."""
    params = load(project.params)
    folder = model_folder(project, stage)
    if sys.stdin.isatty():
        print(f"{folder.relative_to(project.root)}: {HELP}")
    name = "model> " if sys.stdin.isatty() else ""
    for answer in answers(folder, _typed(), params.rl.max_new_tokens, params.model.positions, params.model.template):
        print(f"{name}{answer}", flush=True)
