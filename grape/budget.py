"""What a run of RL may use: rounds, or an amount of samples, tokens, seconds or optimiser updates, the same for all that are
compared. What is equal in one of them is not in the others, so each round says what it took of all four."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Unit = Literal["samples", "tokens", "seconds", "updates"]
# Of each unit the metric of a round that counts it. Seconds are of sampling, scoring and updates; loading and saving are not in it.
COUNTS: dict[Unit, str] = {"samples": "num_samples", "tokens": "num_tokens", "seconds": "step_time", "updates": "num_updates"}


def used(history: Sequence[Mapping[str, float]], unit: Unit) -> float:
    """How much of `unit` the rounds took."""
    return sum(row.get(COUNTS[unit], 0.0) for row in history)


@dataclass(frozen=True)
class Budget:
    """A run ends with the round in which it has used `amount` of `unit`."""

    unit: Unit
    amount: float

    def spent(self, history: Sequence[Mapping[str, float]]) -> bool:
        return used(history, self.unit) >= self.amount

    def share(self, history: Sequence[Mapping[str, float]]) -> float:
        """In [0, 1]: how much of it is used."""
        return min(1.0, used(history, self.unit) / self.amount)
