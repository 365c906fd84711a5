"""Whether the data can be used, found out before anything is trained on them: each prompt has a rubric and an answer that its
verifiers read, each conversation is one that the model's template takes, and what is too long for the model is counted.

Nothing is taken out here: the stage that would learn from a row leaves it out, and says so again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape.artifacts import Document
from grape.errors import GrapeError
from grape.evaluation import harness
from grape.models.chat import Chat
from grape.models.encode import encode_documents, encode_turns, fitting_prompts
from grape.models.load import load_tokenizer, place
from grape.models.protocols import Tokenizer
from grape.models.scratch import character_tokenizer
from grape.reward.rubric import load_rubrics
from grape.reward.source import RubricReward
from grape.stages.lessons import lesson, question
from grape.stages.modules import load_module
from grape.stages.stage import Stage
from grape.types import Prompt

if TYPE_CHECKING:
    from grape.schema import Model

Tables = Mapping[str, Sequence[Any]]
Places = dict[tuple[str, str], str]  # (table, id) -> where the row stands in the source


def required(stage: Stage) -> set[str]:
    """The tables without which a stage could not run."""
    params = stage.params
    needed = {"train": True, "sft": params.sft.steps > 0, "preferences": params.preferences.source == "people"}
    return {name for name, is_needed in needed.items() if is_needed}


def check(stage: Stage, tables: Tables, places: Places) -> dict[str, float]:
    """
    Returns:
        `too_long/TABLE` -> rows that do not fit.

    Raises:
        GrapeError: a row that some stage would refuse, with the place where it stands in the source.
    """
    mend = "add rows; those that hold a held-out question do not count"
    for name, what, other in (
        ("train", "training prompt", ""),
        ("sft", "demonstration", ", or set sft.steps: 0"),
        ("preferences", "pair", ", or set preferences.source: rubric"),
    ):
        if not tables[name] and name in required(stage):
            raise GrapeError(f"no {what} is left", where=f"prepare.source, {name}", mend=mend + other)
    harness.refuse(stage.params.evaluate.benchmarks, stage.project.root)
    gold = stage.path(f"{stage.params.prepare.source}/gold.py")
    if gold.is_file():
        load_module(gold)
    prompts = {name: [row.value() for row in tables[name]] for name in ("train", "heldout")}
    _scorable(stage, prompts, places)
    tokenizer = base_tokenizer(stage.params.model, stage.project.root, tables["corpus"])
    long = _long(stage, tables, prompts, Chat(tokenizer, stage.params.model.template), places)
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


def _at(places: Places, table: str) -> Callable[[Any], str]:
    """Where a row of the table stands. Held-out prompts may have been set aside from the training ones."""
    return lambda row: places.get((table, row.id)) or places.get(("train", row.id)) or f"{table}, {row.id}"


def _scorable(stage: Stage, prompts: Mapping[str, list[Prompt]], places: Places) -> None:
    """Refuse what the rubrics cannot score, where anything is scored by them."""
    params = stage.params
    if params.rl.reward != "rubric" and params.preferences.source == "people":
        return
    rubrics = load_rubrics(stage.path("rubrics"))
    verifiers = RubricReward(rubrics, kinds=frozenset({"verify"}))
    for name, rows in prompts.items():
        verifiers.check(rows, _at(places, name), usable=rubrics)


def base_tokenizer(model: Model, root: Path, corpus: Sequence[Document]) -> Tokenizer:
    """As the base stage will have it."""
    if model.base != "scratch":
        return load_tokenizer(place(model.base, root), model.revision)
    if not corpus:
        raise GrapeError(
            "there is no corpus to train a model from scratch on",
            where="params.yaml, model.base",
            mend="add corpus.jsonl to prepare.source, or set model.base to a pre-trained model",
        )
    return character_tokenizer([row.text for row in corpus])


def _long(
    stage: Stage, tables: Tables, prompts: Mapping[str, list[Prompt]], chat: Chat, places: Places
) -> dict[str, tuple[int, str]]:
    """Table -> rows too long for it, and for what. A table that nobody learns from is not looked at."""
    params, found = stage.params, {}
    positions, whole = params.model.positions, f"model.positions = {params.model.positions} tokens"
    if params.base.steps:
        rows = encode_documents(chat, [row.text for row in tables["corpus"]], positions)
        found["corpus"] = (rows.counts["dropped/too_long"], whole)
    if params.sft.steps:
        rows = encode_turns(chat, tables["sft"], positions, _at(places, "sft"), params.sft.turns)
        found["sft"] = (rows.counts["dropped/too_long"], whole)
    room = positions - params.rl.max_new_tokens
    for name, given in prompts.items():
        _, dropped = fitting_prompts(chat, given, room, _at(places, name))
        found[name] = (len(dropped), f"model.positions - rl.max_new_tokens = {room} tokens")
    if tables["judgements"]:
        rubrics, where = load_rubrics(stage.path("rubrics")), _at(places, "judgements")
        asked = [lesson(row, question(rubrics, row, where(row))) for row in tables["judgements"]]
        if params.critic.steps and params.critic.judge.backend == "trained":
            rows = encode_turns(chat, asked, positions, where)
            found["judgements"] = (rows.counts["dropped/too_long"], whole)
    return found
