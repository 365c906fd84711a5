"""Critique and revise: what is asked, who is compared with whom, and what the revisions must not touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from grape.algorithms import grape, grpo
from grape.maths.advantage import group_advantage
from grape.sampling import Own, sample
from grape.training.adam import AdamParams
from grape.training.assemble import assemble
from grape.training.batches import Round
from grape.training.revision import ask, choose, groups
from grape.training.sampler import Sampler, Sampling
from grape.types import Prompt, Response, Scores
from tests import tiny

PROMPTS = [tiny.prompt(text) for text in "abcdefgh"]
SAMPLING = Sampling(8, 4, 1.0, 3, 64, 8192, 0.0)


def score(responses: Sequence[Response]) -> Scores:
    """The share of a's; it only knows plain prompts, as a rubric does."""
    assert all(len(r.prompt.messages) == 1 for r in responses), "the judge saw the critique"
    values = torch.tensor([[r.text.count("a") / max(len(r.text), 1)] for r in responses])
    ones = torch.ones_like(values)
    return Scores(("any/it",), values, ones, ones.bool(), ones, tuple(("because",) for _ in responses))


def critique(responses: Sequence[Response], scores: Scores) -> list[str]:
    return ["ab" if value < 0.5 else "" for value in scores.score[:, 0].tolist()]


def round_of(params: Any, said: Any = critique, judge: Any = score, how: Sampling = SAMPLING, algorithm: Any = grape) -> Round:
    learner = assemble(algorithm.ALGORITHM, params, tiny.model(), AdamParams(1e-3, 1))
    return learner.rollouts(tiny.chat(), PROMPTS, judge, how, ("k",), critique=said)(0, {})


def sampler(revise: float, said: Any = critique, how: Sampling = SAMPLING, **knobs: Any) -> Sampler:
    params = grape.GRAPEParams(revise=revise, **knobs)
    return Sampler(Own(tiny.model()), tiny.chat(), PROMPTS, score, params, how, ("k",), said)


def test_a_revision_prompt_is_the_question_the_answer_and_the_critique() -> None:
    drawn = sampler(0.25).round(0)
    assert drawn.plain == 24 and len(drawn.responses) == 32 and drawn.revises is not None
    for row in range(24, 32):
        old, new = drawn.responses[drawn.revises[row]], drawn.responses[row]
        assert [m["content"] for m in new.prompt.messages] == [old.prompt.text, old.text, "ab"]
        assert [m["role"] for m in new.prompt.messages] == ["user", "assistant", "user"]
        assert drawn.scores.score[drawn.revises[row], 0] < 0.5, "there was nothing to mend"
    assert len({r.prompt.id for r in drawn.responses}) == 8
    plainly = score([replace(r, prompt=PROMPTS[0]) for r in drawn.responses[24:]])
    torch.testing.assert_close(drawn.scores.score[24:, 0], plainly.score[:, 0])
    gained = (drawn.scores.score[24:, 0] - drawn.scores.score[drawn.revises[24:], 0]).sum()
    assert drawn.metrics["revision/share"] == (0.25, 1.0)
    assert drawn.metrics["revision/gain"] == (pytest.approx(float(gained), abs=1e-6), 8.0)


def test_revisions_are_sampled_given_the_critique() -> None:
    """Behind the revision prompts stand the policy's own draws from them: the ratio of the first update is 1 there too."""
    drawn = sampler(0.25).round(0)
    found = [drawn.responses[24].prompt, drawn.responses[28].prompt]
    again = sample(tiny.model(), tiny.chat(), found, 4, temperature=1.0, max_new_tokens=3, positions=64,
                   keys=("k", "rollout", 0, "revision"))  # fmt: skip
    assert [r.ids for r in again] == [r.ids for r in drawn.responses[24:]]
    batch = drawn.rollouts(tiny.chat(), SAMPLING)
    width = int(batch.prompt_mask[24].sum())
    assert batch.prompt[24, -width:].tolist() == tiny.chat().prompt(found[0].messages)


def test_the_budget_is_the_same_when_there_is_nothing_to_mend() -> None:
    drawn = sampler(0.5, said=lambda responses, scores: [""] * len(responses)).round(0)
    assert len(drawn.responses) == 32 and drawn.plain == 32 and set(drawn.revises or ()) == {-1}
    assert drawn.metrics == {"revision/share": (0.0, 1.0)}
    assert all(len(r.prompt.messages) == 1 for r in drawn.responses)


def test_what_leaves_no_room_for_an_answer_is_not_asked() -> None:
    drawn = sampler(0.5, said=lambda responses, scores: ["a" * 70] * len(responses)).round(0)
    assert drawn.plain == 32


def test_every_group_is_asked_once_before_one_is_asked_twice() -> None:
    responses = [Response(PROMPTS[i // 4], i % 4, (1,), "b", True) for i in range(32)]
    first = choose(responses, ["c"] * 32, 8, lambda prompt: True, ("k", 0))
    assert len({row // 4 for row, _ in first}) == 8
    assert [row for row, _ in first] == [row for row, _ in choose(responses, ["c"] * 32, 8, lambda prompt: True, ("k", 0))]
    assert [row for row, _ in first] != [row for row, _ in choose(responses, ["c"] * 32, 8, lambda prompt: True, ("k", 1))]
    assert len(choose(responses, ["c"] * 32, 20, lambda prompt: True, ("k", 0))) == 20
    mendable = ["c" if i in (5, 6) else "" for i in range(32)]
    assert sorted(row for row, _ in choose(responses, mendable, 8, lambda prompt: True, ("k", 0))) == [5, 6]


def test_the_share_is_of_the_rounds_prompts() -> None:
    assert [groups(grape.GRAPEParams(revise=share), 16) for share in (0.0, 0.25, 0.5, 0.9)] == [0, 4, 8, 14]
    with pytest.raises(ValueError, match="less than 1"):
        grape.GRAPEParams(revise=1.0)
    with pytest.raises(ValueError, match="advantage must be mean"):
        grape.GRAPEParams(revision="distil", advantage="mean_std")


@pytest.mark.parametrize("revision", ["second_turn", "distil"])
def test_fresh_answers_are_credited_among_themselves(revision: str) -> None:
    """Better revisions must not push every fresh answer below the mean."""
    drawn = sampler(0.5, revision=revision).round(0)
    batch = drawn.rollouts(tiny.chat(), SAMPLING)
    given = grape.credit(drawn.scores, batch, grape.GRAPEParams(revise=0.5, revision=revision), {})
    plain = slice(0, drawn.plain)
    value = drawn.scores.score[plain, 0]
    expected = group_advantage(value, torch.ones_like(value).bool(), batch.group[plain])
    torch.testing.assert_close(given.advantage[plain, 0], expected)
    assert drawn.plain == 16 and bool(given.keep[plain].all())


def test_the_second_turn_compares_revisions_with_each_other() -> None:
    drawn = sampler(0.5).round(0)
    batch = drawn.rollouts(tiny.chat(), SAMPLING)
    given = grape.credit(drawn.scores, batch, grape.GRAPEParams(revise=0.5), {})
    assert bool(given.keep.all())
    value = drawn.scores.score[16:, 0].reshape(4, 4)
    torch.testing.assert_close(given.advantage[16:, 0].reshape(4, 4), value - value.mean(1, keepdim=True))
    torch.testing.assert_close(given.advantage[16:, 0].reshape(4, 4).sum(1), torch.zeros(4), atol=1e-6, rtol=0)


def distilling(fresh: list[float], revised: list[float], margin: float = 0.0, confidence: list[float] | None = None) -> Any:
    """One group of fresh answers and one of revisions of its first one."""
    n, values = len(fresh), torch.tensor([[v] for v in fresh + revised])
    ones = torch.ones_like(values)
    sure = ones if confidence is None else torch.tensor(confidence).unsqueeze(1)
    mask = torch.ones(2 * n, 2, dtype=torch.bool)
    from tests.laws.test_grape import batch as plain

    rows = plain(2 * n, [0] * n + [1] * n).with_(mask=mask, revises=torch.tensor([-1] * n + [0] * n))
    params = grape.GRAPEParams(revise=0.5, revision="distil", revision_margin=margin)
    return grape.credit(Scores(("any/it",), values, sure, ones.bool(), ones), rows, params, {})


def test_only_revisions_better_than_the_best_fresh_answer_are_distilled() -> None:
    given = distilling([0.2, 0.4], [0.9, 0.3])
    assert given.keep.tolist() == [True, True, True, False]
    assert given.advantage[:3, 0].tolist() == pytest.approx([-0.1, 0.1, 0.6])  # 0.9 - mean(0.2, 0.4)
    assert float(given.metrics["revision/accepted"][0]) == 1 and float(given.metrics["revision/accepted"][1]) == 2
    assert distilling([0.2, 0.4], [0.4, 0.4]).keep.tolist() == [True, True, False, False]
    assert distilling([0.2, 0.4], [0.6, 0.5], margin=0.15).keep.tolist() == [True, True, True, False]


def test_an_answer_and_its_revision_are_measured_by_one_yardstick() -> None:
    """With confidences of its own group, the same scores would be another reward, and no better answer could be accepted."""
    s = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    c = torch.tensor([[0.5, 1.0], [0.5, 1.0], [1.0, 0.1], [1.0, 0.1]])
    from tests.laws.test_grape import batch as plain

    rows = plain(4, [0, 0, 1, 1]).with_(revises=torch.tensor([-1, -1, 0, 0]))
    given = Scores(("c/a", "c/b"), s, c, torch.ones_like(s).bool(), torch.ones_like(s))
    value = grape.weigh(given, rows, grape.GRAPEParams(revision="distil"), {})[0]
    assert value.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0])
    assert grape.credit(given, rows, grape.GRAPEParams(revision="distil"), {}).keep.tolist() == [True, True, False, False]
    apart = grape.weigh(given, rows, grape.GRAPEParams(), {})[0]
    assert apart[2].item() == pytest.approx(1 / 1.1)


def test_distilled_rows_learn_the_plain_prompt() -> None:
    """The critique is gone from what is learned; the ratio is to the policy without it."""
    drawn = sampler(0.5, revision="distil").round(0)
    assert all(len(r.prompt.messages) == 1 for r in drawn.responses) and drawn.revises is not None
    for row in range(16, 32):
        assert drawn.responses[row].prompt is drawn.responses[drawn.revises[row]].prompt
    # What the sampler said was of the critique's answers, which a mismatch is not measured by.
    known = drawn.rollouts(tiny.chat(), SAMPLING).logp_sampler.isfinite()
    assert bool(known[:16].all()) and [r.logp is None for r in drawn.responses] == [False] * 16 + [True] * 16
    given = round_of(grape.GRAPEParams(revise=0.5, revision="distil", epochs=2))
    assert given.batch is not None and given.batch.get("logp_old") is not None


def test_the_curves_are_of_plain_prompts() -> None:
    without = round_of(grape.GRAPEParams(), said=None, how=replace(SAMPLING, prompts=6))
    given = round_of(grape.GRAPEParams(revise=0.25))
    curves = ("grape/reward", "rubric/any/it/weight", "rubric/any/it/spread", "rewards/any/it/mean", "reward")
    for name in (*curves, "completions/mean_length"):
        assert given.metrics[name] == without.metrics[name]
    assert given.metrics["num_tokens"][0] > without.metrics["num_tokens"][0]


def test_any_online_algorithm_can_revise() -> None:
    given = round_of(grpo.GRPOParams(revise=0.25), algorithm=grpo)
    assert given.batch is not None and given.batch.rows == 32 and given.metrics["revision/share"] == (0.25, 1.0)
    with pytest.raises(ValueError, match="critique"):
        round_of(grpo.GRPOParams(revise=0.25), said=None, algorithm=grpo)


@pytest.mark.parametrize("module", [grape, grpo])
def test_no_gradient_runs_through_a_judge(module: Any) -> None:
    def learned(responses: Sequence[Response]) -> Scores:
        given = score(responses)
        return replace(given, score=given.score.requires_grad_(), confidence=given.confidence.clone().requires_grad_())

    given = round_of(module.ALGORITHM.params(), judge=learned, algorithm=module)
    assert given.batch is not None and not given.batch.advantage.requires_grad


def test_a_prompt_drawn_twice_has_two_revision_prompts() -> None:
    x = Prompt("x", "any", ({"role": "user", "content": "a"},))
    assert ask(Response(x, 0, (1,), "b", True), "c", 3).id != ask(Response(x, 0, (1,), "b", True), "c", 7).id


def test_answers_to_plain_prompts_are_told_of_and_revisions_are_not() -> None:
    """A revision is judged as an answer to the question itself, so that asking about it as it was written would be for nothing."""
    told: list[Response] = []

    @contextmanager
    def ahead() -> Iterator[Callable[[Response], None]]:
        yield told.append

    drawn = replace(sampler(0.5), ahead=ahead).round(0)
    assert 0 < drawn.plain < len(drawn.responses) and drawn.revises is not None and max(drawn.revises) >= 0
    first = sorted(told, key=lambda one: (one.prompt.id, one.index))
    count = SAMPLING.prompts // 2 * SAMPLING.samples
    assert first == sorted(drawn.responses[:count], key=lambda one: (one.prompt.id, one.index))
