"""Critique and revise (GRAPE's improver): answers of a round that leave something to mend become prompts of the same round.

    x' = (x, y_i, q_i):   the prompt, the answer, and a turn that says which items of the rubric it does not meet
    y'_1 .. y'_G ~ pi(. | x'),   judged as answers to x, by the same rubric

A revision prompt is a prompt of its own: its G answers are compared with each other and with nothing else. So everything stays
on-policy, the fresh answers' advantages do not know that there are revisions, and what is trained is revising. The paper's
readers document that improved answers are mixed in, not how (docs/grape.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from grape.algorithms.base import RevisionParams
from grape.randomness import permutation
from grape.training.sums import Sums
from grape.types import Prompt, Response, Scores


def groups(params: RevisionParams, prompts: int) -> int:
    """How many of a round's prompts ask for a revision; the budget of answers is the same with and without."""
    return round(prompts * params.revise)


def ask(response: Response, critique: str, row: int) -> Prompt:
    """x' = (x, y, q). The row makes its id unlike that of any other prompt of the round."""
    x = response.prompt
    turns = ({"role": "assistant", "content": response.text}, {"role": "user", "content": critique})
    return replace(x, id=f"{x.id}/revise-{row}", messages=(*x.messages, *turns))


def choose(
    responses: Sequence[Response], critiques: Sequence[str], count: int, fits: Callable[[Prompt], bool], keys: Sequence[object]
) -> list[tuple[int, Prompt]]:
    """At most `count` (row, x') in random order, one answer of every group before a second one of any.

    Args:
        critiques: per response, "" where there is nothing to mend.
        fits: whether a prompt leaves room for an answer.
    """
    turn: Counter[str] = Counter()
    ranked = []
    for row in permutation(len(responses), *keys).tolist():
        if critiques[row]:
            ranked.append((turn[responses[row].prompt.id], row))
            turn[responses[row].prompt.id] += 1
    chosen: list[tuple[int, Prompt]] = []
    for _, row in sorted(ranked, key=lambda found: found[0]):
        if len(chosen) == count:
            break
        prompt = ask(responses[row], critiques[row], row)
        if fits(prompt):
            chosen.append((row, prompt))
    return chosen


def gain(scores: Scores, of: Sequence[int], samples: int) -> Sums:
    """How much better revisions score than what they revise, mean over those where both are known.

    Args:
        of: per row the row it revises, -1: none.
    """
    group = torch.arange(len(of) // samples).repeat_interleave(samples)
    reward, known = scores.reward(group)
    rows = [(new, old) for new, old in enumerate(of) if old >= 0 and bool(known[new]) and bool(known[old])]
    total = sum(float(reward[new] - reward[old]) for new, old in rows)
    return {"revision/gain": (total, float(len(rows)))} if rows else {}
