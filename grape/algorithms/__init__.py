"""The algorithms, in the paper's order. `ALGORITHMS` holds what can be slotted into the `rl` stage."""

from __future__ import annotations

from grape.algorithms import grpo, reinforce
from grape.algorithms.base import Algorithm

ALGORITHMS: dict[str, Algorithm] = {
    "reinforce": reinforce.ALGORITHM,
    "grpo": grpo.ALGORITHM,
}
