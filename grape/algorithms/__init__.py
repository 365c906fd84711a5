"""The algorithms, in the paper's order. `ALGORITHMS` holds what can be slotted into the rl stage; SFT and the reward model have
stages of their own. `slot.py` finds those that other packages bring."""

from __future__ import annotations

from grape.algorithms import dpo, grape, grpo, ppo, reinforce, rejection, trpo
from grape.algorithms.base import Algorithm

ALGORITHMS: dict[str, Algorithm] = {
    "rejection": rejection.ALGORITHM,
    "reinforce": reinforce.ALGORITHM,
    "trpo": trpo.ALGORITHM,
    "ppo": ppo.ALGORITHM,
    "grpo": grpo.ALGORITHM,
    "dpo": dpo.ALGORITHM,
    "grape": grape.ALGORITHM,
}
