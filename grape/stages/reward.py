"""reward: train the Bradley-Terry reward model on the preference pairs; measure it, mean and std included, on held-out pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from grape.algorithms.reward_model import ALGORITHM
from grape.artifacts import Preference, read_rows
from grape.files import write_json
from grape.models import micro
from grape.models.chat import Chat, Row
from grape.models.encode import collate, encode_pairs
from grape.models.forward import batched_scores, scalar
from grape.models.load import device, load_scalar_model, load_tokenizer
from grape.models.protocols import ScalarModel, Tokenizer
from grape.needed import why_not
from grape.randomness import generator, permutation
from grape.reward.learned import MEMBERS, STATISTICS, agreement, doubt
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
    tokenizer = load_tokenizer(stage.model("models/sft"))
    preferences = read_rows(labelled, Preference, mend="run it again: grape run preferences")
    chat, positions = chat_of(stage, tokenizer), stage.params.model.positions
    encoded = encode_pairs(chat, preferences, positions, "data/preferences")
    stage.left_out(encoded.counts, len(encoded.kept), "pairs", f"model.positions = {positions} tokens")
    pairs = Pairs([preferences[i] for i in encoded.kept], encoded.rows)
    trained, kept = split(pairs.records, params.heldout, stage.params.seed)
    found = [
        _member(stage, chat, pairs, resampled(pairs.records, trained, stage.params.seed, member), kept or trained, member)
        for member in range(params.members)
    ]
    told = dict(found[0].statistics)
    if len(found) > 1:
        told |= ensemble(torch.stack([member.margin for member in found]))
    write_json(stage.path("models/reward") / STATISTICS, {name: told[name] for name in ("mean", "std", "doubt") if name in told})
    stage.run.model("models/reward", "reward")
    stage.run.headline({"pairs": float(len(pairs.records)), **told})


def ensemble(margins: Tensor) -> dict[str, float]:
    """What held-out pairs say of several models, r_w - r_l of each (members, N): how much their spread counts, how often their
    mean is right, and their mean confidence in it."""
    weight = doubt(margins)
    accuracy, sure = (margins.mean(0) > 0).float(), agreement(margins.std(0), weight)
    return {"doubt": weight, "ensemble/accuracy": float(accuracy.mean()), "ensemble/confidence": float(sure.mean())}


class Pairs(NamedTuple):
    """Records, and their rows: chosen in even places, rejected in odd ones."""

    records: Sequence[Preference]
    rows: Sequence[Row]

    def select(self, places: Sequence[int]) -> list[Row]:
        return [row for i in places for row in self.rows[2 * i : 2 * i + 2]]


class Measured(NamedTuple):
    """What held-out pairs say of one model: numbers, and r_w - r_l of every pair."""

    statistics: dict[str, float]
    margin: Tensor


def _member(stage: Stage, chat: Chat, pairs: Pairs, places: Sequence[int], heldout: Sequence[int], member: int) -> Measured:
    """Train, save and measure one reward model, the first one or another of an ensemble."""
    params, part = stage.params.reward, f"member-{member}" if member else ""
    folder = f"models/reward/{MEMBERS}/{member}" if member else "models/reward"
    model, tokenizer = load_scalar_model(stage.model("models/sft"), from_language_model=True, weights=kept_in(stage))
    trainable(stage, model, *([member] if member else []))
    margins = [torch.tensor(_difference(pairs.records[i])) for i in places for _ in range(2)]
    knobs = ALGORITHM.params.model_validate({"centring": params.centring, "margin": params.margin})
    forward, extra = partial(scalar, model, dtype=stage.params.model.dtype), {"margin": margins}
    fit(stage, model.to(device()), chat, ALGORITHM, knobs, pairs.select(places), params, forward, 2, extra, part)
    save_trained(stage, model, tokenizer, folder, "models/sft")
    found = _measured(model, tokenizer, pairs.select(heldout), stage)
    if member:
        write_json(stage.path(folder) / STATISTICS, {name: found.statistics[name] for name in ("mean", "std")})
    return found


def split(pairs: Sequence[Preference], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of the pairs to train on and of those held out: a prompt's pairs share answers, so they stay together."""
    groups = by_prompt(pairs, range(len(pairs)))
    order = [groups[int(i)] for i in permutation(len(groups), seed, "reward", "split")]
    count = int(len(groups) * share)
    return [i for group in order[count:] for i in group], [i for group in order[:count] for i in group]


def resampled(pairs: Sequence[Preference], places: Sequence[int], seed: int, member: int) -> list[int]:
    """What a member of an ensemble is trained on: the first on these places, the others on as many prompts drawn with replacement
    (a bootstrap over prompts, whose pairs share answers)."""
    if not member:
        return list(places)
    groups = by_prompt(pairs, places)
    drawn = generator(seed, "reward", "resample", member).integers(0, len(groups), len(groups))
    return [i for group in drawn for i in groups[group]]


def by_prompt(pairs: Sequence[Preference], places: Iterable[int]) -> list[list[int]]:
    """The places in groups, a prompt each, in order of their first."""
    prompts: dict[str, list[int]] = {}
    for place in places:
        prompts.setdefault(repr(pairs[place].prompt), []).append(place)
    return list(prompts.values())


def _difference(pair: Preference) -> float:
    """How much better the chosen answer scored; 0 for pairs that people labelled without scores."""
    if pair.chosen_score is None or pair.rejected_score is None:
        return 0.0
    return pair.chosen_score - pair.rejected_score


def _measured(model: ScalarModel, tokenizer: Tokenizer, rows: list[Row], stage: Stage) -> Measured:
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
    return Measured(values, margin)
