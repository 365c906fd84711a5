"""reward: train the Bradley-Terry reward model on the preference pairs; measure it, mean and std included, on held-out pairs."""

from __future__ import annotations

from functools import partial

import torch

from grape.algorithms.reward_model import ALGORITHM
from grape.artifacts import Preference, read_rows, write_json
from grape.models.encode import Row, collate, encode_chat
from grape.models.forward import batched_scores, scalar
from grape.models.load import device, load_scalar_model, save_model
from grape.randomness import permutation
from grape.reward.learned import STATISTICS
from grape.stages import Stage, train_stage


def run(stage: Stage) -> None:
    stage.datasets("data/preferences")
    params = stage.params.reward
    model, tokenizer = load_scalar_model(str(stage.root / "models/sft"), from_language_model=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    preferences = read_rows(
        stage.root / "data/preferences/train.jsonl", Preference, mend="run it again: grape run preferences"
    )
    pairs = []
    for p in preferences:
        turns = [t.model_dump() for t in p.prompt]
        pair = [encode_chat(tokenizer, turns, side[-1].content, p.id) for side in (p.chosen, p.rejected)]
        if max(len(a) + len(b) for a, b in pair) <= stage.params.model.positions:
            pairs.append(pair)
    order = [int(i) for i in permutation(len(pairs), stage.params.seed, "reward", "split")]
    count = int(len(pairs) * params.heldout)
    rows: list[Row] = [row for i in order[count:] for row in pairs[i]]
    heldout: list[Row] = [row for i in order[:count] for row in pairs[i]]
    forward = partial(scalar, dtype=stage.params.model.dtype)
    train_stage(stage, model.to(device()), tokenizer, ALGORITHM, ALGORITHM.params(), rows, params, forward, unit=2)
    save_model(model, tokenizer, stage.root / "models/reward")
    statistics = _statistics(model, tokenizer, heldout or rows, stage)
    write_json(stage.root / "models/reward" / STATISTICS, {"mean": statistics["mean"], "std": statistics["std"]})
    stage.run.model("models/reward", "reward")
    stage.run.headline(
        {"pairs": float(len(pairs)), "dropped/too_long": float(len(preferences) - len(pairs)), **statistics}
    )


def _statistics(model: object, tokenizer: object, rows: list[Row], stage: Stage) -> dict[str, float]:
    """Accuracy, mean margin, mean and std of r, and accuracy where the chosen answer is the shorter one (length bias)."""
    batch = collate(rows, tokenizer.pad_token_id, unit=2).to(device())  # type: ignore[attr-defined]
    score = batched_scores(model, batch, stage.params.model.micro_batch_tokens, stage.params.model.dtype).cpu()
    margin = score[0::2] - score[1::2]
    length = batch.mask.sum(1).cpu()
    shorter = length[0::2] < length[1::2]
    values = {
        "accuracy": float((margin > 0).float().mean()),
        "margin": float(margin.mean()),
        "mean": round(float(score.mean()), 6),
        "std": round(max(float(score.std()), 1e-6), 6),
    }
    if bool(shorter.any()):
        values["accuracy_chosen_shorter"] = float((margin[shorter] > 0).float().mean())
    if not torch.isfinite(score).all():
        raise FloatingPointError("the reward model gives scores that are not finite; lower reward.learning_rate")
    return values
