"""preferences: collect pairs. Sample from the SFT policy, score by rubric or critic, and pair the best with the worst answer;
or import pairs that people have labelled. Every pair says where its label comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grape.artifacts import Preference, read_prompts, read_rows, write_dataset
from grape.errors import GrapeError
from grape.maths.advantage import weighted_reward
from grape.models.load import device, load_language_model
from grape.randomness import generator, permutation
from grape.reward.critics.settings import load_critic
from grape.reward.rubric import load_rubrics
from grape.reward.source import RubricReward
from grape.sampling import sample
from grape.stages import Stage
from grape.types import Response

COLUMNS = ("id", "category", "prompt", "chosen", "rejected", "source", "chosen_score", "rejected_score")


def run(stage: Stage) -> None:
    stage.datasets("data/prompts", "rubrics")
    params = stage.params.preferences
    counts: dict[str, float] = {}
    if params.source.endswith(".jsonl"):
        rows = imported(stage)
    else:
        rows, counts = collected(stage)
    if not rows:
        raise GrapeError(
            "not one pair was found: every group of responses is a tie",
            where="stage preferences",
            mend="raise preferences.samples or preferences.prompts, or lower preferences.margin",
        )
    write_dataset(stage.root / "data/preferences/train.jsonl", rows)
    stage.run.headline({"pairs": float(len(rows)), **counts})


def imported(stage: Stage) -> list[dict[str, Any]]:
    """Pairs labelled by people, checked row by row; identical answers teach nothing and are refused."""
    path = stage.root / stage.params.preferences.source
    records = read_rows(path, Preference, mend=f"every line has the columns {', '.join(Preference.model_fields)}")
    for number, record in enumerate(records, 1):
        if record.chosen == record.rejected:
            raise GrapeError("chosen and rejected are the same", where=f"{path}:{number}", mend="remove the row")
    return [record.model_dump() for record in records]


def collected(stage: Stage) -> tuple[list[dict[str, Any]], dict[str, float]]:
    params = stage.params.preferences
    if params.source not in ("rubric", "critic"):
        raise GrapeError(
            f"preferences.source: {params.source!r} is neither rubric nor critic nor a .jsonl file",
            where="params.yaml",
            mend="see the key's comment",
        )
    rubrics = load_rubrics(stage.root / "rubrics")
    kinds = frozenset({"verify", "critic"}) if params.source == "rubric" else frozenset({"critic"})
    judge = RubricReward(
        rubrics,
        load_critic(
            stage.root / "models/critic", stage.root, stage.params.model.dtype, stage.params.model.micro_batch_tokens
        ),
        kinds=kinds,
    )
    prompts = read_prompts(stage.root / "data/prompts/train.jsonl")
    order = permutation(len(prompts), stage.params.seed, "preferences", "prompts")[: params.prompts]
    chosen = [prompts[int(i)] for i in order]
    judge.check(chosen)
    model, tokenizer = load_language_model(str(stage.root / "models/sft"))
    responses = sample(
        model.to(device()),
        tokenizer,
        chosen,
        params.samples,
        temperature=params.temperature,
        max_new_tokens=stage.params.rl.max_new_tokens,
        positions=stage.params.model.positions,
        keys=(stage.params.seed, "preferences"),
        dtype=stage.params.model.dtype,
    )
    scores = judge(responses)
    group = torch.arange(len(chosen)).repeat_interleave(params.samples)
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, group)
    return pairs(
        responses, reward.tolist(), known.tolist(), params.samples, params.margin, params.source, stage.params.seed
    )


def pairs(
    responses: Sequence[Response],
    reward: Sequence[float],
    known: Sequence[bool],
    samples: int,
    margin: float,
    source: str,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The best against the worst answer of every group: duplicates once, equal scores by a counted draw, near ties left out."""
    rows, ties = [], 0
    for start in range(0, len(responses), samples):
        # An answer that was cut short is no answer to prefer; as the rejected one it would only teach length.
        group = {
            r.text: (reward[i], r)
            for i, r in enumerate(responses[start : start + samples], start)
            if known[i] and r.finished and r.text.strip()
        }
        prompt = responses[start].prompt
        coin = generator(seed, "preferences", "order", prompt.id).random(len(group))
        ranked = (
            [
                entry
                for _, _, entry in sorted(
                    (score, float(u), (score, r)) for u, (score, r) in zip(coin, group.values(), strict=True)
                )
            ]
            if len(group) > 1
            else []
        )
        if len(ranked) < 2 or ranked[-1][0] - ranked[0][0] < margin or ranked[-1][0] == ranked[0][0]:
            ties += 1
            continue
        (low, worst), (high, best) = ranked[0], ranked[-1]
        rows.append(
            {
                "id": prompt.id,
                "category": prompt.category,
                "prompt": [dict(m) for m in prompt.messages],
                "chosen": [{"role": "assistant", "content": best.text}],
                "rejected": [{"role": "assistant", "content": worst.text}],
                "source": source,
                "chosen_score": round(high, 6),
                "rejected_score": round(low, 6),
            }
        )
    return rows, {"ties": float(ties), "finished": sum(r.finished for r in responses) / max(len(responses), 1)}
