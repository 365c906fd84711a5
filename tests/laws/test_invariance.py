"""A gradient depends on the batch, not on how it was split, padded or ordered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from grape.algorithms import dpo, grape, grpo, ppo, reinforce, rejection, reward_model, sft, trpo
from grape.models.encode import collate
from grape.models.forward import language, scalar
from grape.models.value import ValuedPolicy, valued
from grape.tensors import dimensions
from grape.training.adam import accumulate
from grape.types import Batch
from tests import tiny

CASES: dict[str, tuple[Any, Any]] = {
    "sft": (sft, sft.ALGORITHM.params()),
    "reinforce": (reinforce, reinforce.ReinforceParams()),
    "grpo": (grpo, grpo.GRPOParams(beta=0.1)),
    "reinforce-kl": (reinforce, reinforce.ReinforceParams(beta=0.1, kl="loss_k2")),
    "rejection": (rejection, rejection.RejectionParams()),
    "trpo": (trpo, trpo.TRPOParams()),
    "ppo": (ppo, ppo.PPOParams(dual_clip=3.0, entropy=0.01)),
    "ppo-head": (ppo, ppo.PPOParams(value="head")),
    "ppo-penalty": (ppo, ppo.PPOParams(objective="penalty", value_clip=None)),
    "grpo-k2": (grpo, grpo.GRPOParams(beta=0.1, kl="loss_k2")),
    "dapo": (grpo, grpo.GRPOParams(aggregation="dapo", clip_high=0.28)),
    "bnpo": (grpo, grpo.GRPOParams(aggregation="bnpo")),
    "dr_grpo": (grpo, grpo.GRPOParams(aggregation="dr_grpo", advantage="none", length=8)),
    "gspo": (grpo, grpo.GRPOParams(objective="gspo")),
    "cispo": (grpo, grpo.GRPOParams(objective="cispo")),
    "grape": (grape, grape.GRAPEParams(beta=0.1, kl="loss_k2")),
    "dpo": (dpo, dpo.DPOParams(sft=0.2)),
    "dpo-per-token": (dpo, dpo.DPOParams(length_normalised=True, label_smoothing=0.1)),
    "ipo": (dpo, dpo.DPOParams(loss="ipo")),
    "reward_model": (reward_model, reward_model.RewardModelParams()),
}


def filled(case: str, pad: int = 0, extra: tuple[int, int] = (0, 0)) -> Batch:
    """A batch with everything a loss may read; `extra` columns of padding left and right must not matter."""
    batch = tiny.batch(3, 8, pad, unit=2 if CASES[case][0] in (reward_model, dpo) else 1)
    generator = torch.Generator().manual_seed(9)
    shape = batch.mask.shape
    batch = batch.with_(
        logp_old=-torch.rand(shape, generator=generator) * 4,
        logp_ref=-torch.rand(shape, generator=generator) * 4,
        advantage=torch.randn(shape, generator=generator),
        value_old=torch.randn(shape, generator=generator),
        returns=torch.randn(shape, generator=generator),
        margin=torch.full((8,), 0.4),
        group=torch.arange(8) // 4,
        beta=torch.full((8,), 0.3),
        length=torch.full((8,), 4.2),
    )
    # What is known of a token is known of tokens of the response alone.
    batch = batch.with_(given=torch.zeros_like(batch.mask))
    per_token = {name: x for name, x in batch.tensors().items() if dimensions(Batch)[name] == ("B", "T")}
    known = {name: x * batch.mask for name, x in per_token.items() if name not in ("response", "mask")}
    left, right = extra
    fill = torch.nn.functional.pad
    return batch.with_(
        prompt=fill(batch.prompt, (left, 0), value=pad),
        prompt_mask=fill(batch.prompt_mask, (left, 0)),
        response=fill(batch.response, (0, right), value=pad),
        mask=fill(batch.mask, (0, right)),
        **{name: fill(value, (0, right)) for name, value in known.items()},
    )


def gradient(case: str, batch: Batch, max_tokens: int = 10**6) -> torch.Tensor:
    module, params = CASES[case]
    if case == "reward_model":
        from transformers import AutoModelForSequenceClassification

        config = tiny.model().config
        config.num_labels = 1
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        forward: Callable[[Batch], Any] = partial(scalar, model)
    elif module is ppo:
        torch.manual_seed(0)
        policy = tiny.model()
        model = ValuedPolicy(policy, tiny.scalar_model(tiny.model(seed=1)) if params.value == "model" else None)
        torch.nn.init.normal_(model.score.weight)  # a head at zero would give its trunk no gradient
        forward = partial(valued, model, entropy_gradient=params.entropy > 0)
    else:
        model = tiny.model()
        forward = partial(language, model)
    parameters = list(model.parameters())
    accumulate(forward, lambda out, part: module.loss(out, part, params), batch, max_tokens, parameters, {})
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


@pytest.mark.parametrize("case", CASES)
def test_split_padding_order_and_pad_token_change_nothing(case: str) -> None:
    whole = gradient(case, filled(case))
    assert float(whole.abs().max()) > 1e-4
    # float32 rounds sums by the size of what is summed: IPO's squares give a gradient of 64.
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=2e-5 if case == "ipo" else 1e-6)
    close(gradient(case, filled(case), max_tokens=20), whole)
    close(gradient(case, filled(case, extra=(5, 4))), whole)
    close(gradient(case, filled(case, pad=2)), whole)  # pad == eos
    order = torch.tensor([6, 7, 2, 3, 0, 1, 4, 5])
    close(gradient(case, filled(case).select(order)), whole)


@pytest.mark.parametrize("case", ["sft", "reinforce", "trpo", "ppo", "grpo", "dpo"])
def test_the_sampled_eos_is_in_the_loss_and_nothing_after_it(case: str) -> None:
    """Moving the last token (EOS) out of the mask changes the gradient: it was in it."""
    batch = filled(case)
    last = batch.mask.sum(1) - 1
    without = batch.mask.clone()
    without[torch.arange(batch.rows), last] = False
    assert not torch.allclose(gradient(case, batch), gradient(case, batch.with_(mask=without)), rtol=1e-3)
    changed = batch.response.clone()
    changed[~batch.mask] = 17
    torch.testing.assert_close(gradient(case, batch.with_(response=changed)), gradient(case, batch), rtol=1e-3, atol=1e-6)


def test_on_policy_grpo_and_reinforce_have_one_gradient_direction() -> None:
    """ratio = 1: the clipped surrogate's gradient is the policy gradient with the same advantages and weights."""
    batch = filled("grpo").with_(logp_old=None)
    lengths = batch.mask.sum(1, keepdim=True)
    mine = gradient("reinforce", batch.with_(advantage=batch.advantage / lengths))
    CASES["plain"] = (grpo, grpo.GRPOParams())
    torch.testing.assert_close(gradient("plain", batch), mine, rtol=1e-3, atol=1e-6)


def test_an_identical_batch_split_by_rows_of_one() -> None:
    rows = tiny.rows(1, 4)
    torch.testing.assert_close(
        gradient("sft", collate(rows, 0), max_tokens=1), gradient("sft", collate(rows, 0)), rtol=1e-3, atol=1e-6
    )
