"""The one training loop: every algorithm, offline or online, goes through `train`."""

from __future__ import annotations

import time
from typing import Protocol

from grape import memory
from grape.algorithms.base import LAST, AlgorithmParams, AnyAlgorithm, State
from grape.budget import Budget
from grape.models.protocols import Trainable
from grape.training.adam import Forward, LossOf
from grape.training.batches import Source
from grape.training.checkpoint import Checkpoints, Keeps, Resumed
from grape.training.mismatch import Importance, corrected
from grape.training.sums import Sums, means
from grape.types import Batch, Loss, Outputs, Track


class Optimiser(Keeps, Protocol):
    """Who moves the weights: `Adam` or `NaturalGradient`."""

    def update(self, forward: Forward, loss: LossOf, batch: Batch, keys: tuple[object, ...]) -> tuple[Sums, Sums]: ...


def train(
    model: Trainable,
    algorithm: AnyAlgorithm,
    params: AlgorithmParams,
    source: Source,
    forward: Forward,
    optimiser: Optimiser,
    *,
    steps: int,
    budget: Budget | None = None,
    track: Track,
    checkpoints: Checkpoints | None = None,
    keys: tuple[object, ...] = (),
    importance: Importance | None = None,
) -> list[dict[str, float]]:
    """`steps` rounds of: get a batch, update the weights, report; fewer where the budget is used up before. Returns the metrics of
    every round.

    The model stays in eval mode: dropout would make pi_theta another distribution than the one that was sampled.

    Args:
        forward: what the model says of a batch: `grape.models.forward.language` or `scalar`, all but the batch bound.
        track: called with (step, metrics) after each round, also for rounds that a checkpoint brings back.
        importance: how tokens are weighed that another computation of the policy drew; None: alike.
    """

    def loss(outputs: Outputs, batch: Batch) -> Loss:
        return corrected(algorithm.loss(outputs, batch, params), outputs, batch, importance)

    model.eval()
    begun = (checkpoints.restore(model, optimiser) if checkpoints else None) or Resumed(0, {}, [])
    state, history, heap = begun.state, begun.history, memory.Heap()
    for row in history:
        track(int(row["step"]), {k: v for k, v in row.items() if k != "step"})
    for update in range(begun.update, steps):
        if budget and budget.spent(history):
            break
        began = time.perf_counter()
        given = source(update, state)
        state, sums = given.state, dict(given.metrics)
        if given.batch is not None:
            of_all, of_last = optimiser.update(forward, loss, given.batch, (*keys, update))
            state, sums = _ended(state, of_last), sums | of_all
        heap.ended()
        metrics = means(sums) | {"step_time": time.perf_counter() - began}
        history.append({"step": update + 1, **metrics})
        track(update + 1, metrics)
        last = update + 1 if budget and budget.spent(history) else steps
        if checkpoints and checkpoints.due(update + 1, last):
            checkpoints.save(update + 1, model, optimiser, state, history)
    return history


def _ended(state: State, last: Sums) -> State:
    """The state with how the last update ended, for an algorithm whose next credit depends on it."""
    kept = {name: value for name, value in state.items() if not name.startswith(LAST)}
    return kept | {f"{LAST}{name}": value for name, value in means(last).items()}
