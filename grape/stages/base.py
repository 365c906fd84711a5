"""base: the pre-trained model. Loaded from a directory, a GGUF file or the hub, or trained from scratch on the corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Document
from grape.errors import GrapeError
from grape.models.encode import Rows, encode_documents
from grape.models.folder import point
from grape.models.forward import language
from grape.models.load import device, load_language_model, place, positions, save_model
from grape.models.lora import is_adapted, merged, save_adapter
from grape.models.protocols import LanguageModel, Tokenizer
from grape.models.scratch import character_tokenizer, scratch
from grape.randomness import key
from grape.stages.chats import chat_of
from grape.stages.fit import fit
from grape.stages.stage import Stage
from grape.stages.trained import save_trained, trainable
from grape.table import each_row


def run(stage: Stage) -> None:
    params = stage.params.model
    there = next(_documents(stage), None) is not None
    stage.datasets("data/corpus")
    model, tokenizer = _scratch(stage, there) if params.base == "scratch" else _pretrained(stage)
    # A model that comes trained is taken as it is, unless there is a corpus to go on with.
    section = stage.params.base if there else stage.params.base.model_copy(update={"steps": 0})
    chat = chat_of(stage, tokenizer, model)
    if missing := chat.stops - _named_ends(model):
        # So that every program that loads what grape saves stops where grape does.
        model.generation_config.eos_token_id = sorted(_named_ends(model) | missing)
    parameters = float(sum(p.numel() for p in model.parameters()))
    if section.steps and params.base != "scratch":
        model = trainable(stage, model)
    elif section.steps and params.lora.rank:
        print("base: a model from scratch has no weights for adapters to stand on, and is trained in full", flush=True)
    model.to(device())
    rows = encode_documents(chat, _documents(stage), params.positions) if section.steps else Rows()
    stage.left_out(rows.counts, len(rows.kept), "documents", f"model.positions = {params.positions} tokens")
    forward = partial(language, model, dtype=params.dtype)
    history = fit(stage, model, chat, ALGORITHM, ALGORITHM.params(), rows.rows, section, forward)
    _save(stage, model, tokenizer, bool(section.steps), bool(missing))
    stage.run.model("models/base", "base")
    loss = {"loss": history[-1]["loss"]} if history else {}
    stage.run.headline({"parameters": parameters, **loss})


def _save(stage: Stage, model: LanguageModel, tokenizer: Tokenizer, trained: bool, ends: bool) -> None:
    """Weights, adapters over `model.base`, or, where nothing was trained, its name. What is read from GGUF becomes weights.

    Args:
        ends: the model's generation config names more ends of an answer than the one it came with.
    """
    base, folder = stage.params.model.base, stage.path("models/base")
    converted = Path(base).suffix == ".gguf"
    revision = getattr(model.config, "_commit_hash", None)
    name = f"./{base}" if (stage.project.root / base).exists() and not base.startswith((".", "/")) else base
    if base == "scratch" or (converted and not is_adapted(model)):
        save_model(model, tokenizer, folder)
    elif not trained:
        point(folder, name, revision, model if ends else None)
    elif converted:
        with tempfile.TemporaryDirectory() as beside:
            save_adapter(model, tokenizer, Path(beside) / "adapter", name)
            full = merged(_pretrained(stage)[0], Path(beside) / "adapter")
        full.generation_config = model.generation_config
        save_model(full, tokenizer, folder)
    else:
        save_trained(stage, model, tokenizer, "models/base", name, revision)


def _documents(stage: Stage) -> Iterator[str]:
    """The texts of the corpus, one after the other."""
    return (row.text for row in each_row(stage.path("data/corpus/train.jsonl"), Document))


def _scratch(stage: Stage, there: bool) -> tuple[LanguageModel, Tokenizer]:
    params = stage.params.model
    if not there:
        raise GrapeError(
            "there is no corpus to train a model from scratch on",
            where="data/corpus",
            mend="add corpus.jsonl to prepare.source, or set model.base to a pre-trained model",
        )
    tokenizer = character_tokenizer(_documents(stage))
    seed = key(stage.params.seed, "base", "weights") % 2**63
    return scratch(params.architecture, params.layers, params.width, params.heads, params.positions, tokenizer, seed), tokenizer


def _pretrained(stage: Stage) -> tuple[LanguageModel, Tokenizer]:
    params = stage.params.model
    model, tokenizer = load_language_model(place(params.base, stage.project.root), params.revision)
    if params.positions > positions(model):
        raise GrapeError(
            f"model.positions is {params.positions}, and {params.base} knows {positions(model)}",
            where="params.yaml, model.positions",
            mend=f"set it to {positions(model)} or less",
        )
    return model, tokenizer


def _named_ends(model: LanguageModel) -> set[int]:
    """The ids that the generation config says end a response."""
    named = model.generation_config.eos_token_id
    return set(named if isinstance(named, list) else [] if named is None else [named])
