"""Two policies beside each other: each one's numbers, the difference between them, and their first answers for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grape.evaluation.comparison import prompt_means, wins
from grape.evaluation.record import (
    KL,
    BothDraws,
    Category,
    DrawScores,
    Greedy,
    ItemScore,
    Judged,
    Sample,
    SampledAnswer,
    Side,
    WinRate,
)
from grape.evaluation.statistics import Bootstrap, item_statistics, number, overlaps, pass_at
from grape.types import Prompt, Response, Scores

SOLVED = 0.999
COLUMNS = ("policy", "category", "id", "prompt", "response", "gold", "proxy", "item", "score", "confidence", "reason")


@dataclass(frozen=True)
class Answers:
    """One policy's answers to P prompts: P x G sampled ones with scores, and what the greedy ones had.

    Attributes:
        proxy: (P, G) rewards by the judge that is trained on, NaN where missing.
        gold: (P, G) by the one that is not, NaN-free; None: there is none.
        entropy: nats per token.
        kl: from the SFT policy, of a policy.
    """

    responses: Sequence[Response]
    scores: Scores
    proxy: np.ndarray
    gold: np.ndarray | None
    greedy: Greedy
    entropy: float
    kl: KL | None = None


def describe(prompts: Sequence[Prompt], answers: Answers, over: Bootstrap) -> Side:
    """One policy's numbers."""
    proxy = prompt_means(answers.proxy)
    gold = None if answers.gold is None else answers.gold.mean(1)
    names, sources = (np.array([getattr(p, of) for p in prompts]) for of in ("category", "dataset"))
    best = answers.proxy if answers.gold is None else answers.gold
    lengths = torch.tensor([len(r.ids) for r in answers.responses])

    def part(its: np.ndarray, *name: str) -> Category:
        there = None if gold is None else over(gold[its], "gold", *name)
        return Category(n=int(its.sum()), gold=there, proxy=over(proxy[its], "proxy", *name))

    return Side(
        gold=None if gold is None else over(gold, "gold"),
        proxy=over(proxy, "proxy"),
        greedy=answers.greedy,
        length=round(float(lengths.double().mean()), 4),
        finished=round(float(np.mean([r.finished for r in answers.responses])), 6),
        entropy=answers.entropy,
        pass_at={str(k): round(pass_at(best >= SOLVED, k), 6) for k in sorted({1, best.shape[1]})},
        categories={c: part(names == c, c) for c in sorted(set(names.tolist()))},
        datasets={d: part(sources == d, "dataset", d) for d in datasets(prompts)},
        items=item_statistics(answers.scores, lengths, len(prompts)),
        overlap=list(overlaps(answers.scores)),
    )


def datasets(prompts: Sequence[Prompt]) -> list[str]:
    """The data sets that prompts name, sorted; prompts that name none are no data set of their own."""
    return sorted({p.dataset for p in prompts} - {""})


def difference(sft: Answers, own: Answers, over: Bootstrap) -> Judged:
    """By how much the policy is better, prompt by prompt."""
    return _difference(sft, own, over, slice(None))


def dataset_differences(prompts: Sequence[Prompt], sft: Answers, own: Answers, over: Bootstrap) -> dict[str, Judged]:
    """`difference` on the prompts of each data set."""
    sources = np.array([p.dataset for p in prompts])
    return {d: _difference(sft, own, over, sources == d, "dataset", d) for d in datasets(prompts)}


def _difference(sft: Answers, own: Answers, over: Bootstrap, its: np.ndarray | slice, *name: str) -> Judged:
    gold = None
    if own.gold is not None and sft.gold is not None:
        gold = over((own.gold.mean(1) - sft.gold.mean(1))[its], "difference", *name)
    return Judged(gold=gold, proxy=over((prompt_means(own.proxy) - prompt_means(sft.proxy))[its], "difference", *name))


def win_rate(sft: Answers, own: Answers, over: Bootstrap) -> WinRate:
    """How often the policy's answer is the better one, by gold where there is one."""
    if own.gold is not None and sft.gold is not None:
        return WinRate(**dict(over(wins(own.gold, sft.gold), "wins")), judge="gold")
    return WinRate(**dict(over(wins(own.proxy, sft.proxy), "wins")), judge="proxy")


def samples(prompts: Sequence[Prompt], sft: Answers, own: Answers) -> list[Sample]:
    """One of every prompt, in order."""
    found = []
    for p, x in enumerate(prompts):
        first, draws = (_first(sft, p), _first(own, p)), BothDraws(sft=_draws(sft, p), policy=_draws(own, p))
        asked = x.conversation
        found.append(
            Sample(id=x.id, category=x.category, prompt=asked, answer=x.answer, sft=first[0], policy=first[1], draws=draws)
        )
    return found


def _draws(answers: Answers, prompt: int) -> DrawScores:
    gold = None if answers.gold is None else [round(float(score), 6) for score in answers.gold[prompt]]
    return DrawScores(gold=gold, proxy=[number(score) for score in answers.proxy[prompt]])


def _first(answers: Answers, prompt: int) -> SampledAnswer:
    i = prompt * answers.proxy.shape[1]
    response, scores = answers.responses[i], answers.scores
    items = []
    for k in (k for k in range(len(scores.items)) if scores.weight[i, k] > 0):
        score = number(scores.score[i, k]) if scores.valid[i, k] else None
        sure, reason = number(scores.confidence[i, k]), scores.reasons[i][k] if scores.reasons else ""
        items.append(ItemScore(item=scores.items[k], score=score, confidence=sure, reason=reason))
    raw = {"raw": response.raw} if response.raw else {}
    gold = None if answers.gold is None else float(answers.gold[prompt, 0])
    return SampledAnswer(text=response.text, **raw, gold=gold, proxy=number(answers.proxy[prompt, 0]), items=items)


def table(found: Sequence[Sample], policy: str) -> Iterator[list[Any]]:
    """Rows of COLUMNS, one per item of either policy."""
    for sample in found:
        for name, answer in (("sft", sample.sft), (policy, sample.policy)):
            about = [name, sample.category, sample.id, sample.prompt, answer.text, answer.gold, answer.proxy]
            for item in answer.items:
                yield [*about, item.item, item.score, item.confidence, item.reason]
