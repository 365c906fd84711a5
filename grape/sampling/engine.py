"""What is wanted of an engine, and what it gives back: ids in, ids and log-probabilities out. It knows no text and no chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol


class Written(NamedTuple):
    """One response: its ids, EOS included where it was drawn, and log softmax(logits / temperature) of each as the engine that drew
    them computed it, nats, float32."""

    ids: list[int]
    logp: list[float]


@dataclass(frozen=True)
class Wanted:
    """G = `samples` responses to each of P prompts.

    Attributes:
        prompts: P rows of ids. names: P ids that the draws are keyed by. limits: P longest responses, tokens, >= 1.
        temperature: > 0; 0: the most likely tokens, then nothing is said of log-probabilities.
        greedy: the last of the `samples` of every prompt takes the most likely tokens.
        keys: what the draws are for. stops: ids that end a response.
    """

    prompts: Sequence[list[int]]
    names: Sequence[str]
    limits: Sequence[int]
    samples: int
    temperature: float
    keys: Sequence[object]
    stops: frozenset[int]
    pad: int
    greedy: bool = False

    def part(self, chosen: Sequence[int]) -> Wanted:
        """The same for these prompts alone."""
        prompts, names, limits = ([rows[i] for i in chosen] for rows in (self.prompts, self.names, self.limits))
        return replace(self, prompts=prompts, names=names, limits=limits)  # type: ignore[arg-type]


Told = Callable[[int, Written], None]


class RolloutEngine(Protocol):
    """Who writes."""

    def follow(self) -> None:
        """The policy's weights may have moved: what is written from now on is drawn from them as they are."""
        ...

    def write(self, wanted: Wanted, told: Told | None = None) -> list[Written]:
        """B = P * G responses, those of prompt p in rows p*G .. p*G+G-1.

        Args:
            told: may be called with a row and its response as soon as that is finished, once a row.
        """
        ...
