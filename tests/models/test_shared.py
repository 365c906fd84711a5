"""Rows packed behind one copy of their prompt say what plain rows say, with the same gradient, in fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconConfig, MistralConfig

from grape.models import attention, shared
from grape.models.checkpointing import checkpointed
from grape.models.encode import collate
from grape.models.forward import batched_language, batched_scores, language, micro_batches, scalar
from grape.models.lora import LoRA, adapt
from grape.models.value import ValuedPolicy, batched_values, valued
from grape.types import Batch, Outputs
from tests import tiny


@pytest.fixture(autouse=True)
def no_model_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_known", type(shared._known)())


def groups(count: int = 3, samples: int = 4, unit: int = 1) -> Batch:
    """Groups of responses of different lengths to prompts of different lengths, not in order."""
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        return torch.randint(4, 60, (int(torch.randint(low, high, (1,), generator=generator)),), generator=generator).tolist()

    prompts = [ids(2, 12) for _ in range(count)]
    return Batch.of(
        collate(
            [(prompts[i % count], ids(1, 9)) for _ in range(samples // unit) for i in range(count) for _ in range(unit)], 0, unit
        )
    )


def plain_and_packed(model: Any, said: Callable[[Batch], Tensor], batch: Batch) -> None:
    """Both ways: the same numbers and the same gradient."""
    found = []
    packed = shared.share(model, batch)
    assert packed.get("shared") is not None
    for given in (batch, packed):
        for p in model.parameters():
            p.grad = None
        out = said(given)
        out.sum().backward()
        found.append((out.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (one, of_one), (other, of_other) = found
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_other, of_one, rtol=1e-4, atol=1e-5 * float(of_one.abs().max()))


def _numbers(out: Outputs, batch: Batch) -> Tensor:
    return torch.cat([(x * batch.mask).flatten() for x in out.tensors().values()])


def _spread(head: torch.nn.Module) -> None:
    """Weights that tell hidden states apart; all alike they would read a normed state as 0."""
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.arange(p.numel()).sin().view_as(p))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_packed_rows_are_plain_rows(architecture: str) -> None:
    model = tiny.model(architecture)
    plain_and_packed(model, lambda b: _numbers(language(model, b, 0.7, entropy_gradient=True), b), groups())
    reward = tiny.scalar_model(model)
    plain_and_packed(reward, lambda b: scalar(reward, b).score, groups(unit=2))
    plain_and_packed(model, lambda b: _numbers(language(model, b), b), groups(count=5, samples=1))  # of rows that share none


def test_packed_rows_are_plain_rows_with_adapters_checkpoints_and_values() -> None:
    adapted = checkpointed(adapt(tiny.model(), LoRA(rank=2), 0))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    plain_and_packed(adapted, lambda b: _numbers(language(adapted, b), b), groups())
    assert shared.share(copy.deepcopy(adapted), groups()).get("shared") is not None
    policy = tiny.model()
    for both in (ValuedPolicy(policy), ValuedPolicy(tiny.model(), tiny.scalar_model(policy))):
        _spread(both.score)
        plain_and_packed(both, lambda b, both=both: _numbers(valued(both, b), b), groups())  # type: ignore[misc]


def test_micro_batches_of_packed_rows_give_every_row_and_read_fewer_tokens() -> None:
    """Log-probabilities, scores and values in micro-batches are those of whole plain rows, whatever their size."""
    model, batch = tiny.model("gpt2"), groups(samples=8)
    packed = shared.share(model, batch)
    for most in (1, 40, 120, 10**6):
        chosen = list(micro_batches(packed, most))
        assert sorted(int(i) for index in chosen for i in index) == list(range(batch.rows))
        sizes = [shared.packed(packed.select(index)).given["input_ids"].numel() for index in chosen]
        assert all(size <= most or len(index) == 1 for size, index in zip(sizes, chosen, strict=True))
    alone = shared.share(model, groups(count=9, samples=1))
    assert [len(index) for index in micro_batches(alone, 40)] and all(
        shared.packed(alone.select(index)).given["input_ids"].numel() <= 40 or len(index) == 1 for index in micro_batches(alone, 40)
    )
    assert sizes[-1] < 0.7 * batch.rows * (batch.prompt.shape[1] + batch.response.shape[1])
    torch.testing.assert_close(batched_language(model, batch, 0.7, 50).logp, language(model, batch, 0.7).logp, rtol=1e-5, atol=1e-5)
    reward = tiny.scalar_model(model)
    torch.testing.assert_close(batched_scores(reward, batch, 50), scalar(reward, batch).score, rtol=1e-5, atol=1e-5)
    both = ValuedPolicy(model)
    _spread(both.score)
    value, behind = batched_values(both, batch, 50)
    torch.testing.assert_close(value, valued(both, batch).value * batch.mask, rtol=1e-4, atol=1e-5)
    longer = batch.with_(
        response=torch.cat([batch.response, batch.response[:, :1]], 1), mask=torch.cat([batch.mask, batch.mask[:, :1]], 1)
    )
    torch.testing.assert_close(
        behind, valued(both, longer).value.gather(1, batch.mask.sum(1, keepdim=True)).squeeze(1), rtol=1e-4, atol=1e-5
    )


def test_pairs_stay_together_and_turns_of_others_are_read() -> None:
    model, rows = tiny.model(), groups(unit=2)
    given = torch.zeros_like(rows.mask)
    given[:, 1] = rows.mask[:, 2] & rows.mask[:, 1]  # the second token is somebody else's
    batch = rows.with_(given=given, mask=rows.mask & ~given)
    plain_and_packed(model, lambda b: language(model, b).logp, batch)
    for index in micro_batches(shared.share(model, batch), 30):
        pairs = index.view(-1, 2)
        assert bool((pairs[:, 0] % 2 == 0).all()) and bool((pairs[:, 1] == pairs[:, 0] + 1).all())


@pytest.mark.parametrize("short", [512, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_packed_rows_is_that_of_each_row_alone(
    short: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against softmax(q k / sqrt D) v written out, four heads on two of keys: float32 inside while rows are short, and keys
    repeated where no kernel takes few heads of them beside a mask."""
    monkeypatch.setattr(attention, "SHORT", short)
    monkeypatch.setattr(attention, "GROUPED", {"cpu"} if short else set())
    generator = torch.Generator().manual_seed(0)
    for batch in (groups(), groups(count=5, samples=2)):
        rows = batch.with_(shared=torch.unique(batch.prompt.masked_fill(~batch.prompt_mask, -1), dim=0, return_inverse=True)[1])
        given = shared.packed(rows).given
        ids, position, layout = given["input_ids"][0], given["position_ids"][0], given["layout"]
        q, k, v = (torch.randn(1, heads, len(ids), 8, generator=generator).to(dtype) for heads in (4, 2, 2))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out, _ = attention.attention(torch.nn.Module(), q, k, v, None, layout=layout)
        assert out.dtype == (dtype if short == 0 else torch.float32)
        seen = _seen(rows, position)
        scores = q[0].double() @ k[0].double().repeat_interleave(2, 0).mT / 8**0.5
        wanted = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[0].double().repeat_interleave(2, 0)
        off = 1e-5 if short or dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out[0].transpose(0, 1).double(), wanted, rtol=off, atol=off)


def _seen(batch: Batch, position: Tensor) -> Tensor:
    """(N, N) what every token may see, row by row: prompts in the order of their first rows, then the responses."""
    prompts: dict[int, list[int]] = {}
    place = 0
    for i, number in enumerate(batch.shared.tolist()):
        if number not in prompts:
            prompts[number] = list(range(place, place := place + int(batch.prompt_mask[i].sum())))
    seen = torch.zeros(len(position), len(position), dtype=torch.bool)
    rows = [[], *prompts.values()]  # type: ignore[var-annotated]
    for i, number in enumerate(batch.shared.tolist()):
        rows.append(prompts[number] + list(range(place, place := place + int(batch.mask[i].sum()))))
    for row in rows:
        for j, token in enumerate(row):
            assert int(position[token]) == j
            seen[token, row[: j + 1]] = True
    assert place == len(position)  # no token twice, no padding
    return seen


def _config(kind: Any, **more: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(kind(**sizes, **more)).eval()


def _bent(model: Any, _: Any, out: Any) -> None:
    out.logits = out.logits - 1.5 * out.logits.sigmoid()


def test_a_model_that_would_read_packed_rows_as_something_else_is_computed_plainly() -> None:
    """ALiBi counts columns; a window is no part of our mask; logits that are bent behind the head are not the head's."""
    alibi = _config(FalconConfig, alibi=True, new_decoder_architecture=False)
    window = _config(MistralConfig, intermediate_size=64, num_key_value_heads=2, sliding_window=8)
    bent, eager = tiny.model(), tiny.model()
    bent.register_forward_hook(_bent)
    eager.set_attn_implementation("eager")
    for model in (alibi, window, bent, eager):
        assert shared.share(model, groups()).get("shared") is None
        assert model.config._attn_implementation in ("sdpa", "eager")
    assert (
        shared.share(_config(MistralConfig, intermediate_size=64, num_key_value_heads=2, sliding_window=None), groups()).get(
            "shared"
        )
        is not None
    )


def test_a_model_whose_code_hands_nothing_on_is_not_asked_to() -> None:
    model = tiny.model()

    class Closed(type(model.model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, use_cache: bool = False) -> Any:
            raise AssertionError("it was tried")

    assert shared.can(model)
    model.model.__class__ = Closed
    assert not shared.can(model) and shared.share(model, groups()).get("shared") is None


def test_training_reads_packed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of Adam in micro-batches: the same weights, up to rounding, from fewer tokens."""
    from grape.training.adam import Adam, AdamParams
    from grape.types import Loss

    def loss(out: Outputs, batch: Batch) -> Loss:
        weight = batch.mask.float()
        return Loss(-out.logp * out.logp.detach(), weight, weight.sum(1), {})

    gradients, read = [], []
    for packs in (False, True):
        if not packs:
            monkeypatch.setattr(shared, "can", lambda model: False)
        else:
            monkeypatch.undo()
        monkeypatch.setattr(shared, "_known", type(shared._known)())
        model, seen = tiny.model(), [0]
        adam = Adam(model, AdamParams(1e-3, 1, micro_batch_tokens=100, max_grad_norm=1e9))
        shared.share(model, groups())  # the probe reads too
        model.model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.__setitem__(0, seen[0] + kwargs["input_ids"].numel()), with_kwargs=True
        )
        monkeypatch.setattr(adam.optimizer, "zero_grad", lambda **_: None)
        adam.update(partial(language, model), loss, groups())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        read.append(seen[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))
    assert read[1] < 0.7 * read[0]
