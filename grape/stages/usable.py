"""Whether the data can be used, found out before anything is trained on them: each prompt has a rubric and an answer that its
verifiers read, each conversation is one that the model's template takes, and what is too long for the model is counted.

Nothing is taken out here: the stage that would learn from a row leaves it out, and says so again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape.artifacts import Document, PromptRow
from grape.errors import GrapeError
from grape.evaluation import harness
from grape.models.chat import Chat
from grape.models.encode import encode_documents, encode_turns
from grape.models.load import load_tokenizer, place
from grape.models.protocols import Tokenizer
from grape.models.scratch import character_tokenizer
from grape.reward.rubric import load_rubrics
from grape.reward.source import RubricReward
from grape.stages.lessons import lesson, question
from grape.stages.modules import load_module
from grape.stages.stage import Stage
from grape.table import Table
from grape.types import Prompt

if TYPE_CHECKING:
    from grape.schema import Model

Tables = Mapping[str, Table[Any]]


def required(stage: Stage) -> set[str]:
    """The tables without which a stage could not run."""
    params = stage.params
    # Where it is for an algorithm to say, the preferences stage asks for the pairs: this stage would run again for each algorithm.
    paired = params.reward.when == "always" or params.rl.reward == "reward_model"
    needed = {"train": True, "sft": params.sft.steps > 0, "preferences": paired and params.preferences.source == "people"}
    return {name for name, is_needed in needed.items() if is_needed}


def check(stage: Stage, tables: Tables) -> dict[str, float]:
    """
    Returns:
        `too_long/TABLE` -> rows that do not fit.

    Raises:
        GrapeError: a row that some stage would refuse, with the place where it stands in the source.
    """
    mend = "add rows; those that hold a held-out question do not count"
    for name, what, other in (
        ("train", "training prompt", ""),
        ("validation", "validation prompt", ", or leave the file out: prepare.validation prompts are then set aside"),
        ("sft", "demonstration", ", or set sft.steps: 0"),
        ("preferences", "pair", ", or set preferences.source: rubric"),
    ):
        if not tables[name] and (name == "validation" or name in required(stage)):
            raise GrapeError(f"no {what} is left", where=f"prepare.source, {name}", mend=mend + other)
    harness.refuse(stage.params.evaluate.benchmarks, stage.project.root)
    gold = stage.path(f"{stage.params.prepare.source}/gold.py")
    if gold.is_file():
        load_module(gold)
    _scorable(stage, tables)
    tokenizer = base_tokenizer(stage.params.model, stage.project.root, tables["corpus"])
    long = _long(stage, tables, Chat(tokenizer, stage.params.model.template))
    refuse = stage.params.model.too_long == "refuse"
    for name, (count, longest) in long.items():
        if count and (refuse or count == len(tables[name])):
            raise GrapeError(
                f"{count} of {len(tables[name])} rows are longer than {longest}",
                where=f"prepare.source, {name}",
                mend="raise model.positions in params.yaml or shorten the data"
                + (", or let them be left out (model.too_long: drop)" if count < len(tables[name]) else ""),
            )
        if count:
            print(f"prepare: {count} of {len(tables[name])} rows of {name} will be left out: longer than {longest}", flush=True)
    return {f"too_long/{name}": float(count) for name, (count, _) in long.items()}


def _prompts(table: Table[PromptRow]) -> Iterator[Prompt]:
    return (row.value() for row in table)


def _scorable(stage: Stage, tables: Tables) -> None:
    """Refuse what the rubrics cannot score, where anything is scored by them."""
    params = stage.params
    if params.rl.reward != "rubric" and params.preferences.source == "people":
        return
    rubrics = load_rubrics(stage.path("rubrics"))
    verifiers = RubricReward(rubrics, kinds=frozenset({"verify"}))
    for name in ("train", "validation", "test"):
        verifiers.check(_prompts(tables[name]), tables[name].where, usable=rubrics)


def base_tokenizer(model: Model, root: Path, corpus: Iterable[Document]) -> Tokenizer:
    """As the base stage will have it."""
    if model.base != "scratch":
        return load_tokenizer(place(model.base, root), model.revision)
    texts = (row.text for row in corpus)
    first = next(texts, None)
    if first is None:
        raise GrapeError(
            "there is no corpus to train a model from scratch on",
            where="params.yaml, model.base",
            mend="add corpus.jsonl to prepare.source, or set model.base to a pre-trained model",
        )
    return character_tokenizer(chain([first], texts))


def _long(stage: Stage, tables: Tables, chat: Chat) -> dict[str, tuple[int, str]]:
    """Table -> rows too long for it, and for what. A table that nobody learns from is not looked at."""
    params, found = stage.params, {}
    positions, whole = params.model.positions, f"model.positions = {params.model.positions} tokens"
    if params.base.steps:
        rows = encode_documents(chat, (row.text for row in tables["corpus"]), positions, keep=False)
        found["corpus"] = (rows.counts["dropped/too_long"], whole)
    if params.sft.steps:
        rows = encode_turns(chat, tables["sft"], positions, tables["sft"].where, params.sft.turns, keep=False)
        found["sft"] = (rows.counts["dropped/too_long"], whole)
    room = positions - params.rl.max_new_tokens
    for name in ("train", "validation", "test"):
        where = tables[name].where
        dropped = sum(len(chat.prompt(prompt.messages, where(prompt))) > room for prompt in _prompts(tables[name]))
        found[name] = (dropped, f"model.positions - rl.max_new_tokens = {room} tokens")
    if tables["judgements"]:
        rubrics, where = load_rubrics(stage.path("rubrics")), tables["judgements"].where
        asked = (lesson(row, question(rubrics, row, where(row))) for row in tables["judgements"])
        if params.critic.steps and params.critic.judge.backend == "trained":
            rows = encode_turns(chat, asked, positions, where, keep=False)
            found["judgements"] = (rows.counts["dropped/too_long"], whole)
        deque(asked, maxlen=0)  # a question that cannot be asked is refused though nobody is trained on it
    return found
