"""One reward model, and an ensemble of several: the mean of what they say, and how far they agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from grape.errors import GrapeError
from grape.models.encode import collate
from grape.models.forward import batched_scores
from grape.models.load import load_scalar_model
from grape.reward.learned import MEMBERS, STATISTICS, LearnedReward, agreement, doubt
from grape.reward.rubric import Item, Rubric
from grape.reward.source import RubricReward
from grape.sampling import response_rows
from grape.types import Response
from tests import tiny

EOS = tiny.tokenizer().eos_token_id
RESPONSES = [Response(tiny.prompt("abc"), i, (*ids, EOS), "a", True) for i, ids in enumerate([(5,), (6, 5), (5, 6, 7), (7,)])]


def saved(folder: Path, seed: int, mean: float = 0.25, std: float = 0.5, doubt: float | None = None) -> Path:
    language_model = tiny.model(seed=seed)
    model = tiny.scalar_model(language_model)
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    told = {"mean": mean, "std": std} | ({} if doubt is None else {"doubt": doubt})
    (folder / STATISTICS).write_text(json.dumps(told))
    return folder


def raw(folder: Path) -> torch.Tensor:
    rows = response_rows(tiny.chat(), RESPONSES)
    return batched_scores(load_scalar_model(str(folder))[0], collate(rows, tiny.tokenizer().pad_token_id), 16384)


def test_one_model_is_standardised_and_sure(tmp_path: Path) -> None:
    found = LearnedReward(saved(tmp_path / "reward", 0))(RESPONSES)
    assert torch.equal(found.score[:, 0], (raw(tmp_path / "reward") - 0.25) / 0.5)
    assert torch.equal(found.confidence, torch.ones(4, 1)) and bool(found.valid.all())


def test_members_that_agree_are_as_sure_as_one(tmp_path: Path) -> None:
    """A constant more is no disagreement: preferences leave it free, and each member's mean takes it away."""
    folder = saved(tmp_path / "reward", 0, doubt=2.0)
    alone = LearnedReward(folder)(RESPONSES)
    saved(folder / MEMBERS / "1", 0)
    both = LearnedReward(folder)(RESPONSES)
    assert torch.equal(both.score, alone.score) and torch.equal(both.confidence, torch.ones(4, 1))


def test_members_that_differ_give_their_mean_and_less_confidence(tmp_path: Path) -> None:
    folder = saved(tmp_path / "reward", 0, doubt=2.0)
    other = saved(folder / MEMBERS / "1", 1, mean=-0.5, std=2.0)
    found, r = LearnedReward(folder)(RESPONSES), (raw(folder) - 0.25, raw(other) + 0.5)
    torch.testing.assert_close(found.score[:, 0], (r[0] / 0.5 + r[1] / 2.0) / 2)
    spread = (r[0] - r[1]).abs() / 2**0.5
    torch.testing.assert_close(found.confidence[:, 0], 1 / (1 + torch.pi / 8 * (2.0 * spread) ** 2).sqrt())
    assert bool((found.confidence < 1).all())


def test_a_rubric_item_is_as_sure_as_the_reward_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "reward", 0, doubt=2.0)
    saved(folder / MEMBERS / "1", 1)
    learned = LearnedReward(folder)
    item = Item(id="liked", question="Is it liked?", weight=1, kind="reward_model")
    found = RubricReward({"any": Rubric(version=1, category="any", items=[item])}, reward_model=learned)(RESPONSES)
    torch.testing.assert_close(found.confidence, learned(RESPONSES).confidence)
    torch.testing.assert_close(found.score, torch.sigmoid(learned(RESPONSES).score))


def test_agreement_is_one_without_spread_or_doubt_and_falls_with_both() -> None:
    assert agreement(torch.zeros(2), 3.0).tolist() == [1, 1] and agreement(torch.ones(2), 0.0).tolist() == [1, 1]
    falling = [float(agreement(torch.tensor(s), d)) for s, d in ((0.5, 1.0), (1.0, 1.0), (1.0, 2.0))]
    assert falling == sorted(falling, reverse=True) and falling[1] == pytest.approx((1 + torch.pi / 8) ** -0.5)


def test_doubt_is_what_held_out_pairs_say_of_the_spread() -> None:
    """Where members that differ are wrong half of the time, their spread counts; where they are right all the same, it does not."""
    mean = torch.full((200,), 3.0)
    apart = torch.tensor([2.0, -2.0]).unsqueeze(1) * (torch.arange(200) % 2)
    wrong = torch.where(torch.arange(200) % 4 == 1, -1.0, 1.0)
    assert doubt((mean + apart) * wrong) > 0.5
    assert doubt(mean + apart) == 0


def test_a_doubt_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GrapeError, match="doubt -1"):
        LearnedReward(saved(tmp_path / "reward", 0, doubt=-1.0))
