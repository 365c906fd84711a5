"""What is sampled is what is trained on: positions, masks, kernels and draws agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grape.maths import logprob
from grape.maths.logprob import token_logp
from grape.models.encode import collate
from grape.models.forward import batched_language, exact_kl, language, micro_batches
from grape.sampling import choose, response_rows, sample
from tests import tiny


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_left_padded_rows_equal_unpadded_ones(architecture: str) -> None:
    """Learned positions and rotary ones; also against transformers' own forward without any of our padding."""
    model, rows = tiny.model(architecture), tiny.rows(2, 5)
    together = language(model, collate(rows, 0))
    assert together.logp is not None
    for i, (prompt, response) in enumerate(rows):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        plain = torch.log_softmax(logits, -1)[torch.arange(len(response)), torch.tensor(response)]
        torch.testing.assert_close(together.logp[i, : len(response)], plain, rtol=1e-4, atol=1e-4)
        assert together.logp[i, len(response) :].abs().sum() == 0


def test_temperature_divides_the_logits_and_entropy_is_exact() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    logp, entropy = token_logp(logits, torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool), temperature=2.0)
    p = torch.softmax(logits / 2, -1)
    torch.testing.assert_close(logp, p[..., 2].log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1))


def test_an_impossible_token_gives_no_nan_outside_the_mask() -> None:
    logits = torch.tensor([[[0.0, -torch.inf], [0.0, -torch.inf]]], requires_grad=True)
    logp, entropy = token_logp(logits, torch.tensor([[0, 1]]), torch.tensor([[True, False]]))
    assert torch.isfinite(logp).all() and torch.isfinite(entropy).all()


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_and_entropies_have_autograds_gradient(
    dtype: torch.dtype, temperature: float, entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows at a time, the last one alone; a token is impossible, a place is padding; the logits alone are kept."""
    monkeypatch.setitem(logprob.BLOCK, "cpu", 2 * 11)
    generator = torch.Generator().manual_seed(0)
    logits, g, h = (torch.randn(1, 5, *more, generator=generator) for more in ((11,), (), ()))
    logits[0, :, 3] = -torch.inf
    ids, mask = torch.tensor([[1, 10, 0, 2, 2]]), torch.tensor([[True, True, False, True, True]])
    ours, theirs = (logits.to(dtype).requires_grad_() for _ in range(2))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        logp, entropy = token_logp(ours, ids, mask, temperature, entropy_gradient)
    assert [x.numel() for x in kept if 11 in x.shape] == [logits.numel()]
    expected = torch.log_softmax(theirs.float() / temperature, -1)
    p, bounded = expected.exp(), expected.masked_fill(expected == -torch.inf, 0)
    of_token, of_all = expected.gather(-1, ids.unsqueeze(-1)).squeeze(-1) * mask, -(p * bounded).sum(-1) * mask
    torch.testing.assert_close((logp, entropy), (of_token, of_all))
    assert entropy.requires_grad == entropy_gradient
    ((g * logp).sum() + (h * entropy).sum()).backward()
    ((g * of_token).sum() + (h * of_all).sum() * entropy_gradient).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_rows_of_which_none_counts_have_no_gradient_and_second_derivatives_are_refused() -> None:
    logits, ids = torch.zeros(2, 3, 4, requires_grad=True), torch.zeros(2, 3, dtype=torch.long)
    logp, _ = token_logp(logits, ids, torch.zeros(2, 3, dtype=torch.bool))
    logp.sum().backward()
    assert logits.grad is not None and not logits.grad.any()
    nothing = token_logp(logits[:0], ids[:0], torch.zeros(0, 3, dtype=torch.bool))[0]
    nothing.sum().backward()
    logp, _ = token_logp(logits, ids, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(NotImplementedError, match="once"):
        torch.autograd.grad(logp.sum(), logits, create_graph=True)


def test_an_entropy_alone_has_its_gradient() -> None:
    """dH/dz_j = -p_j (log p_j + H), known for two tokens: p (1 - p) log((1 - p) / p)."""
    logits = torch.tensor([[[2.0, 0.0]]], requires_grad=True)
    token_logp(logits, torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool), entropy_gradient=True)[1].sum().backward()
    p = torch.sigmoid(torch.tensor(2.0))
    slope = p * (1 - p) * torch.log((1 - p) / p)
    torch.testing.assert_close(logits.grad, torch.stack([slope, -slope]).view(1, 1, 2))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_greedy_sampling_is_transformers_greedy_generation(architecture: str) -> None:
    model, chat = tiny.model(architecture), tiny.chat()
    prompts = [tiny.prompt(text) for text in ("a", "hello there", "3 + 5?")]
    ours = sample(model, chat, prompts, 1, temperature=0.0, max_new_tokens=12, positions=64, keys=("x",))
    for prompt, response in zip(prompts, ours, strict=True):
        ids = torch.tensor([chat.prompt(prompt.messages)])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert list(response.ids) == theirs[0, ids.shape[1] :].tolist()


def test_a_sample_is_the_same_whatever_else_is_sampled_with_it() -> None:
    model, chat = tiny.model(), tiny.chat()
    prompts = [tiny.prompt(text) for text in ("a", "bcd", "a longer question than that")]
    common: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 16, "positions": 64, "keys": (0, "rollout", 3)}
    together = sample(model, chat, prompts, 4, **common)
    alone = sample(model, chat, prompts[1:2], 4, **common)
    chunked = sample(model, chat, prompts, 4, rows_at_once=1, **common)
    assert [r.ids for r in together[4:8]] == [r.ids for r in alone]
    assert [r.ids for r in together] == [r.ids for r in chunked]
    assert len({r.ids for r in together[:4]}) > 1
    other = sample(model, chat, prompts, 4, **{**common, "keys": (0, "rollout", 4)})
    assert [r.ids for r in other] != [r.ids for r in together]


def test_samples_end_with_eos_or_are_unfinished_and_stay_within_positions() -> None:
    model, chat = tiny.model(), tiny.chat()
    with torch.no_grad():  # make EOS likely enough to be drawn
        model.get_output_embeddings().weight[chat.tokenizer.eos_token_id] *= 2
    responses = sample(
        model, chat, [tiny.prompt("q" * n) for n in (1, 20, 35)], 8, temperature=1.0, max_new_tokens=30, positions=56, keys=(1,)
    )
    assert {r.finished for r in responses} == {True, False}
    for response, (prompt, ids, _) in zip(responses, response_rows(chat, responses), strict=True):
        assert response.finished == (ids[-1] in chat.stops)
        assert chat.tokenizer.eos_token_id not in ids[:-1] and len(prompt) + len(ids) <= 56 and len(ids) <= 30


def test_a_rollouts_log_probabilities_are_the_training_stacks() -> None:
    """Before the first update the ratio is 1: micro-batched, differently padded forwards agree."""
    model, chat = tiny.model("gpt2"), tiny.chat()
    responses = sample(
        model,
        chat,
        [tiny.prompt("ab"), tiny.prompt("a much longer one")],
        4,
        temperature=0.7,
        max_new_tokens=12,
        positions=64,
        keys=(1,),
    )
    batch = collate(response_rows(chat, responses), chat.pad)
    old, new = batched_language(model, batch, 0.7, max_tokens=40), language(model, batch, 0.7)
    torch.testing.assert_close(old.logp, new.logp.detach(), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_choose_inverts_the_cumulated_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25, 0.0]])).expand(5, 4)
    drawn, logp = choose(logits, torch.tensor([0.0, 0.499, 0.5, 0.76, 1 - 2**-24]), 1.0)
    assert drawn.tolist() == [0, 0, 1, 2, 2]


def test_uniform_logits_are_sampled_uniformly() -> None:
    uniform = torch.rand(40000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(choose(torch.zeros(40000, 8), uniform, 1.0)[0], minlength=8)
    chi2 = float(((counts - 5000.0) ** 2 / 5000).sum())
    assert chi2 < 24.3  # 99.9 % of chi-squared with 7 degrees of freedom


def test_the_greedy_response_beside_sampled_ones_is_the_one_written_alone() -> None:
    model, chat, prompts = tiny.model(), tiny.chat(), [tiny.prompt("a"), tiny.prompt("what is b?"), tiny.prompt("c c")]
    how: dict[str, Any] = {"max_new_tokens": 12, "positions": 64, "keys": (0, "together")}
    both = sample(model, chat, prompts, 3, temperature=1.0, greedy=True, **how)
    assert [r.index for r in both] == [0, 1, 2, 3] * 3
    assert [r.ids for r in both if r.index < 3] == [r.ids for r in sample(model, chat, prompts, 3, temperature=1.0, **how)]
    assert [r.ids for r in both if r.index == 3] == [r.ids for r in sample(model, chat, prompts, 1, temperature=0.0, **how)]


def test_exact_kl_of_a_policy_with_itself_is_zero_and_with_another_positive() -> None:
    batch = tiny.batch()
    same, _ = exact_kl(tiny.model(), tiny.model(), batch, 1.0, 50)
    other, entropy = exact_kl(tiny.model(), tiny.model(seed=1), batch, 1.0, 50)
    assert float(same.abs().max()) < 1e-5 and float(other[batch.mask].min()) > 0
    torch.testing.assert_close(entropy, batched_language(tiny.model(), batch, 1.0, 10**6).entropy, rtol=1e-4, atol=1e-5)


def test_micro_batches_keep_pairs_together_and_cover_every_row_once() -> None:
    batch = tiny.batch(count=10, unit=2)
    parts = [part.tolist() for part in micro_batches(batch, 30)]
    assert sorted(i for part in parts for i in part) == list(range(10)) and len(parts) > 1
    assert all(part[j + 1] == part[j] + 1 and part[j] % 2 == 0 for part in parts for j in range(0, len(part), 2))
