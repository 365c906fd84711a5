"""sft: instruction tuning on the demonstrations, loss on the responses only."""

from __future__ import annotations

from functools import partial

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Demonstration, read_rows
from grape.models.encode import encode_chat, fitting
from grape.models.forward import language
from grape.models.load import device, load_language_model, save_model
from grape.stages import Stage, train_stage


def run(stage: Stage) -> None:
    stage.datasets("data/sft")
    model, tokenizer = load_language_model(str(stage.root / "models/base"))
    demonstrations = read_rows(
        stage.root / "data/sft/train.jsonl", Demonstration, mend="run the prepare stage again: grape run prepare"
    )
    rows, dropped = fitting(
        [
            encode_chat(tokenizer, [t.model_dump() for t in d.messages[:-1]], d.messages[-1].content, d.id)
            for d in demonstrations
        ],
        stage.params.model.positions,
    )
    forward = partial(language, dtype=stage.params.model.dtype)
    history = train_stage(
        stage, model.to(device()), tokenizer, ALGORITHM, ALGORITHM.params(), rows, stage.params.sft, forward
    )
    save_model(model, tokenizer, stage.root / "models/sft")
    stage.run.model("models/sft", "sft")
    stage.run.headline({"dropped/too_long": float(len(dropped)), **({"loss": history[-1]["loss"]} if history else {})})
