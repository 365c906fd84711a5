"""preferences: collect pairs. Sample from the SFT policy, score by rubric or critic, and pair the best with the worst answer;
or import pairs that people have labelled. Every pair says where its label comes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grape.artifacts import Preference, Question, Turn, read_prompts, read_rows, write_rows
from grape.errors import GrapeError
from grape.files import write_lines
from grape.leakage import holds, turns_of
from grape.maths.advantage import weighted_reward
from grape.models.encode import fitting_prompts
from grape.models.load import device, load_language_model
from grape.randomness import generator, permutation
from grape.reward.critics.judge import load_critic
from grape.reward.rubric import load_rubrics
from grape.reward.source import RubricReward
from grape.sampling import sample
from grape.stages import Stage
from grape.types import Response


def run(stage: Stage) -> None:
    stage.datasets("data/prompts", "rubrics")
    params = stage.params.preferences
    counts: dict[str, float] = {}
    if params.source.endswith(".jsonl"):
        rows, counts = imported(stage)
    else:
        rows, counts = collected(stage)
    if not rows:
        raise GrapeError(
            "not one pair was found: every group of responses is a tie"
            if not counts.get("dropped/leakage") else "every pair holds a held-out question",
            where="stage preferences",
            mend="raise preferences.samples or preferences.prompts, or lower preferences.margin",
        )
    write_rows(stage.root / "data/preferences/train.jsonl", rows)
    left = {**stage.left, **{k: v for k, v in counts.items() if k.startswith("dropped/")}}
    write_lines(stage.root / "reports/train/preferences.jsonl", [{"step": 0, **left}])
    stage.run.headline({"pairs": float(len(rows)), **counts})


def imported(stage: Stage) -> tuple[list[Preference], dict[str, float]]:
    """Pairs labelled by people, checked row by row, without those that hold a held-out question."""
    path = stage.root / stage.params.preferences.source
    records = read_rows(path, Preference, mend=f"every line has the columns {', '.join(Preference.model_fields)}")
    prompts = [
        read_rows(stage.root / f"data/prompts/{name}.jsonl", Question, mend="run it again: grape run prepare")
        for name in ("heldout", "train")
    ]
    leaks = holds(*prompts)
    kept = [record for record in records if not leaks(turns_of(record))]
    if len(kept) < len(records):
        print(f"{stage.name}: {len(records) - len(kept)} pairs left out: they hold a held-out question", flush=True)
    return kept, {"dropped/leakage": float(len(records) - len(kept))}


def collected(stage: Stage) -> tuple[list[Preference], dict[str, float]]:
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
            stage.root / "models/critic", stage.root, stage.params.model.dtype, stage.params.model.micro_batch_tokens,
            stage.params.model.template,
        ),
        kinds=kinds,
    )
    prompts = read_prompts(stage.root / "data/prompts/train.jsonl")
    order = permutation(len(prompts), stage.params.seed, "preferences", "prompts")[: params.prompts]
    chosen = [prompts[int(i)] for i in order]
    judge.check(chosen)
    model, tokenizer = load_language_model(str(stage.root / "models/sft"))
    chat, length = stage.chat(tokenizer, model), stage.params.rl.max_new_tokens
    room = stage.params.model.positions - length
    chosen, dropped = fitting_prompts(chat, chosen, room, "data/prompts")
    longest = f"model.positions - rl.max_new_tokens = {room} tokens"
    stage.left_out({"dropped/too_long": len(dropped)}, len(chosen), "prompts", longest)
    responses = sample(
        model.to(device()),
        chat,
        chosen,
        params.samples,
        temperature=params.temperature,
        max_new_tokens=length,
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
) -> tuple[list[Preference], dict[str, float]]:
    """The best against the worst answer of every group: duplicates once, equal scores by a counted draw, near ties left out."""
    rows: list[Preference] = []
    ties = 0
    for start in range(0, len(responses), samples):
        # An answer that was cut short is no answer to prefer; as the rejected one it would only teach length.
        group = {
            r.written: (reward[i], r)
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
            Preference(
                id=prompt.id,
                category=prompt.category,
                prompt=[Turn(**m) for m in prompt.messages],
                chosen=[Turn(role="assistant", content=best.written)],
                rejected=[Turn(role="assistant", content=worst.written)],
                source=source,
                chosen_score=round(high, 6),
                rejected_score=round(low, 6),
            )
        )
    return rows, {"ties": float(ties), "finished": sum(r.finished for r in responses) / max(len(responses), 1)}
