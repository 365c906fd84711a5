"""sft: instruction tuning on the demonstrations, loss on what the assistant says alone: all of its turns, or the last.
With no steps the SFT model is the base model, no demonstration is read and nothing is copied."""

from __future__ import annotations

from functools import partial

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Demonstration
from grape.models.encode import encode_turns
from grape.models.folder import point
from grape.models.forward import language
from grape.models.load import device, load_language_model
from grape.stages.chats import chat_of
from grape.stages.fit import fit
from grape.stages.stage import Stage
from grape.stages.trained import kept_in, save_trained, trainable
from grape.table import each_row


def run(stage: Stage) -> None:
    if stage.params.sft.steps:
        _tune(stage)
    else:
        stage.model("models/base")  # refuses what is not whole
        point(stage.path("models/sft"), "models/base")
        stage.write_history([])
    stage.run.model("models/sft", "sft")


def _tune(stage: Stage) -> None:
    stage.datasets("data/sft")
    model, tokenizer = load_language_model(stage.model("models/base"), weights=kept_in(stage))
    model = trainable(stage, model)
    demonstrations = each_row(
        stage.path("data/sft/train.jsonl"), Demonstration, mend="run the prepare stage again: grape run prepare"
    )
    chat, positions = chat_of(stage, tokenizer, model), stage.params.model.positions
    rows = encode_turns(chat, demonstrations, positions, "data/sft", stage.params.sft.turns)
    stage.left_out(rows.counts, len(rows.kept), "demonstrations", f"model.positions = {positions} tokens")
    forward = partial(language, model, dtype=stage.params.model.dtype)
    history = fit(stage, model.to(device()), chat, ALGORITHM, ALGORITHM.params(), rows.rows, stage.params.sft, forward)
    save_trained(stage, model, tokenizer, "models/sft", "models/base")
    stage.run.headline({"loss": history[-1]["loss"]})
