"""The critic's calibration and verdict; the learned reward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grape.errors import GrapeError
from grape.models.chat import Chat
from grape.models.load import load_scalar_model, save_model
from grape.reward.critics.calibration import Calibration, expected_calibration_error, fit_calibration
from grape.reward.critics.logits import trained_critic, verdict_tokens
from grape.reward.learned import STATISTICS, LearnedReward
from grape.reward.verdict import Question
from grape.types import Response
from tests import tiny


def overconfident(n: int = 4000, slope: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-odds that are `slope` times too large, and labels from the true ones."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(n, generator=generator) * 2
    label = (torch.rand(n, generator=generator) < torch.sigmoid(true)).long()
    return slope * true, label


def test_calibration_recovers_a_known_temperature_and_mends_the_ece() -> None:
    z, label = overconfident()
    calibration = fit_calibration(["a/b"] * len(z), z, label)
    slope, offset = calibration.items["a/b"]
    assert 1 / slope == pytest.approx(3.0, rel=0.1) and abs(offset) < 0.1
    before, after = (
        expected_calibration_error(torch.sigmoid(z), label),
        expected_calibration_error(calibration.apply(["a/b"] * len(z), z), label),
    )
    assert before > 0.1 and after < before / 4


def test_calibration_keeps_the_order_and_falls_back_for_items_with_few_labels() -> None:
    z, label = overconfident(400)
    calibration = fit_calibration(["a/many"] * 390 + ["a/few"] * 10, z, label)
    assert set(calibration.items) == {"", "a/many"}
    p = calibration.apply(["a/few"] * 400, z)
    assert torch.equal(torch.argsort(p), torch.argsort(z))


@pytest.mark.parametrize("labels", [torch.ones(60), torch.zeros(60)])
def test_labels_of_one_kind_leave_the_critic_as_it_is(labels: torch.Tensor) -> None:
    z = torch.randn(60, generator=torch.Generator().manual_seed(1))
    calibration = fit_calibration(["a/b"] * 60, z, labels)
    torch.testing.assert_close(calibration.apply(["a/b"] * 60, z), torch.sigmoid(z))


def test_a_perfectly_calibrated_judge_has_a_small_ece() -> None:
    z, label = overconfident(4000, slope=1.0)
    assert expected_calibration_error(torch.sigmoid(z), label) < 0.03
    assert expected_calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([0, 0])) == 1


def test_the_verdict_is_read_from_the_first_token_that_differs() -> None:
    tokenizer = tiny.tokenizer()
    prefix, yes, no = verdict_tokens(Chat(tokenizer))
    assert prefix == [] and tokenizer.decode([yes]) == "y" and tokenizer.decode([no]) == "n"
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content'] + eos_token", "'> ' + m['content'] + eos_token")
    prefix, yes, no = verdict_tokens(Chat(tokenizer))
    assert tokenizer.decode(prefix) == "> " and tokenizer.decode([yes]) == "y"


def test_the_critic_gives_the_models_log_odds() -> None:
    model, chat = tiny.model(), tiny.chat()
    critic = trained_critic(model, chat, Calibration({}))
    asked = [Question(text, "", "", template="{question}") for text in ("is it?", "a longer question, is it?", "x" * 100)]
    z = critic.judge(["a/b"] * 3, asked).evidence
    ids = chat.prompt([{"role": "user", "content": "is it?"}])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    _, yes, no = verdict_tokens(chat)
    torch.testing.assert_close(z[0], logits[yes] - logits[no], rtol=1e-4, atol=1e-4)
    assert bool(torch.isnan(z[2])), "too long for 64 positions: missing, not 0"
    verdicts = critic.judge(["a/b"] * 2, [asked[0], asked[0]])
    score, confidence = verdicts.score, verdicts.confidence
    assert score[0] == score[1] == pytest.approx(float(torch.sigmoid(z[0]))) and confidence[0] == max(score[0], 1 - score[0])


def test_a_damaged_calibration_is_named(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(GrapeError, match="calibration"):
        Calibration.read(tmp_path)


def said(text: str, index: int = 0) -> Response:
    prompt = tiny.prompt("q")
    return Response(prompt, index, tuple(tiny.answered(prompt, text).response), text, True)


@pytest.fixture
def reward_folder(tmp_path: Path) -> Path:
    save_model(tiny.model("qwen3"), tiny.tokenizer(), tmp_path / "sft")
    model, tokenizer = load_scalar_model(str(tmp_path / "sft"), from_language_model=True)
    assert float(model.score.weight.detach().abs().max()) == 0
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    save_model(model, tokenizer, tmp_path / "reward")
    (tmp_path / "reward" / STATISTICS).write_text(json.dumps({"mean": 0.5, "std": 2.0}))
    return tmp_path / "reward"


def test_the_learned_reward_is_standardised_and_reads_the_last_real_token(reward_folder: Path) -> None:
    reward = LearnedReward(reward_folder)
    texts = ["yes", "a longer answer", "x" * 100]
    scores = reward([said(text, i) for i, text in enumerate(texts)])
    assert scores.valid[:, 0].tolist() == [True, True, False] and scores.items == ("reward_model/score",)
    prompt, ids, _ = tiny.answered(tiny.prompt("q"), "yes")
    with torch.no_grad():
        hidden = reward.members[0].model.base_model(torch.tensor([prompt + ids])).last_hidden_state[0, -1]
        expected = (reward.members[0].model.score(hidden) - 0.5) / 2.0
    torch.testing.assert_close(scores.score[0], expected, rtol=1e-4, atol=1e-4)


def test_a_truncated_answer_is_scored_without_the_eos_it_lacks(reward_folder: Path) -> None:
    reward = LearnedReward(reward_folder)
    whole, cut = said("yes"), said("yes")
    cut = replace(cut, ids=cut.ids[:-1], finished=False)
    scores = reward([whole, cut, replace(cut, finished=True)]).score[:, 0].tolist()
    assert scores[1] == pytest.approx(scores[2]) != pytest.approx(scores[0]), "the tokens that were sampled alone count"


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(tiny.model(), tiny.tokenizer(), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert "model.safetensors" in files and not (tmp_path / "one.partial").exists()
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
