"""The trust region: its products are the Fisher matrix's, its step keeps its promises or is not taken."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from grape.algorithms import trpo
from grape.errors import GrapeError
from grape.maths.kl import kl_exact
from grape.models import shared
from grape.models.encode import collate
from grape.models.forward import batched_language, language
from grape.models.lora import LoRA, adapt
from grape.training.natural import NaturalGradient
from grape.types import Batch
from tests import tiny

FORWARD = partial(language, distribution=True)


def on_policy(model: Any, rows: int = 8) -> Batch:
    """A batch whose old log-probabilities are the model's own, with random advantages."""
    batch = tiny.batch(3, rows)
    advantage = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1)) * batch.mask
    return batch.with_(logp_old=batched_language(model, batch, 1.0, 4096).logp, advantage=advantage)


def surrogate(model: Any, batch: Batch) -> float:
    with torch.no_grad():
        loss = trpo.loss(language(model, batch), batch, trpo.TRPOParams())
    return -float((loss.value * loss.weight).sum() / loss.norm.sum())


def mean_kl(old: torch.Tensor, model: Any, batch: Batch) -> float:
    with torch.no_grad():
        new = FORWARD(model, batch).distribution
    return float(kl_exact(old, new).sum() / batch.mask.sum())


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def step(model: Any, batch: Batch, params: trpo.TRPOParams, max_tokens: int = 64) -> dict[str, float]:
    update = NaturalGradient(model, params, max_tokens)
    loss = partial(_loss, params)
    sums, _ = update.update(lambda part: FORWARD(model, part), loss, batch, keys=("t",))
    return {name: total / weight for name, (total, weight) in sums.items()}


def _loss(params: trpo.TRPOParams, outputs: Any, part: Batch) -> Any:
    return trpo.loss(outputs, part, params)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_an_accepted_step_stays_in_the_region_and_improves(architecture: str) -> None:
    model = tiny.model(architecture)
    batch = on_policy(model)
    with torch.no_grad():
        old = FORWARD(model, batch).distribution
    before = surrogate(model, batch)
    metrics = step(model, batch, trpo.TRPOParams(delta=0.01, fisher_share=1.0))
    assert metrics["trpo/accepted"] == 1
    assert 0 < mean_kl(old, model, batch) <= 0.01 * (1 + 1e-3)
    assert metrics["trpo/kl"] == pytest.approx(mean_kl(old, model, batch), rel=1e-2)
    assert surrogate(model, batch) - before == pytest.approx(metrics["trpo/improvement"], rel=1e-2)
    assert metrics["trpo/improvement"] > 0


def test_a_step_that_cannot_be_accepted_restores_every_bit() -> None:
    model = tiny.model()
    batch, before = on_policy(model), flat(model)
    # Almost the whole of an improvement that is linear in a step this long: it is never reached.
    metrics = step(model, batch, trpo.TRPOParams(delta=1.0, improvement=0.99, backtracks=2))
    assert metrics["trpo/accepted"] == 0 and metrics["trpo/backtracks"] == 2
    assert torch.equal(flat(model), before)


def test_the_product_is_the_fisher_matrix_of_the_samples_states() -> None:
    """H v by differentiating twice == sum over the vocabulary of p (grad log p . v) grad log p, built gradient by gradient."""
    model = tiny.model()
    batch = on_policy(model, rows=2)
    update = NaturalGradient(model, trpo.TRPOParams(parameters="last_block"), 4096)
    v = torch.randn(sum(p.numel() for p in update.parameters), generator=torch.Generator().manual_seed(2))
    with sdpa_kernel(SDPBackend.MATH):
        product = update._fisher(lambda part: FORWARD(model, part), batch, v)
        distribution = FORWARD(model, batch).distribution
        expected = torch.zeros_like(v)
        assert len(distribution) == int(batch.mask.sum())
        for of_token in distribution:
            for logp in of_token:
                g = torch.autograd.grad(logp, update.parameters, retain_graph=True, materialize_grads=True)
                g_flat = torch.cat([x.flatten() for x in g])
                expected += logp.exp().detach() * (g_flat @ v) * g_flat
    expected /= batch.mask.sum()
    torch.testing.assert_close(product, expected, rtol=2e-3, atol=1e-5)


def test_no_split_changes_the_product() -> None:
    model = tiny.model()
    batch = on_policy(model)
    products = []
    for max_tokens in (16, 4096):
        update = NaturalGradient(model, trpo.TRPOParams(), max_tokens)
        v = torch.ones(sum(p.numel() for p in update.parameters))
        with sdpa_kernel(SDPBackend.MATH):
            products.append(update._fisher(lambda part: FORWARD(model, part), batch, v))
    torch.testing.assert_close(products[0], products[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_packed_rows_have_the_distributions_and_the_product_of_plain_ones(architecture: str) -> None:
    """Two answers to a prompt beside one to another, of unequal lengths; the prompt is read once."""
    model = tiny.model(architecture)
    update = NaturalGradient(model, trpo.TRPOParams(), 4096)
    rows = [([5, 6, 7, 8], [9, 10, 11]), ([5, 6, 7, 8], [12, 13]), ([14, 15], [9, 16, 17, 18])]
    plain = Batch.of(collate(rows, 0))
    packed = shared.share(model, plain)
    assert packed.get("shared") is not None
    v = torch.randn(sum(p.numel() for p in update.parameters), generator=torch.Generator().manual_seed(2))
    read: list[int] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["position_ids"].numel()), with_kwargs=True
    )
    with sdpa_kernel(SDPBackend.MATH):
        one, other = (update._fisher(lambda part: FORWARD(model, part), batch, v) for batch in (plain, packed))
    handle.remove()
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5 * float(one.abs().max()))
    assert read == [3 * 8, 15]
    a, b = (FORWARD(model, batch).distribution for batch in (plain, packed))
    torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_an_update_of_packed_groups_is_the_one_of_plain_rows(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three groups of four, the second without signal: the same step, KL and improvement, from fewer tokens."""
    found = []
    for packs in (False, True):
        monkeypatch.setattr(shared, "_known", type(shared._known)())
        if not packs:
            monkeypatch.setattr(shared, "can", lambda model: False)
        else:
            monkeypatch.undo()
        model, read = tiny.model(architecture), [0]
        rows = [([5 + i, 6, 7, 8], [9 + j % 3, 10, 11][: 1 + j % 3]) for i in range(3) for j in range(4)]
        batch = Batch.of(collate(rows, 0))
        advantage = torch.randn(12, generator=torch.Generator().manual_seed(1)) * (torch.arange(12) // 4 != 1)
        batch = batch.with_(logp_old=batched_language(model, batch, 1.0, 4096).logp, advantage=batch.per_token(advantage))
        model.base_model.register_forward_pre_hook(
            lambda _, args, given, read=read: read.__setitem__(0, read[0] + given["position_ids"].numel()), with_kwargs=True
        )
        metrics = step(model, batch, trpo.TRPOParams(fisher_share=0.5, cg_iterations=5), max_tokens=30)
        assert metrics["trpo/accepted"] == 1
        found.append((flat(model), metrics["trpo/kl"], metrics["trpo/improvement"], read[0], metrics.get("frac_without_signal")))
    (one, kl, improvement, plain, _), (other, *of_packed, packed, silent) = found
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
    assert of_packed == pytest.approx([kl, improvement], rel=1e-2)
    assert packed < 0.8 * plain and silent == pytest.approx(1 / 3)


def test_with_the_identity_for_the_fisher_matrix_it_is_a_scaled_gradient_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    batch, before = on_policy(model), flat(model)
    monkeypatch.setattr(NaturalGradient, "_fisher", lambda self, forward, part, v: v)
    params = trpo.TRPOParams(delta=1e-6, damping=0.0)
    assert step(model, batch, params)["trpo/accepted"] == 1
    moved = flat(model) - before
    reference = tiny.model()
    loss = trpo.loss(language(reference, batch), batch, params)
    ((loss.value * loss.weight).sum() / loss.norm.sum()).backward()
    gradient = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert float(torch.cosine_similarity(moved, -gradient, dim=0)) > 0.999
    # |s| = sqrt(2 delta) for H = I; a full step, since the KL it makes is far below.
    assert float(moved.norm()) <= (2e-6) ** 0.5 * 1.001


def test_only_what_may_move_moves() -> None:
    model = tiny.model()
    batch = on_policy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, batch, trpo.TRPOParams(parameters="last_block"))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".layers.1." in name for name in moved)
    adapted = adapt(tiny.model(), LoRA(rank=2), 0)
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    step(adapted, on_policy(adapted), trpo.TRPOParams(parameters="adapters"))
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == names


def test_a_gradient_that_is_not_finite_is_refused_and_nothing_moves() -> None:
    model = tiny.model()
    batch, before = on_policy(model), flat(model)
    bad = batch.with_(advantage=batch.advantage * torch.nan)
    with pytest.raises(GrapeError, match="not finite"):
        step(model, bad, trpo.TRPOParams())
    assert torch.equal(flat(model), before)


def test_nothing_to_learn_moves_nothing() -> None:
    model = tiny.model()
    batch, before = on_policy(model), flat(model)
    metrics = step(model, batch.with_(advantage=torch.zeros_like(batch.mask, dtype=torch.float32)), trpo.TRPOParams())
    assert metrics["trpo/accepted"] == 0 and torch.equal(flat(model), before)
