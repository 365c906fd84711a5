"""How long a run of rl will take, from the seconds of a rehearsed round and from what its algorithm does with one.

Per round of P x G answers: drawing and scoring as measured; a reading of all answers for each of old policy and reference that is
asked for, the latter as often as `rl.kl_every` says; `epochs` times a forward and backward pass, twice as much with a value model.
The natural gradient takes a gradient, two passes of that length per product with the Fisher matrix on its share of the rows, and
two readings for the step. A run has `rl.steps` such rounds, or as many as use up `rl.budget`. Left out: loading, checkpoints, and
that answers without signal need no pass.
"""

from __future__ import annotations

from math import ceil

from grape.algorithms.base import OnlineParams, TrustRegionParams, ValueParams
from grape.params import Params
from grape.rehearsal.record import Seen


def seconds(params: Params, name: str, seen: Seen) -> float:
    """Of one run of the algorithm `name`, which samples."""
    algorithm, knobs, rl = params.slot(name), params.algorithm(name), params.rl
    assert isinstance(knobs, OnlineParams)
    needs = algorithm.wants(knobs)
    readings = float("old" in needs or knobs.epochs * knobs.mini_batches > 1)
    readings += 1.0 if "reference" in needs else 2 / rl.kl_every if rl.kl_every else 0.0
    if algorithm.update == "natural_gradient" and isinstance(knobs, TrustRegionParams):
        passes = 1 + 2 * knobs.cg_iterations * knobs.fisher_share
        readings += 2
    else:
        models = 2 if "value" in needs and isinstance(knobs, ValueParams) and knobs.value == "model" else 1
        passes, readings = float(knobs.epochs * models), readings + (models - 1)
    return _rounds(params, knobs, seen, seen.drawing + readings * seen.reading + passes * seen.learning)


def _rounds(params: Params, knobs: OnlineParams, seen: Seen, each: float) -> float:
    """Seconds of all rounds of P x G answers. each: of one."""
    rl = params.rl
    if rl.budget is None:
        return rl.steps * each
    ((unit, amount),) = rl.budget.items()
    updates = knobs.epochs * knobs.mini_batches * (knobs.rounds or rl.steps) / rl.steps
    a_round = {"samples": seen.samples, "tokens": seen.tokens, "seconds": each, "updates": updates}[unit]
    return ceil(amount / a_round) * each
