"""The default world, and demonstrations of mending an answer: that of grape/world.py with second turns in its SFT data.

For every plain demonstration there is one more, of four turns: a question; an answer that leaves something to mend; the critique of
it, in the words in which `algorithms.NAME.revise` will tell the policy; and the answer after it. People who are told what is wrong
do better than those who answer at once: a share `HASTE` of these last answers is bad, where `prepare.noise` of the plain ones is.

The critique needs no critic: what people say to its items is known here, as for the judgements.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from grape import world
from grape.reward.rubric import Rubric, load_rubrics
from grape.reward.source import RubricReward
from grape.reward.verdict import Question, Verdicts
from grape.types import Prompt, Response
from grape.world import Row, gold

__all__ = ["build", "gold"]

HASTE = 0.15  # the share of bad answers among those given after a critique


class People:
    """What a person would say to the critic items, in the place of a critic."""

    explains = False

    def judge(self, names: Sequence[str], questions: Sequence[Question]) -> Verdicts:
        said = [
            world.judgement(category, "", question.response)[item]
            for (category, item), question in zip((name.split("/") for name in names), questions, strict=True)
        ]
        score = torch.tensor(said, dtype=torch.float32)
        return Verdicts(score, torch.ones_like(score), ("",) * len(said), torch.full_like(score, torch.nan))


def second_turns(rubrics: Mapping[str, Rubric], asked: frozenset[str], seed: int) -> Iterator[Row]:
    """Demonstrations of mending, without an end.

    Args:
        asked: questions that may not occur, the held-out ones.
    """
    reward, rng = RubricReward(rubrics, People()), random.Random(f"{seed} second turns")
    while True:
        category, text, answer = world._question(rng, asked)
        user = {"role": "user", "content": text}
        first = Response(Prompt("", category, (user,), answer), 0, (), world.bad(category, answer, rng), True)
        critique = reward.critique([first], reward([first]))[0]
        if not critique:  # bad, and nobody could say why
            continue
        second = world._response(category, answer, HASTE, rng)
        turns = [("user", text), ("assistant", first.text), ("user", critique), ("assistant", second)]
        yield {"category": category, "messages": [{"role": role, "content": said} for role, said in turns]}


def build(params: Any, seed: int) -> dict[str, list[Row]]:
    """Every dataset of the default world; of the demonstrations as many more, of second turns.

    Args:
        params: the `prepare` section of params.yaml; `demonstrations` counts the plain ones. seed: the run's seed.
    """
    made = world.build(params, seed)
    asked = frozenset(row["prompt"][0]["content"] for name in ("validation", "test") for row in made[name])
    more = second_turns(load_rubrics(Path(__file__).with_name("rubrics")), asked, seed)
    return made | {"sft": [*made["sft"], *islice(more, params.demonstrations)]}
