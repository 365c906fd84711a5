"""Rows that cannot move the weights are not computed, and count all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grape.algorithms import grape, grpo, ppo, reinforce, rejection
from grape.models import shared
from grape.models.encode import collate
from grape.models.forward import language
from grape.training.adam import accumulate, without_signal
from grape.types import Batch
from tests import tiny

CASES: dict[str, tuple[Any, Any, bool]] = {
    "grpo": (grpo, grpo.GRPOParams(), True),
    "gspo, token mean": (grpo, grpo.GRPOParams(objective="gspo", aggregation="bnpo"), True),
    "cispo": (grpo, grpo.GRPOParams(objective="cispo", aggregation="dr_grpo"), True),
    "grape": (grape, grape.GRAPEParams(), True),
    "reinforce": (reinforce, reinforce.ReinforceParams(), True),
    "likelihood, whatever the advantage": (rejection, rejection.RejectionParams(), False),
    "a KL in the reward": (grpo, grpo.GRPOParams(beta=0.1, kl="reward_k1"), True),
    "a KL in the loss": (grpo, grpo.GRPOParams(beta=0.1), False),
    "an entropy bonus": (ppo, ppo.PPOParams(entropy=0.1), False),
    "a value loss": (ppo, ppo.PPOParams(), False),
}


def batch() -> Batch:
    """Three groups of four, the second without signal, and one row of the first."""
    rows = [([5 + i // 4, 6, 7], [8 + i, 9, 10 + i][: 1 + i % 3]) for i in range(12)]
    tokens = collate(rows, 0)
    advantage = torch.tensor([0.0, 1, -2, 1, 0, 0, 0, 0, 0.5, 0.5, -2, 1])
    old = torch.full(tokens.response.shape, -3.0).masked_fill(~tokens.mask, 0.0)
    group = torch.arange(3).repeat_interleave(4)
    more = {"logp_old": old, "logp_ref": old, "value_old": torch.zeros_like(old), "returns": torch.ones_like(old)}
    length = tokens.mask.sum(1).float().mean().expand(12)
    return Batch.of(tokens, group=group, advantage=tokens.per_token(advantage), length=length, limit=8, **more)


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_signal_is_found_by_what_the_loss_does(name: str) -> None:
    module, params, silent = CASES[name]
    found = without_signal(lambda out, part: module.ALGORITHM.loss(out, part, params), batch())
    assert found.nonzero().flatten().tolist() == ([0, 4, 5, 6, 7] if silent else [])


@pytest.mark.parametrize("name", ["grpo", "gspo, token mean", "cispo"])
def test_the_gradient_is_the_one_of_all_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_known", type(shared._known)())
    module, params, _ = CASES[name]
    model, plain = tiny.model(), batch()
    found, read = [], []
    packed = shared.share(model, plain)
    silent = packed.with_(advantage=torch.zeros_like(packed.advantage))
    for given in (plain, packed, silent):
        seen: list[int] = []

        def forward(part: Batch, seen: list[int] = seen) -> Any:
            seen.append(part.rows)
            return language(model, part)

        sums: dict[str, tuple[float, float]] = {}
        accumulate(forward, lambda out, part: module.ALGORITHM.loss(out, part, params), given, 30, list(model.parameters()), sums)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        read.append((sum(seen), sums["loss"][1]))
    assert read == [(12, read[0][1]), (7, read[0][1]), (0, read[0][1])]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5 * float(found[0].abs().max()))
    assert float(found[2].abs().max()) == 0 < float(found[0].abs().max())
