"""sft: instruction tuning on the demonstrations, loss on what the assistant says alone: all of its turns, or the last."""

from __future__ import annotations

from functools import partial

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Demonstration, read_rows
from grape.models.encode import Rows, encode_turns
from grape.models.forward import language
from grape.models.load import device, load_language_model, save_model
from grape.stages.chats import chat_of
from grape.stages.fit import fit
from grape.stages.stage import Stage


def run(stage: Stage) -> None:
    stage.datasets("data/sft")
    model, tokenizer = load_language_model(str(stage.path("models/base")))
    demonstrations = read_rows(
        stage.path("data/sft/train.jsonl"), Demonstration, mend="run the prepare stage again: grape run prepare"
    )
    chat, positions = chat_of(stage, tokenizer, model), stage.params.model.positions
    rows = encode_turns(chat, demonstrations, positions, "data/sft", stage.params.sft.turns) if stage.params.sft.steps else Rows()
    stage.left_out(rows.counts, len(rows.kept), "demonstrations", f"model.positions = {positions} tokens")
    forward = partial(language, model, dtype=stage.params.model.dtype)
    history = fit(stage, model.to(device()), chat, ALGORITHM, ALGORITHM.params(), rows.rows, stage.params.sft, forward)
    save_model(model, tokenizer, stage.path("models/sft"))
    stage.run.model("models/sft", "sft")
    stage.run.headline({"loss": history[-1]["loss"]} if history else {})
