"""What saves memory changes nothing else: the head in chunks, blocks computed twice, weights of frozen models in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from grape import memory
from grape.algorithms import trpo
from grape.models import head, load
from grape.models.checkpointing import checkpointed
from grape.models.forward import batched_language, exact_kl, language
from grape.models.load import load_language_model, load_scalar_model, save_model
from grape.models.lora import LoRA, adapt
from grape.sampling import row_bytes, rows_that_fit, sample
from grape.training.natural import NaturalGradient
from grape.types import Batch
from tests import tiny

VOCABULARY = len(tiny.tokenizer())
ODD: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 3.0, "head_dim": 16}),
    "granite": (GraniteConfig, {"logits_scaling": 4.0}),
    "cohere": (CohereConfig, {"logit_scale": 0.3}),
}


def made(architecture: str) -> Any:
    """A tiny model; of `ODD` one that does something to its logits."""
    if architecture not in ODD:
        return tiny.model(architecture)
    kind, own = ODD[architecture]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(kind(**sizes, **heads, **ids, **own)).eval()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Chunks of five tokens; the widths of all (.., V) tensors that log-softmax was asked for, in tokens."""
    seen: list[int] = []
    real = torch.log_softmax

    def spy(x: torch.Tensor, dim: int) -> torch.Tensor:
        seen.append(x.numel() // VOCABULARY)
        return real(x, dim)

    monkeypatch.setitem(head.CHUNK, "cpu", 5 * VOCABULARY)
    monkeypatch.setattr(torch, "log_softmax", spy)
    yield seen


def said(model: Any, batch: Batch, dtype: Any = "float32") -> tuple[Any, list[torch.Tensor]]:
    """What the model says at a temperature, and the gradient of a sum of it."""
    model.zero_grad()
    out = language(model, batch, 0.7, dtype, entropy_gradient=True)
    (out.logp.sum() + 0.3 * out.entropy.sum()).backward()
    return out, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("logits_kept", [0, head.KEPT])
@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *ODD])
def test_a_head_in_chunks_says_the_same_and_has_the_same_gradient(
    architecture: str, logits_kept: int, small_chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "KEPT", logits_kept)
    model, batch = made(architecture), tiny.batch()
    chunked, gradient = said(model, batch)
    assert max(small_chunks) == 5 and model not in head._whole
    head.CHUNK["cpu"] = 24 << 20
    whole, expected = said(model, batch)
    assert max(small_chunks) == batch.response.numel()
    torch.testing.assert_close(chunked.logp, whole.logp, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(chunked.entropy, whole.entropy, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_gradient_and_for_the_exact_kl_no_larger_chunk_is_made(small_chunks: list[int]) -> None:
    one, other, batch = tiny.model(), tiny.model(seed=1), tiny.batch()
    logp, kl = batched_language(one, batch, 1.0, 10**6), exact_kl(one, other, batch, 1.0, 10**6)
    assert max(small_chunks) == 5
    head.CHUNK["cpu"] = 24 << 20
    torch.testing.assert_close(logp.logp, batched_language(one, batch, 1.0, 10**6).logp, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(kl, exact_kl(one, other, batch, 1.0, 10**6), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_model_that_does_something_else_to_its_logits_is_computed_whole(small_chunks: list[int]) -> None:
    model, batch = tiny.model(), tiny.batch()

    def bend(_: Any, given: Any, out: Any) -> None:
        out.logits = out.logits - 1.5 * out.logits.sigmoid()

    model.register_forward_hook(bend)
    out = language(model, batch)
    assert model in head._whole and max(small_chunks) == batch.response.numel()
    head.CHUNK["cpu"] = 24 << 20
    torch.testing.assert_close(out.logp, language(model, batch).logp, rtol=0, atol=0)


def kept(model: Any, batch: Batch) -> tuple[int, torch.Tensor]:
    """Numbers that a forward pass keeps for the way back, and the gradient of all weights that have one."""
    numbers = 0

    def pack(x: torch.Tensor) -> torch.Tensor:
        nonlocal numbers
        numbers += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        total = language(model, batch).logp.sum()
    total.backward()
    return numbers, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_logits_are_kept_for_the_way_back_up_to_a_limit_and_made_anew_above_it(
    small_chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny.model(), tiny.batch()
    tokens = int(batch.mask.sum())
    monkeypatch.setattr(head, "KEPT", tokens * VOCABULARY)
    (with_logits, expected), calls = kept(model, batch), sum(small_chunks)
    model.zero_grad()
    monkeypatch.setattr(head, "KEPT", tokens * VOCABULARY - 1)
    without, gradient = kept(model, batch)
    # Not kept: the logits, what their product was made of and the tokens, which a chunk is made of again.
    assert with_logits - without >= tokens * VOCABULARY
    assert sum(small_chunks) - calls == calls + tokens  # forward, again, and back
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_blocks_that_are_computed_twice_keep_less_and_give_the_same_gradients(architecture: str, rank: int) -> None:
    """In eval mode, where transformers' own checkpoints do nothing; the second derivatives of TRPO too."""
    models, batch, products = [tiny.model(architecture), checkpointed(tiny.model(architecture))], tiny.batch(), []
    models = [adapt(model, LoRA(rank=rank), 0) if rank else model for model in models]
    (plain, expected), (less, gradient) = (kept(model, batch) for model in models)
    assert less < plain / 4 and torch.equal(gradient, expected)
    for model in models:
        update = NaturalGradient(model, trpo.TRPOParams(), 64)
        v = torch.ones(sum(p.numel() for p in update.parameters))
        with sdpa_kernel(SDPBackend.MATH):
            products.append(update._fisher(partial(language, model, distribution=True), batch, v))
    assert torch.equal(*products) and float(products[0].abs().max()) > 0


def test_a_checkpointed_model_samples_as_before_and_without_gradient_computes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a checkpoint where no gradient is wanted")

    monkeypatch.setattr("grape.models.checkpointing.checkpoint", never)
    drawn = [
        sample(m, tiny.chat(), [tiny.prompt("ab")], 4, temperature=1.0, max_new_tokens=8, positions=64, keys=("x",))
        for m in (tiny.model(), checkpointed(tiny.model()))
    ]
    assert [r.ids for r in drawn[0]] == [r.ids for r in drawn[1]]
    with pytest.raises(AssertionError, match="a checkpoint"):
        language(checkpointed(tiny.model()), tiny.batch())


@pytest.mark.parametrize("weights", ["bfloat16", "float16"])
def test_a_frozen_model_in_half_precision_is_half_as_large_and_says_almost_the_same(weights: Any, tmp_path: Path) -> None:
    save_model(tiny.model("qwen3"), tiny.tokenizer(), tmp_path / "model")
    half, full = (load_language_model(str(tmp_path / "model"), weights=w)[0] for w in (weights, "float32"))
    assert {p.dtype for p in half.parameters()} == {getattr(torch, weights)} and {p.dtype for p in full.parameters()} == {
        torch.float32
    }
    one, other = (batched_language(model, tiny.batch(), 1.0, 4096).logp for model in (half, full))
    assert 0 < float((one - other).abs().max()) < 0.5 and one.dtype == torch.float32
    assert load_scalar_model(str(tmp_path / "model"), True, weights)[0].dtype == getattr(torch, weights)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_model_read_from_gguf_becomes_a_plain_one_without_a_second_copy(architecture: str) -> None:
    model = tiny.model(architecture)
    places = {p.data_ptr() for p in model.parameters()}
    plain = load._dequantised(model)
    assert {p.data_ptr() for p in plain.parameters()} == places
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert tied and all(b.device.type == "cpu" for b in plain.buffers())
    assert torch.equal(language(plain, tiny.batch()).logp, language(model, tiny.batch()).logp)


def test_rows_that_are_written_at_once_follow_from_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    # 2 (keys, values) x 2 layers x 2 heads x 16 numbers x 40 tokens x 4 bytes, and 20 bytes for each of V.
    per_row = 2 * 2 * 2 * 16 * 40 * 4 + VOCABULARY * 20
    assert row_bytes(model.config, 40, "float32", torch.float32) == per_row
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * 7 * per_row + 3)
    assert rows_that_fit(model, 40, "float32") == 7
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert rows_that_fit(model, 40, "float32") == 1


def test_the_memory_that_is_free_is_some_of_all_there_is() -> None:
    device = torch.device("cpu")
    assert 0 < memory.free_bytes(device) <= memory.total_bytes(device)


def test_what_is_freed_is_kept_until_a_process_grows_or_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    mb, trimmed = 1 << 20, list[int]()
    free = [10_000]
    monkeypatch.setattr(memory, "_free", lambda: free[0] * mb)

    def rounds(*held: int) -> list[int]:
        heap, found = memory.Heap(), []
        monkeypatch.setattr(memory, "_trim", lambda: trimmed.append(1))
        for now in held:
            before = len(trimmed)
            monkeypatch.setattr(memory, "_resident", lambda now=now: now * mb)
            heap.ended()
            found.append(len(trimmed) - before)
        return found

    assert rounds(2000, 3600, 3600, 3700, 3720, 2500, 3700) == [0, 0, 0, 0, 1, 0, 0]
    assert rounds(500, 900, 1000, 700) == [0, 0, 0, 0]  # a small process
    free[0] = 3000
    assert rounds(2000, 3600, 3600, 2500) == [0, 1, 1, 0]


def test_the_loop_asks_after_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from grape.algorithms import sft
    from grape.training.adam import Adam, AdamParams
    from grape.training.batches import Round
    from grape.training.loop import train

    asked: list[int] = []
    monkeypatch.setattr(memory.Heap, "ended", lambda self: asked.append(1))
    model, batch = tiny.model(), tiny.batch()
    train(
        model, sft.ALGORITHM, sft.ALGORITHM.params(), lambda update, state: Round(batch, state), partial(language, model),
        Adam(model, AdamParams(1e-3, 3)), steps=3, track=lambda step, metrics: None,
    )  # fmt: skip
    assert len(asked) == 3
