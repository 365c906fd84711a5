"""preferences: collect pairs. Sample from the SFT policy, score by rubric or critic, and pair the best with the worst answer, or
every two answers to a prompt; or take the pairs that people have labelled. Every pair says where its label comes from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch

from grape.artifacts import Preference, Turn, read_prompts, read_rows, write_rows
from grape.files import write_lines
from grape.models import micro
from grape.models.encode import fitting_prompts
from grape.models.load import device, load_language_model
from grape.randomness import generator, permutation
from grape.reward.critics.judge import load_critic
from grape.reward.rubric import load_rubrics
from grape.reward.source import RubricReward
from grape.sampling import sample
from grape.stages.chats import chat_of
from grape.stages.stage import Stage
from grape.types import Response

Judged = tuple[float, Response]


def run(stage: Stage) -> None:
    counts: dict[str, float] = {}
    if stage.params.preferences.source == "people":
        stage.datasets("data/labelled")
        rows = read_rows(stage.path("data/labelled/train.jsonl"), Preference, mend="run it again: grape run prepare")
        reason = "there is no pair that people have labelled"
        mend = "add preferences.jsonl to prepare.source, or set preferences.source: rubric"
    else:
        stage.datasets("data/prompts/train.jsonl", "rubrics")
        rows, counts = collected(stage)
        reason = "not one pair was found: in no group do finished answers differ by enough"
        mend = "raise preferences.samples or preferences.prompts, or lower preferences.margin"
    if not rows:
        stage.run.headline(counts)
        return stage.not_made("data/preferences", reason, mend)
    write_rows(stage.path("data/preferences/train.jsonl"), rows)
    left = {**stage.left, **{k: v for k, v in counts.items() if k.startswith("dropped/")}}
    write_lines(stage.path("reports/train/preferences.jsonl"), [{"step": 0, **left}])
    stage.run.headline({"pairs": float(len(rows)), **counts})


def collected(stage: Stage) -> tuple[list[Preference], dict[str, float]]:
    """Pairs of the SFT policy's own answers, judged by the rubric or its critic items alone."""
    params, model_params = stage.params.preferences, stage.params.model
    judge = _judge(stage)
    prompts = read_prompts(stage.path("data/prompts/train.jsonl"))
    order = permutation(len(prompts), stage.params.seed, "preferences", "prompts")[: params.prompts]
    chosen = [prompts[int(i)] for i in order]
    judge.check(chosen)
    model, tokenizer = load_language_model(stage.model("models/sft"), weights=model_params.weights)
    chat, length = chat_of(stage, tokenizer, model), stage.params.rl.max_new_tokens
    room = model_params.positions - length
    chosen, dropped = fitting_prompts(chat, chosen, room, "data/prompts/train.jsonl")
    longest = f"model.positions - rl.max_new_tokens = {room} tokens"
    stage.left_out({"dropped/too_long": len(dropped)}, len(chosen), "prompts", longest)
    responses = sample(
        model.to(device()),
        chat,
        chosen,
        params.samples,
        temperature=params.temperature,
        max_new_tokens=length,
        positions=model_params.positions,
        keys=(stage.params.seed, "preferences"),
        dtype=model_params.dtype,
    )
    reward, known = judge(responses).reward(torch.arange(len(chosen)).repeat_interleave(params.samples))
    judged = [(r, float(value)) for r, value, ok in zip(responses, reward, known.tolist(), strict=True) if ok]
    rows = pairs(judged, params.margin, params.source, stage.params.seed, params.pairs)
    finished = sum(r.finished for r in responses) / max(len(responses), 1)
    paired = {repr(row.prompt) for row in rows}
    return rows, {"ties": float(len(chosen) - len(paired)), "finished": finished}


def _judge(stage: Stage) -> RubricReward:
    params, model = stage.params.preferences, stage.params.model
    kinds = {"critic"} if params.source == "critic" else {"verify", "critic"}
    rubrics, critic = load_rubrics(stage.path("rubrics")), None
    if any(item.kind == "critic" for rubric in rubrics.values() for item in rubric.items):
        folder = Path(stage.model("models/critic"))
        critic = load_critic(folder, stage.project.root, model.dtype, micro.fixed(), model.template, model.weights)
    return RubricReward(rubrics, critic, kinds=frozenset(kinds))


def pairs(judged: Sequence[tuple[Response, float]], margin: float, source: str, seed: int, how: str) -> list[Preference]:
    """Pairs of the answers to every prompt: duplicates once, equal scores by a counted draw, near ties left out.

    Args:
        how: best_worst, one pair a prompt; all, every two of its k answers, k (k - 1) / 2 pairs less the ties (2203.02155).
    """
    groups: dict[str, dict[str, Judged]] = {}
    for response, reward in judged:
        # An answer that was cut short is no answer to prefer; as the rejected one it would only teach length.
        if response.finished and response.text.strip():
            groups.setdefault(response.prompt.id, {})[response.written] = (reward, response)
    rows = []
    for name, group in groups.items():
        coin = generator(seed, "preferences", "order", name).random(len(group))
        order = sorted((reward, float(u), i) for i, (u, (reward, _)) in enumerate(zip(coin, group.values(), strict=True)))
        answers = list(group.values())
        ranked = [answers[place] for _, _, place in order]
        compared = combinations(ranked, 2) if how == "all" else [(ranked[0], ranked[-1])]
        told = [(low, high) for low, high in compared if high[0] > low[0] and high[0] - low[0] >= margin]
        rows += [_pair(name if how == "best_worst" else f"{name}#{n}", high, low, source) for n, (low, high) in enumerate(told)]
    return rows


def _pair(name: str, chosen: Judged, rejected: Judged, source: str) -> Preference:
    (high, best), (low, worst) = chosen, rejected
    prompt = best.prompt
    return Preference(
        id=name,
        category=prompt.category,
        dataset=prompt.dataset,
        prompt=[Turn(**m) for m in prompt.messages],
        chosen=[Turn(role="assistant", content=best.written)],
        rejected=[Turn(role="assistant", content=worst.written)],
        source=source,
        chosen_score=round(high, 6),
        rejected_score=round(low, 6),
    )
