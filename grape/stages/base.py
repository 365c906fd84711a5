"""base: the pre-trained model. Loaded from a directory, a GGUF file or the hub, or trained from scratch on the corpus."""

from __future__ import annotations

from functools import partial

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Document, read_rows
from grape.errors import GrapeError
from grape.models.encode import Rows, encode_documents
from grape.models.forward import language
from grape.models.load import device, load_language_model, place, positions, save_model
from grape.models.protocols import LanguageModel
from grape.models.scratch import character_tokenizer, scratch
from grape.randomness import key
from grape.stages.chats import chat_of
from grape.stages.fit import fit
from grape.stages.stage import Stage


def run(stage: Stage) -> None:
    params = stage.params.model
    documents = [row.text for row in read_rows(stage.path("data/corpus/train.jsonl"), Document)]
    stage.datasets("data/corpus")
    if params.base == "scratch":
        if not documents:
            raise GrapeError(
                "there is no corpus to train a model from scratch on",
                where="data/corpus",
                mend="add corpus.jsonl to prepare.source, or set model.base to a pre-trained model",
            )
        tokenizer = character_tokenizer(documents)
        seed = key(stage.params.seed, "base", "weights") % 2**63
        model = scratch(
            params.architecture, params.layers, params.width, params.heads, params.positions, tokenizer, seed
        )
        steps = stage.params.base.steps
    else:
        model, tokenizer = load_language_model(place(params.base, stage.project.root), params.revision)
        # A model that comes trained is taken as it is, unless there is a corpus to go on with.
        steps = stage.params.base.steps if documents and stage.params.base.steps else 0
        if params.positions > positions(model):
            raise GrapeError(
                f"model.positions is {params.positions}, and {params.base} knows {positions(model)}",
                where="params.yaml, model.positions",
                mend=f"set it to {positions(model)} or less",
            )
    chat = chat_of(stage, tokenizer, model)
    if missing := chat.stops - _named_ends(model):
        # So that every program that loads what grape saves stops where grape does.
        model.generation_config.eos_token_id = sorted(_named_ends(model) | missing)
    model.to(device())
    section = stage.params.base.model_copy(update={"steps": steps})
    rows = encode_documents(chat, documents, params.positions) if steps else Rows()
    stage.left_out(rows.counts, len(rows.kept), "documents", f"model.positions = {params.positions} tokens")
    history = fit(
        stage, model, chat, ALGORITHM, ALGORITHM.params(), rows.rows, section, partial(language, model, dtype=params.dtype)
    )
    save_model(model, tokenizer, stage.path("models/base"))
    stage.run.model("models/base", "base")
    stage.run.headline(
        {
            "parameters": float(sum(p.numel() for p in model.parameters())),
            **({"loss": history[-1]["loss"]} if history else {}),
        }
    )


def _named_ends(model: LanguageModel) -> set[int]:
    """The ids that the generation config says end a response."""
    named = model.generation_config.eos_token_id
    return set(named if isinstance(named, list) else [] if named is None else [named])
