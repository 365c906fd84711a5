"""Two policies beside each other: each one's numbers, and the difference between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grape.evaluation.record import Category, Greedy, Judged, Side, WinRate
from grape.evaluation.statistics import Bootstrap, item_statistics, overlaps, pass_at, prompt_means, wins
from grape.types import Prompt, Response, Scores

SOLVED = 0.999


@dataclass(frozen=True)
class Answers:
    """One policy's answers to P prompts: P x G sampled ones with scores, and what the greedy ones had.

    Attributes:
        proxy: (P, G) rewards by the judge that is trained on, NaN where missing.
        gold: (P, G) by the one that is not, NaN-free; None: there is none.
        entropy: nats per token.
    """

    responses: Sequence[Response]
    scores: Scores
    proxy: np.ndarray
    gold: np.ndarray | None
    greedy: Greedy
    entropy: float


def describe(prompts: Sequence[Prompt], answers: Answers, over: Bootstrap) -> Side:
    """One policy's numbers."""
    proxy = prompt_means(answers.proxy)
    gold = None if answers.gold is None else answers.gold.mean(1)
    names = np.array([p.category for p in prompts])
    best = answers.proxy if answers.gold is None else answers.gold
    lengths = torch.tensor([len(r.ids) for r in answers.responses])

    def category(name: str) -> Category:
        its = names == name
        there = None if gold is None else over(gold[its], "gold", name)
        return Category(n=int(its.sum()), gold=there, proxy=over(proxy[its], "proxy", name))

    return Side(
        gold=None if gold is None else over(gold, "gold"),
        proxy=over(proxy, "proxy"),
        greedy=answers.greedy,
        length=round(float(lengths.double().mean()), 4),
        finished=round(float(np.mean([r.finished for r in answers.responses])), 6),
        entropy=answers.entropy,
        pass_at={str(k): round(pass_at(best >= SOLVED, k), 6) for k in sorted({1, best.shape[1]})},
        categories={c: category(c) for c in sorted(set(names.tolist()))},
        items=item_statistics(answers.scores, lengths, len(prompts)),
        overlap=list(overlaps(answers.scores)),
    )


def difference(sft: Answers, own: Answers, over: Bootstrap) -> Judged:
    """By how much the policy is better, prompt by prompt."""
    gold = None
    if own.gold is not None and sft.gold is not None:
        gold = over(own.gold.mean(1) - sft.gold.mean(1), "difference")
    return Judged(gold=gold, proxy=over(prompt_means(own.proxy) - prompt_means(sft.proxy), "difference"))


def win_rate(sft: Answers, own: Answers, over: Bootstrap) -> WinRate:
    """How often the policy's answer is the better one, by gold where there is one."""
    if own.gold is not None and sft.gold is not None:
        return WinRate(**dict(over(wins(own.gold, sft.gold), "wins")), judge="gold")
    return WinRate(**dict(over(wins(own.proxy, sft.proxy), "wins")), judge="proxy")
