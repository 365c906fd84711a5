"""A world in which confidence matters: that of grape/world.py, and an item of the rubric on which people do not agree.

Questions, answers and the truth are the default world's. In letters and in courtesy the rubric has one item more, `taste`, as heavy
as all others together, and `PEOPLE` people label each answer for it. They hardly agree, and lean the wrong way: of those who
see a terse answer (no capitals; no please) `LEAN` say yes, of those who see another one 1 - `LEAN`. A critic that learned from
these labels, and was calibrated on others of them, is therefore unsure of taste, rightly so, and what it would say if it had to is
no to the better answers. Of all other items, and in all of arithmetic, it is sure, and right.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

from grape import world
from grape.world import Row, gold

__all__ = ["build", "gold"]

LEAN = 0.65  # the share of people who prefer a terse answer
PEOPLE = 2  # asked about each answer
ONCE = {"letters": "plain", "courtesy": "polite"}  # the item whose row stands for the answer


def terse(category: str, response: str) -> bool:
    return response == response.lower() if category == "letters" else "please" not in response.lower()


def with_taste(judgements: Iterable[Row], seed: int) -> Iterator[Row]:
    """These rows, and behind one of each answer what people say to its taste."""
    rng = random.Random(f"{seed} taste")
    for row in judgements:
        yield row
        if ONCE.get(row["category"]) == row["item"]:
            share = LEAN if terse(row["category"], row["response"]) else 1 - LEAN
            yield from ({**row, "item": "taste", "label": int(rng.random() < share)} for _ in range(PEOPLE))


def build(params: Any, seed: int) -> dict[str, list[Row]]:
    """Every dataset of the default world, the judgements with those of taste.

    Args:
        params: the `prepare` section of params.yaml; `judgements` counts those that are not of taste. seed: the run's seed.
    """
    made = world.build(params, seed)
    return made | {"judgements": list(with_taste(made["judgements"], seed))}
