"""base: the pre-trained model. Loaded from a directory, a GGUF file or the hub, or trained from scratch on the corpus."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Document, read_rows
from grape.errors import GrapeError
from grape.models.encode import encode_document, fitting
from grape.models.forward import language
from grape.models.load import character_tokenizer, device, load_language_model, save_model, scratch
from grape.randomness import key
from grape.stages import Stage, train_stage


def run(stage: Stage) -> None:
    params = stage.params.model
    documents = [row.text for row in read_rows(stage.root / "data/corpus/train.jsonl", Document)]
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
        local = stage.root / Path(params.base).expanduser()
        base = str(local) if local.exists() or params.base.startswith((".", "/", "~")) else params.base
        model, tokenizer = load_language_model(base, params.revision)
        # A model that comes trained is taken as it is, unless there is a corpus to go on with.
        steps = stage.params.base.steps if documents and stage.params.base.steps else 0
    model.to(device())
    section = stage.params.base.model_copy(update={"steps": steps})
    rows, dropped = (
        fitting([encode_document(tokenizer, text) for text in documents], params.positions) if steps else ([], [])
    )
    history = train_stage(
        stage, model, tokenizer, ALGORITHM, ALGORITHM.params(), rows, section, partial(language, dtype=params.dtype)
    )
    save_model(model, tokenizer, stage.root / "models/base")
    stage.run.model("models/base", "base")
    stage.run.headline(
        {
            "parameters": float(sum(p.numel() for p in model.parameters())),
            "dropped/too_long": float(len(dropped)),
            **({"loss": history[-1]["loss"]} if history else {}),
        }
    )
