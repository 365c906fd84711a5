"""Sampler against trainer: what the metrics say, and that importance weights undo the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from grape.algorithms import grpo, trpo
from grape.errors import GrapeError
from grape.sampling import own
from grape.training.adam import AdamParams
from grape.training.assemble import assemble
from grape.training.mismatch import Importance, corrected
from grape.training.sampler import Sampling
from grape.types import Batch, Loss, Outputs, Response, Scores
from tests import tiny

NAMES = ("logp_mismatch/sampler", "logp_mismatch/sampler/max", "logp_mismatch/outside")


def given(difference: list[list[float]], mask: list[list[bool]]) -> tuple[Outputs, Batch]:
    """Tokens that the trainer finds e^difference times as likely as the sampler did."""
    d, m = torch.tensor(difference), torch.tensor(mask)
    logp = torch.full(d.shape, -1.0)
    rows, ids = len(d), torch.ones(d.shape, dtype=torch.long)
    batch = Batch(ids, ids.bool(), ids, m, logp_sampler=logp - d, advantage=m.float(), group=torch.arange(rows))
    return Outputs(logp=logp.clone().requires_grad_()), batch


def per_token(outputs: Outputs, batch: Batch) -> Loss:
    weight = batch.mask.float()
    return Loss(-outputs.logp * batch.advantage, weight, weight.sum(1), {})


def test_mean_maximum_and_share_outside_the_band_by_hand() -> None:
    outputs, batch = given([[0.0, 0.1, -0.3], [0.2, 9.0, torch.nan]], [[True, True, True], [True, False, False]])
    found = corrected(per_token(outputs, batch), outputs, batch, None)
    mean, largest, outside = (found.metrics[name] for name in NAMES)
    assert [float(x) for x in mean] == pytest.approx([0.6, 4]) and [float(x) for x in largest] == pytest.approx([0.3, 1])
    assert [float(x) for x in outside] == [2, 4]  # e^-0.3 = 0.74 and e^0.2 = 1.22, and not e^0.1 = 1.11
    assert torch.equal(found.weight, batch.mask.float())


def test_weights_are_the_truncated_ratios_and_rows_that_nobody_knows_weigh_one() -> None:
    nan = torch.nan
    outputs, batch = given([[0.5, -0.4, 3.0], [nan, nan, nan]], [[True, True, True], [True, True, False]])
    plain = per_token(outputs, batch)
    token = corrected(plain, outputs, batch, Importance("token", 2.0))
    torch.testing.assert_close(token.weight, torch.tensor([[1.6487, 0.6703, 2.0], [1, 1, 0]]), rtol=1e-4, atol=0)
    assert [float(x) for x in token.metrics["importance/cut"]] == [1, 3]
    sequence = corrected(plain, outputs, batch, Importance("sequence", 100.0))
    torch.testing.assert_close(sequence.weight[0], torch.full((3,), 22.198), rtol=1e-4, atol=0)
    assert torch.equal(token.norm, plain.norm)
    (token.value * token.weight).sum().backward()
    torch.testing.assert_close(outputs.logp.grad, -token.weight)  # the weights are constants


def test_the_weighed_expectation_is_that_of_the_policy() -> None:
    """Every response of two tokens out of three, enumerated: sum mu w l = sum pi l, and without weights it is not."""
    mu, pi = (torch.softmax(torch.randn(2, 3, generator=torch.Generator().manual_seed(s)), -1) for s in (0, 1))
    responses = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    said, old = (p[torch.arange(2), responses].log() for p in (mu, pi))
    loss = torch.arange(18.0).reshape(9, 2)

    def mean(chance: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (chance.sum(1).exp().unsqueeze(1) * weights * loss).sum()

    ones = torch.ones(9, 2)
    torch.testing.assert_close(mean(said, Importance("sequence", 1e6).weights(old - said)), mean(old, ones))
    assert abs(float(mean(said, ones) - mean(old, ones))) > 0.5


def test_a_loss_without_a_value_per_token_cannot_be_weighed() -> None:
    outputs, batch = given([[0.5]], [[True]])
    whole = Loss(outputs.logp.sum(1), torch.ones(1), torch.ones(1), {})
    with pytest.raises(GrapeError, match=r"rl\.importance"):
        corrected(whole, outputs, batch, Importance("token"))
    assert corrected(whole, outputs, batch, None).metrics


def score(responses: Sequence[Response]) -> Scores:
    values = torch.tensor([[sum(r.ids) % 5 / 4] for r in responses])
    return Scores(("any/it",), values, torch.ones_like(values), torch.ones_like(values).bool(), torch.ones_like(values))


def learned(kind: Any, params: Any, importance: Importance | None = None) -> tuple[dict[str, float], torch.Tensor]:
    model = tiny.model()
    adam = AdamParams(1e-3, 1, micro_batch_tokens=64)
    learner = assemble(kind.ALGORITHM, params, model, adam, importance=importance)
    prompts, how = [tiny.prompt("a"), tiny.prompt("bcd")], Sampling(2, 4, 1.0, 8, 64, 64, 0.2)
    source = learner.rollouts(tiny.chat(), prompts, score, how, ("t",))
    (row,) = learner.train(source, 1, lambda step, metrics: None)
    return row, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_every_kind_of_round_measures_it_and_weights_of_one_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update a round, where nobody else computes the old log-probabilities; several; the natural gradient."""
    cases: list[tuple[Any, Any]] = [
        (grpo, grpo.GRPOParams()), (grpo, grpo.GRPOParams(epochs=2, mini_batches=2)), (trpo, trpo.TRPOParams()),
    ]  # fmt: skip
    for kind, params in cases:
        row, _ = learned(kind, params)
        assert row[NAMES[0]] <= row[NAMES[1]] < 1e-4 and row[NAMES[2]] == 0 and "importance" not in row
    plain, weights = learned(*cases[0])
    assert plain["grad_norm"] > 0
    same, weighed = learned(*cases[0], Importance("token"))
    assert same["importance"] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(weighed, weights, rtol=0, atol=1e-5)
    choose = own.choose
    monkeypatch.setattr(own, "choose", lambda logits, uniform, temperature: choose(logits, uniform, 2.0))
    for kind, params in cases:  # a sampler at another temperature than training's
        row, _ = learned(kind, params)
        assert row[NAMES[0]] > 0.05 and row[NAMES[1]] > 0.5 and row[NAMES[2]] > 0.2
    row, corrected_weights = learned(*cases[0], Importance("token"))
    assert row["importance"] != pytest.approx(1, abs=0.01) and not torch.equal(corrected_weights, learned(*cases[0])[1])
    assert plain["loss"] == pytest.approx(same["loss"], abs=1e-5)
