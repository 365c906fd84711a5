"""reward: train the Bradley-Terry reward model on the preference pairs; measure it, mean and std included, on held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from grape.algorithms.reward_model import ALGORITHM
from grape.artifacts import Preference, read_rows
from grape.files import write_json
from grape.models import micro
from grape.models.chat import Row
from grape.models.encode import collate, encode_pairs
from grape.models.forward import batched_scores, scalar
from grape.models.load import device, load_scalar_model
from grape.models.protocols import ScalarModel, Tokenizer
from grape.needed import why_not
from grape.randomness import permutation
from grape.reward.learned import STATISTICS
from grape.stages.chats import chat_of
from grape.stages.fit import fit
from grape.stages.stage import Stage
from grape.stages.trained import kept_in, save_trained, trainable


def run(stage: Stage) -> None:
    stage.datasets("data/preferences")
    params = stage.params.reward
    labelled = stage.path("data/preferences/train.jsonl")
    if without := why_not(labelled):
        return stage.not_made("models/reward", without, "mend that, and run again: grape run reward")
    model, tokenizer = load_scalar_model(stage.model("models/sft"), from_language_model=True, weights=kept_in(stage))
    trainable(stage, model)
    preferences = read_rows(labelled, Preference, mend="run it again: grape run preferences")
    chat, positions = chat_of(stage, tokenizer), stage.params.model.positions
    encoded = encode_pairs(chat, preferences, positions, "data/preferences")
    stage.left_out(encoded.counts, len(encoded.kept), "pairs", f"model.positions = {positions} tokens")
    pairs, scores = encoded.rows, [preferences[i] for i in encoded.kept]
    trained, kept = split(scores, params.heldout, stage.params.seed)
    rows: list[Row] = [row for i in trained for row in pairs[2 * i : 2 * i + 2]]
    heldout: list[Row] = [row for i in kept for row in pairs[2 * i : 2 * i + 2]]
    margins = [torch.tensor(_difference(scores[i])) for i in trained for _ in range(2)]
    knobs = ALGORITHM.params.model_validate({"centring": params.centring, "margin": params.margin})
    forward = partial(scalar, model, dtype=stage.params.model.dtype)
    extra = {"margin": margins}
    fit(stage, model.to(device()), chat, ALGORITHM, knobs, rows, params, forward, 2, extra)
    save_trained(stage, model, tokenizer, "models/reward", "models/sft")
    statistics = _statistics(model, tokenizer, heldout or rows, stage)
    write_json(stage.path("models/reward") / STATISTICS, {"mean": statistics["mean"], "std": statistics["std"]})
    stage.run.model("models/reward", "reward")
    stage.run.headline({"pairs": float(len(scores)), **statistics})


def split(pairs: Sequence[Preference], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of the pairs to train on and of those held out: a prompt's pairs share answers, so they stay together."""
    prompts: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        prompts.setdefault(repr(pair.prompt), []).append(place)
    groups = list(prompts.values())
    order = [groups[int(i)] for i in permutation(len(groups), seed, "reward", "split")]
    count = int(len(groups) * share)
    return [i for group in order[count:] for i in group], [i for group in order[:count] for i in group]


def _difference(pair: Preference) -> float:
    """How much better the chosen answer scored; 0 for pairs that people labelled without scores."""
    if pair.chosen_score is None or pair.rejected_score is None:
        return 0.0
    return pair.chosen_score - pair.rejected_score


def _statistics(model: ScalarModel, tokenizer: Tokenizer, rows: list[Row], stage: Stage) -> dict[str, float]:
    """Accuracy, mean margin, mean and std of r, and accuracy where the chosen answer is the shorter one (length bias)."""
    batch = collate(rows, tokenizer.pad_token_id, unit=2).to(device())
    score = batched_scores(model, batch, micro.fixed(), stage.params.model.dtype).cpu()
    margin = score[0::2] - score[1::2]
    length = batch.present.sum(1).cpu()
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
