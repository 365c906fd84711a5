"""The algorithms, in the paper's order. `ALGORITHMS` holds what can be slotted into the rl stage; SFT and the reward model have
stages of their own. `slot.py` finds those that other packages bring.

A file is imported when its algorithm is asked for: what a stage reads is its own algorithm's file, and no other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grape.algorithms.base import Algorithm

NAMES = ("rejection", "reinforce", "trpo", "ppo", "grpo", "dpo", "grape")


class Registry(Mapping[str, "Algorithm"]):
    """Name -> algorithm, by `ALGORITHM` of the module of that name."""

    def __getitem__(self, name: str) -> Algorithm:
        if name not in NAMES:
            raise KeyError(name)
        found: Algorithm = import_module(f"{__name__}.{name}").ALGORITHM
        return found

    def __contains__(self, name: object) -> bool:
        return name in NAMES  # Mapping's own would import the file to find out

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


ALGORITHMS = Registry()
