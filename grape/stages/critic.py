"""critic: train, or merely calibrate, the judge of rubric items on labelled judgements; report agreement and calibration held out.

The held-out judgements are halved: one half fits the calibration, the other measures it, so that the reported numbers are of
judgements neither training nor calibration has seen.
"""

from __future__ import annotations

from functools import partial

import torch

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Judgement, read_rows
from grape.errors import GrapeError
from grape.models.encode import encode_chat, fitting
from grape.models.forward import language
from grape.models.load import device, load_language_model, save_model
from grape.randomness import permutation
from grape.reward.critic import NO, YES, Calibration, Critic, expected_calibration_error, fit_calibration
from grape.reward.rubric import Rubric, load_rubrics
from grape.stages import Stage, train_stage


def run(stage: Stage) -> None:
    stage.datasets("data/judgements")
    params = stage.params.critic
    model, tokenizer = load_language_model(str(stage.root / "models/base"))
    judgements = read_rows(
        stage.root / "data/judgements/train.jsonl", Judgement, mend="run the prepare stage again: grape run prepare"
    )
    rubrics = load_rubrics(stage.root / "rubrics")
    texts = [critic_text(rubrics, j) for j in judgements]
    order = [int(i) for i in permutation(len(judgements), stage.params.seed, "critic", "split")]
    count = int(len(order) * params.heldout)
    fit, measure, training = order[: count // 2], order[count // 2 : count], order[count:]

    rows, dropped = fitting(
        [
            encode_chat(
                tokenizer, [{"role": "user", "content": texts[i]}], YES if judgements[i].label else NO, judgements[i].id
            )
            for i in training
        ],
        stage.params.model.positions,
    )
    section = params if rows else params.model_copy(update={"steps": 0})
    forward = partial(language, dtype=stage.params.model.dtype)
    train_stage(stage, model.to(device()), tokenizer, ALGORITHM, ALGORITHM.params(), rows, section, forward)

    critic = Critic(model, tokenizer, Calibration({}), stage.params.model.micro_batch_tokens, stage.params.model.dtype)
    names = [f"{j.category}/{j.item}" for j in judgements]
    labels = torch.tensor([j.label for j in judgements])
    calibration = _fitted(critic, fit, names, texts, labels)
    save_model(model, tokenizer, stage.root / "models/critic")
    calibration.write(stage.root / "models/critic")
    stage.run.model("models/critic", "critic")
    headline = {"judgements": float(len(judgements)), "dropped/too_long": float(len(dropped))}
    if measure:
        headline |= _measured(critic, calibration, measure, names, texts, labels)
    stage.run.headline(headline)


def critic_text(rubrics: dict[str, Rubric], judgement: Judgement) -> str:
    """The critic's question about a judged response, in the very words it will be asked during RL."""
    where = f"data/judgements, {judgement.id}"
    rubric = rubrics.get(judgement.category)
    if rubric is None:
        raise GrapeError(
            f"no rubric for the category {judgement.category!r}",
            where=where,
            mend=f"write rubrics/{judgement.category}.yaml",
        )
    item = next((i for i in rubric.items if i.id == judgement.item), None)
    if item is None:
        raise GrapeError(
            f"the rubric of {judgement.category!r} has no item {judgement.item!r}",
            where=where,
            mend=f"its items: {', '.join(i.id for i in rubric.items)}",
        )
    return rubric.critic_text(item, judgement.prompt[-1].content, judgement.response)


def _fitted(critic: Critic, index: list[int], names: list[str], texts: list[str], labels: torch.Tensor) -> Calibration:
    if not index:
        return Calibration({})
    z = critic.log_odds([texts[i] for i in index])
    scored = [n for n in range(len(index)) if bool(torch.isfinite(z[n]))]
    return fit_calibration([names[index[n]] for n in scored], z[scored], labels[index][scored])


def _measured(
    critic: Critic, calibration: Calibration, index: list[int], names: list[str], texts: list[str], labels: torch.Tensor
) -> dict[str, float]:
    """Agreement with the labels, and ECE before and after calibration, over all items and per item."""
    z = critic.log_odds([texts[i] for i in index])
    scored = torch.isfinite(z)
    index = [i for i, fits in zip(index, scored.tolist(), strict=True) if fits]
    z, label = z[scored], labels[index]
    kept = [names[i] for i in index]
    raw, p = torch.sigmoid(z), calibration.apply(kept, z)
    values = {
        "agreement": float(((p > 0.5) == (label == 1)).float().mean()),
        "ece": expected_calibration_error(p, label),
        "ece_before": expected_calibration_error(raw, label),
        "brier": float((p - label).square().mean()),
    }
    for name in sorted(set(kept)):
        at = torch.tensor([i for i, other in enumerate(kept) if other == name])
        values[f"{name}/agreement"] = float(((p[at] > 0.5) == (label[at] == 1)).float().mean())
        values[f"{name}/ece"] = expected_calibration_error(p[at], label[at])
    return values
