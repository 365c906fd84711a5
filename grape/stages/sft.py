"""sft: instruction tuning on the demonstrations, loss on what the assistant says alone: all of its turns, or the last.
With no steps the SFT model is the base model, byte for byte, and no demonstration is read."""

from __future__ import annotations

import shutil
from functools import partial

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Demonstration
from grape.files import replacing
from grape.models.encode import encode_turns
from grape.models.forward import language
from grape.models.load import device, load_language_model, save_model
from grape.stages.chats import chat_of
from grape.stages.fit import fit
from grape.stages.stage import Stage
from grape.table import each_row


def run(stage: Stage) -> None:
    if stage.params.sft.steps:
        _tune(stage)
    else:
        with replacing(stage.path("models/sft")) as beside:
            shutil.copytree(stage.path("models/base"), beside)
        stage.write_history([])
    stage.run.model("models/sft", "sft")


def _tune(stage: Stage) -> None:
    stage.datasets("data/sft")
    model, tokenizer = load_language_model(str(stage.path("models/base")))
    demonstrations = each_row(
        stage.path("data/sft/train.jsonl"), Demonstration, mend="run the prepare stage again: grape run prepare"
    )
    chat, positions = chat_of(stage, tokenizer, model), stage.params.model.positions
    rows = encode_turns(chat, demonstrations, positions, "data/sft", stage.params.sft.turns)
    stage.left_out(rows.counts, len(rows.kept), "demonstrations", f"model.positions = {positions} tokens")
    forward = partial(language, model, dtype=stage.params.model.dtype)
    history = fit(stage, model.to(device()), chat, ALGORITHM, ALGORITHM.params(), rows.rows, stage.params.sft, forward)
    save_model(model, tokenizer, stage.path("models/sft"))
    stage.run.headline({"loss": history[-1]["loss"]})
