"""Every shortcut of grape's own engine against the plain way: the same tokens, log-probabilities within rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grape.sampling import Own, Wanted, Written, draws, own, uniforms
from grape.sampling.cache import InPlace, expanded
from tests import tiny

PROMPTS = ([5, 6, 7], [9] * 14, [8, 4, 11, 30, 12], [13])
STOP = 2


def wanted(**changes: Any) -> Wanted:
    given: dict[str, Any] = {"samples": 3, "temperature": 0.8, "keys": ("t",), "stops": frozenset({STOP}), "pad": 0}
    return Wanted(PROMPTS, [f"p{i}" for i in range(len(PROMPTS))], [20, 12, 20, 16], **given | changes)


def grouped() -> Any:
    """Query heads that share keys, and so a smaller cache."""
    from transformers import AutoModelForCausalLM

    return again(AutoModelForCausalLM, tiny.model("llama"), num_key_value_heads=1)


def again(auto: Any, model: Any, **changes: Any) -> Any:
    torch.manual_seed(1)
    made = auto.from_config(type(model.config).from_dict({**model.config.to_dict(), **changes})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(10.0)
    return made


def sliding() -> Any:
    """One layer that sees 6 tokens back, one that sees all."""
    from transformers import AutoModelForCausalLM

    kinds = ["sliding_attention", "full_attention"]
    return again(AutoModelForCausalLM, tiny.model("qwen3"), use_sliding_window=True, sliding_window=6, layer_types=kinds)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tiny.model("gpt2"), "qwen3": lambda: tiny.model("qwen3"), "grouped": grouped, "sliding": sliding,
    "adapters": tiny.adapted,
}  # fmt: skip


@torch.no_grad()
def plainly(model: Any, asked: Wanted) -> list[Written]:
    """One row at a time, no cache, no padding, float64 sums over the whole vocabulary."""
    rows = []
    numbers = uniforms(asked.names, asked.samples, max(asked.limits), asked.keys)
    for p, prompt in enumerate(asked.prompts):
        for g in range(asked.samples):
            row = Written([], [])
            for t in range(asked.limits[p]):
                logp = torch.log_softmax(model(torch.tensor([prompt + row.ids])).logits[0, -1].double() / asked.temperature, -1)
                token = int(torch.searchsorted(logp.exp().cumsum(0), float(numbers[p * asked.samples + g, t]), right=True))
                if asked.greedy and g == asked.samples - 1:
                    token = int(logp.argmax())
                row.ids.append(token)
                row.logp.append(float(logp[token]))
                if token in asked.stops:
                    break
            rows.append(row)
    return rows


def test_tokens_and_log_probabilities_are_those_of_the_plain_way(subtests: pytest.Subtests) -> None:
    for name, make in MODELS.items():
        with subtests.test(name):
            model, asked = make(), wanted(greedy=name == "qwen3")
            expected = plainly(model, asked)
            assert len({len(row.ids) for row in expected}) > 2, "nothing finished early"
            for found in (Own(model).write(asked), Own(model, rows_at_once=6).write(asked)):
                assert [row.ids for row in found] == [row.ids for row in expected]
                for ours, theirs in zip(found, expected, strict=True):
                    assert ours.logp == pytest.approx(theirs.logp, abs=1e-4)


def test_the_cache_is_written_in_place_and_layers_that_slide_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[type], int]] = []
    step = own._Decoding.step

    def noted(self: Any, token: Any) -> None:
        step(self, token)
        layers = self.cache.layers
        seen.append(([type(layer) for layer in layers], layers[1].keys.data_ptr()))

    monkeypatch.setattr(own._Decoding, "step", noted)
    Own(sliding()).write(wanted(stops=frozenset()))
    assert all(kinds[1] is InPlace and kinds[0] is not InPlace for kinds, _ in seen)
    assert len({place for _, place in seen[:11]}) == 1  # until the first row has reached its limit


def test_equal_lengths_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    masked: list[bool] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: masked.append("attention_mask" in given) or forward(**given))
    Own(model).write(wanted().part([0]))
    assert masked and not any(masked)
    Own(model).write(wanted())
    assert masked[-1]


def test_looking_less_often_who_has_finished_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny.model("gpt2"), wanted()
    every = Own(model).write(asked)
    monkeypatch.setattr(own, "LOOK", {})
    for found, expected in zip(Own(model).write(asked), every, strict=True):
        assert found.ids == expected.ids and found.logp == pytest.approx(expected.logp, abs=1e-5)


def test_a_finished_row_does_not_walk_beyond_the_models_positions() -> None:
    """GPT-2 has a vector for each: one beyond the last is an error, or on an accelerator the end of the process."""
    model = tiny.model("gpt2", positions=24)
    asked = Wanted([[5] * 23, [6], [7], [8], [9]], list("abcde"), [1, 20, 20, 20, 20], 2, 1.0, ("t",), frozenset(), 0)
    assert [len(row.ids) for row in Own(model).write(asked)] == [1, 1] + [20] * 8


class Rounded(TorchDispatchMode):
    """Notes what of so many dimensions is rounded to bfloat16: 2 have weights, 4 keys and values."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions, self.shapes = dimensions, list[tuple[int, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func is torch.ops.aten._to_copy.default
            and (kwargs or {}).get("dtype") is torch.bfloat16
            and args[0].dim() == self.dimensions
        ):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["gpt2", "adapters", "frozen"])
def test_in_bfloat16_matrices_are_rounded_once_to_the_same_numbers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model().requires_grad_(False) if kind == "frozen" else MODELS[kind]()
    trained = [p.requires_grad for p in model.parameters()]
    shape = tuple(model.get_output_embeddings().weight.shape)
    with Rounded(2) as once:
        found = Own(model, "bfloat16").write(wanted())
    assert once.shapes.count(shape) == 1 and [p.requires_grad for p in model.parameters()] == trained
    monkeypatch.setattr("grape.memory.free_bytes", lambda _: 1)  # too little for a second copy of the weights
    with Rounded(2) as always:
        plain = Own(model, "bfloat16", rows_at_once=100).write(wanted())
    assert always.shapes.count(shape) > 10 and found == plain
    with torch.no_grad():  # and what is trained afterwards is not rounded to what it was
        model.get_output_embeddings().weight.mul_(-1)
    assert Own(model, "bfloat16", rows_at_once=100).write(wanted()) != plain


@pytest.mark.parametrize("vocabulary", [4096, 4097, 50000])
def test_searching_block_by_block_finds_the_same_tokens(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(256, vocabulary, generator=generator)
    logits[:, 100:300] = -torch.inf  # whole blocks, and parts of one, that are never drawn
    uniform = torch.rand(256, generator=generator)
    uniform[:3] = torch.tensor([0.0, 1 - 2**-24, 0.5])
    token, logp = draws.choose(logits, uniform, 0.7)
    weight = torch.softmax(logits / 0.7, -1)
    assert torch.equal(token, draws._search(weight, uniform)) and torch.equal(token, draws._search_blocks(weight, uniform))
    expected = torch.log_softmax(logits / 0.7, -1).gather(1, token.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-5)


def test_a_model_of_many_tokens_draws_them_as_often_as_it_says() -> None:
    """Uniform numbers at equal distances: each of 8 tokens far apart gets its share to within one."""
    logits = torch.full((1, 8000), -torch.inf)
    places = torch.arange(8) * 997
    share = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8.0])
    logits[0, places] = share.log()
    uniform = (torch.arange(3600) + 0.5) / 3600
    token, _ = draws.choose(logits.expand(3600, -1), uniform, 1.0)
    assert (torch.bincount(token, minlength=8000)[places] - 100 * share).abs().max() <= 1


@pytest.mark.parametrize("rows_at_once", [None, 4])
def test_every_row_is_told_once_as_soon_as_it_is_finished(rows_at_once: int | None) -> None:
    model, asked = tiny.model("qwen3"), wanted(greedy=True)
    told: dict[int, Written] = {}
    steps: list[int] = []  # the longest answer that is there when one is told

    def tell(row: int, written: Written) -> None:
        assert row not in told
        told[row] = written
        steps.append(len(written.ids))

    rows = Own(model, rows_at_once=rows_at_once).write(asked, tell)
    assert [told[i] for i in range(len(rows))] == rows == Own(model, rows_at_once=rows_at_once).write(asked)
    if rows_at_once is None:
        assert steps == sorted(steps) and steps[0] < steps[-1], "told at the end, not on the way"


def test_in_bfloat16_the_cache_is_rounded_once_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grouped()
    layers, longest = model.config.num_hidden_layers, max(map(len, PROMPTS))
    with Rounded(4) as once:
        found = Own(model, "bfloat16").write(wanted())
    monkeypatch.setattr(own, "expanded", lambda *given, **more: expanded(*given))
    with Rounded(4) as anew:
        assert Own(model, "bfloat16").write(wanted()) == found
    tokens = max(len(row.ids) for row in found)
    rounded, otherwise = (sum(shape[2] for shape in made.shapes if shape[1] == 1) for made in (once, anew))  # of keys and values
    assert rounded <= 2 * layers * (2 * longest + tokens)  # once by the prompt's attention, once for the buffer
    assert otherwise > layers * tokens * longest
