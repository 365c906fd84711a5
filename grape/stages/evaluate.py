"""evaluate: the policy against the SFT policy it came from, on held-out prompts. Gold, rubric, win rate, KL, lengths, samples."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grape.artifacts import read_prompts
from grape.errors import GrapeError
from grape.files import write_json, write_lines, write_text
from grape.maths.advantage import weighted_reward
from grape.models.chat import Chat
from grape.models.encode import collate, fitting_prompts
from grape.models.forward import batched_language, exact_kl
from grape.models.load import device, load_language_model
from grape.randomness import generator
from grape.reward.items import describe_items, number, overlap
from grape.reward.limit import time_limit
from grape.sampling import response_rows, sample
from grape.stages.chats import chat_of
from grape.stages.judges import Gold, gold_judge, reward_source
from grape.stages.stage import Stage
from grape.types import Prompt, Response, Scores

RESAMPLES = 2000
GOLD_SECONDS = 20.0  # for one answer
TABLE = "samples.json"  # its place among the artifacts of the MLflow run
COLUMNS = ("policy", "category", "id", "prompt", "response", "gold", "proxy", "item", "score", "confidence", "reason")


@dataclass(frozen=True)
class Side:
    """One policy's answers: P x G sampled ones and P greedy ones, with scores. gold (P, G) is NaN-free or None."""

    responses: list[Response]
    scores: Scores
    proxy: np.ndarray
    gold: np.ndarray | None
    greedy: dict[str, float | None]
    entropy: float


def interval(values: np.ndarray, confidence: float, *keys: object) -> dict[str, float]:
    """Mean over prompts with a bootstrap percentile interval over prompts. values: (P,)."""
    draws = generator(*keys).integers(0, len(values), (RESAMPLES, len(values)))
    means = values[draws].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"mean": round(float(values.mean()), 6), "low": round(float(low), 6), "high": round(float(high), 6)}


def run(stage: Stage) -> None:
    prompts = read_prompts(stage.path("data/prompts/heldout.jsonl"))
    stage.datasets("data/prompts", "rubrics", context="evaluation")
    source, gold = reward_source(stage, prompts, "data/prompts/heldout.jsonl"), gold_judge(stage)
    reference, tokenizer = load_language_model(str(stage.path("models/sft")))
    policy, policy_tokenizer = load_language_model(str(stage.path(f"models/policy/{stage.policy}")))
    chat, own_chat = chat_of(stage, tokenizer, reference), chat_of(stage, policy_tokenizer, policy)
    room = stage.params.model.positions - stage.params.rl.max_new_tokens
    prompts, dropped = fitting_prompts(chat, prompts, room, "data/prompts")
    longest = f"model.positions - rl.max_new_tokens = {room} tokens"
    stage.left_out({"dropped/too_long": len(dropped)}, len(prompts), "held-out prompts", longest)
    sft = answer(stage, reference.to(device()), chat, prompts, source, gold)
    own = answer(stage, policy.to(device()), own_chat, prompts, source, gold)
    result = compare(stage, prompts, sft, own) | {"dropped": {"too_long": len(dropped)}}
    result["kl"] = divergence(stage, policy, reference, own_chat, own.responses)
    folder = stage.path(f"reports/evaluate/{stage.policy}")
    write_json(folder / "metrics.json", result)
    rows = samples(prompts, sft, own, stage.params.evaluate.samples)
    write_lines(folder / "samples.jsonl", rows)
    log_table(stage, rows)
    judged = "gold" if gold else "proxy"
    stage.run.headline(
        {
            "policy": result["policy"][judged]["mean"],
            "sft": result["sft"][judged]["mean"],
            "difference": result["difference"][judged]["mean"],
            "difference_low": result["difference"][judged]["low"],
            "win_rate": result["win_rate"]["mean"],
            "kl": result["kl"]["token"],
            "length": result["policy"]["length"],
        }
    )


def answer(
    stage: Stage,
    model: Any,
    chat: Chat,
    prompts: Sequence[Prompt],
    source: Callable[[Sequence[Response]], Scores],
    gold: Gold | None,
) -> Side:
    """Sample and score. The draws are the same for both policies: common random numbers narrow the interval of the difference."""
    params = stage.params.evaluate
    common: dict[str, Any] = {
        "max_new_tokens": stage.params.rl.max_new_tokens,
        "positions": stage.params.model.positions,
        "keys": (stage.params.seed, "evaluate"),
        "dtype": stage.params.model.dtype,
    }
    responses = sample(model, chat, prompts, params.samples, temperature=params.temperature, **common)
    scores = source(responses)
    proxy = _rewards(scores, len(prompts))
    greedy = sample(model, chat, prompts, 1, temperature=0.0, **common)
    golds = None if gold is None else np.array([_gold(gold, r) for r in responses]).reshape(len(prompts), -1)
    batch = collate(response_rows(chat, responses), chat.pad).to(device())
    out = batched_language(
        model, batch, params.temperature, stage.params.model.micro_batch_tokens, stage.params.model.dtype
    )
    assert out.entropy is not None
    return Side(
        responses,
        scores,
        proxy,
        golds,
        {
            "gold": None if gold is None else round(float(np.mean([_gold(gold, r) for r in greedy])), 6),
            "proxy": round(float(np.nanmean(_rewards(source(greedy), len(prompts)))), 6),
        },
        round(float(out.entropy.sum() / batch.mask.sum()), 6),
    )


def _gold(gold: Gold, response: Response) -> float:
    """A truncated answer is judged by what there is of it; a judge's value outside [0, 1] is its author's mistake."""
    try:
        with time_limit(GOLD_SECONDS):
            value = float(gold(response.prompt, response.text))
    except Exception as error:  # the gold judge is a program of the user's
        raise GrapeError(
            f"the gold judge raised {type(error).__name__} for prompt {response.prompt.id}: {error}",
            where="prepare.source, gold",
            mend="mend `gold`: it takes any text and returns a score in [0, 1]",
        ) from error
    if not 0 <= value <= 1 or math.isnan(value):
        raise GrapeError(
            f"the gold judge gave {value} for prompt {response.prompt.id}",
            where="prepare.source, gold",
            mend="return a score in [0, 1]",
        )
    return value


def _rewards(scores: Scores, prompts: int) -> np.ndarray:
    """(P, G) rubric rewards, NaN where missing."""
    group = torch.arange(prompts).repeat_interleave(scores.score.shape[0] // prompts)
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, group)
    return torch.where(known, reward, torch.nan).reshape(prompts, -1).double().numpy()


def compare(stage: Stage, prompts: Sequence[Prompt], sft: Side, own: Side) -> dict[str, Any]:
    params = stage.params.evaluate

    def over(values: np.ndarray, *what: object) -> dict[str, float]:
        return interval(values, params.confidence, stage.params.seed, "evaluate", "bootstrap", *what)

    judge = "gold" if own.gold is not None else "proxy"
    a, b = (own.gold, sft.gold) if own.gold is not None and sft.gold is not None else (own.proxy, sft.proxy)
    # Every answer of one side against every answer of the other to the same prompt; a tie is half a win.
    wins = np.sign(np.nan_to_num(a)[:, :, None] - np.nan_to_num(b)[:, None, :]).mean((1, 2)) / 2 + 0.5
    return {
        "algorithm": stage.algorithm,
        "seed": stage.seed,
        "prompts": len(prompts),
        "samples": params.samples,
        "sft": describe(prompts, sft, over),
        "policy": describe(prompts, own, over),
        "difference": {
            "gold": None
            if own.gold is None or sft.gold is None
            else over(own.gold.mean(1) - sft.gold.mean(1), "difference"),
            "proxy": over(_mean(own.proxy) - _mean(sft.proxy), "difference"),
        },
        "win_rate": {**over(wins, "wins"), "judge": judge},
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """(P,) mean over samples that could be scored; the overall mean for a prompt where none could."""
    with np.errstate(invalid="ignore"):
        counts = (~np.isnan(values)).sum(1)
        means = np.where(counts > 0, np.nansum(values, 1) / np.maximum(counts, 1), np.nan)
    return np.where(np.isnan(means), np.nanmean(values) if counts.any() else 0.0, means)


def describe(prompts: Sequence[Prompt], side: Side, over: Callable[..., dict[str, float]]) -> dict[str, Any]:
    """One policy's numbers."""
    proxy = _mean(side.proxy)
    gold = None if side.gold is None else side.gold.mean(1)
    names = np.array([p.category for p in prompts])
    best = side.gold if side.gold is not None else side.proxy
    lengths = np.array([len(r.ids) for r in side.responses])
    return {
        "gold": None if gold is None else over(gold, "gold"),
        "proxy": over(proxy, "proxy"),
        "greedy": side.greedy,
        "length": round(float(lengths.mean()), 4),
        "finished": round(float(np.mean([r.finished for r in side.responses])), 6),
        "entropy": side.entropy,
        "pass_at": {str(k): round(pass_at(best >= 0.999, k), 6) for k in sorted({1, best.shape[1]})},
        "categories": {
            c: {
                "n": int((names == c).sum()),
                "gold": None if gold is None else over(gold[names == c], "gold", c),
                "proxy": over(proxy[names == c], "proxy", c),
            }
            for c in sorted(set(names.tolist()))
        },
        "items": describe_items(side.scores, lengths, len(prompts)),
        "overlap": overlap(side.scores),
    }


def pass_at(solved: np.ndarray, k: int) -> float:
    """Unbiased pass@k from n >= k samples, solved (P, n): mean of 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, 2107.03374)."""
    n = solved.shape[1]
    return float(np.mean([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in solved.sum(1)]))


def divergence(
    stage: Stage, policy: Any, reference: Any, chat: Chat, responses: Sequence[Response]
) -> dict[str, float]:
    """Exact KL(policy || SFT) over the vocabulary on the policy's samples: mean per token, and mean sum per response, nats."""
    batch = collate(response_rows(chat, responses), chat.pad).to(device())
    kl, _ = exact_kl(policy, reference, batch, stage.params.evaluate.temperature, stage.params.model.micro_batch_tokens)
    return {"token": round(float(kl.sum() / batch.mask.sum()), 6), "sequence": round(float(kl.sum(1).mean()), 6)}


def samples(prompts: Sequence[Prompt], sft: Side, own: Side, per_prompt: int) -> list[dict[str, Any]]:
    """The first answer of both policies to every held-out prompt, with its score item by item."""

    def side(s: Side, p: int) -> dict[str, Any]:
        i, proxy = p * per_prompt, float(s.proxy[p, 0])
        items = [
            {
                "item": name,
                "score": number(s.scores.score[i, k]) if s.scores.valid[i, k] else None,
                "confidence": number(s.scores.confidence[i, k]),
                "reason": s.scores.reasons[i][k] if s.scores.reasons else "",
            }
            for k, name in enumerate(s.scores.items)
            if s.scores.weight[i, k] > 0
        ]
        return {
            "text": s.responses[i].text,
            **({"raw": s.responses[i].raw} if s.responses[i].raw else {}),
            "gold": None if s.gold is None else float(s.gold[p, 0]),
            "proxy": None if math.isnan(proxy) else round(proxy, 6),
            "items": items,
        }

    return [
        {
            "id": prompt.id,
            "category": prompt.category,
            "prompt": prompt.conversation,
            "answer": prompt.answer,
            "sft": side(sft, p),
            "policy": side(own, p),
        }
        for p, prompt in enumerate(prompts)
    ]


def log_table(stage: Stage, rows: Sequence[dict[str, Any]]) -> None:
    """The samples as a table in MLflow's UI, a row per item: the file and the tag that MlflowClient.log_table would leave."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TABLE
        write_text(path, json.dumps({"columns": COLUMNS, "data": list(_table(rows, stage.policy))}, allow_nan=False))
        stage.run.artifact(path)
    stage.run.tag({"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])})


def _table(rows: Sequence[dict[str, Any]], policy: str) -> Iterator[list[Any]]:
    for row in rows:
        for name, side in (("sft", row["sft"]), (policy, row["policy"])):
            answer = [name, row["category"], row["id"], row["prompt"], side["text"], side["gold"], side["proxy"]]
            for item in side["items"]:
                yield [*answer, item["item"], item["score"], item["confidence"], item["reason"]]
