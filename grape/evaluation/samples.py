"""Answers for people to read: the first one of both policies to every held-out prompt, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from grape.evaluation.record import ItemScore, Sample, SampledAnswer
from grape.evaluation.sides import Answers
from grape.evaluation.statistics import number
from grape.types import Prompt

COLUMNS = ("policy", "category", "id", "prompt", "response", "gold", "proxy", "item", "score", "confidence", "reason")


def samples(prompts: Sequence[Prompt], sft: Answers, own: Answers) -> list[Sample]:
    """One of every prompt, in order."""
    return [
        Sample(id=x.id, category=x.category, prompt=x.conversation, answer=x.answer, sft=_first(sft, p), policy=_first(own, p))
        for p, x in enumerate(prompts)
    ]


def _first(answers: Answers, prompt: int) -> SampledAnswer:
    i = prompt * answers.proxy.shape[1]
    response, scores = answers.responses[i], answers.scores
    return SampledAnswer(
        text=response.text,
        **({"raw": response.raw} if response.raw else {}),
        gold=None if answers.gold is None else float(answers.gold[prompt, 0]),
        proxy=number(answers.proxy[prompt, 0]),
        items=[
            ItemScore(
                item=name,
                score=number(scores.score[i, k]) if scores.valid[i, k] else None,
                confidence=number(scores.confidence[i, k]),
                reason=scores.reasons[i][k] if scores.reasons else "",
            )
            for k, name in enumerate(scores.items)
            if scores.weight[i, k] > 0
        ],
    )


def table(found: Sequence[Sample], policy: str) -> Iterator[list[Any]]:
    """Rows of COLUMNS, one per item of either policy."""
    for sample in found:
        for name, answer in (("sft", sample.sft), (policy, sample.policy)):
            about = [name, sample.category, sample.id, sample.prompt, answer.text, answer.gold, answer.proxy]
            for item in answer.items:
                yield [*about, item.item, item.score, item.confidence, item.reason]
