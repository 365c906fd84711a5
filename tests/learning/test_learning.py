"""Every online algorithm raises a reward it is given, on a tiny model, by more than luck: a broken sign, mask or baseline fails."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from grape.algorithms import ALGORITHMS, grpo, reinforce
from grape.models.forward import language
from grape.sampling import sample
from grape.training.adam import Adam, AdamParams
from grape.training.batches import Rollout, online
from grape.training.loop import train
from grape.types import Prompt, Response, Scores
from tests import tiny

PROMPTS = [tiny.prompt(text) for text in ("a", "b", "c", "d")]
VARIANTS: dict[str, tuple[Any, Any]] = {
    "reinforce": (reinforce, reinforce.ReinforceParams()),
    "reinforce-group": (reinforce, reinforce.ReinforceParams(baseline="group")),
    "reinforce-moving": (reinforce, reinforce.ReinforceParams(baseline="moving")),
    "grpo": (grpo, grpo.GRPOParams()),
    "grpo-epochs": (grpo, grpo.GRPOParams(epochs=2, mini_batches=2, beta=0.01)),
    "grpo-dapo": (grpo, grpo.GRPOParams(aggregation="dapo", clip_high=0.28)),
    "grpo-dr": (grpo, grpo.GRPOParams(aggregation="dr_grpo", advantage="mean", length=4)),
}


def value(response: Response) -> float:
    """1 for an answer that is the prompt and ends: needs the right prompt, the right token and EOS. A start on it gets a fifth."""
    return 0.8 * (response.finished and response.text == response.prompt.text) + 0.2 * response.text.startswith(
        response.prompt.text
    )


def score(responses: list[Response]) -> Scores:
    values = torch.tensor([[value(r)] for r in responses])
    ones = torch.ones_like(values)
    return Scores(("any/it",), values, ones, ones.bool(), ones)


def start() -> Any:
    """A model as noisy SFT leaves it: it knows the right answer, and gives it about a third of the time."""
    model, tokenizer = tiny.model(seed=2), tiny.tokenizer()
    from grape.algorithms import sft
    from grape.models.encode import encode_chat
    from grape.training.batches import offline

    rows = [
        encode_chat(tokenizer, p.messages, text)
        for p in PROMPTS
        for text in (p.text, p.text, p.text, "a", "b", "cd", "dc", "ab")
    ]
    source = offline(rows, 0, 32, ("warm",), torch.device("cpu"))
    train(
        model,
        sft.ALGORITHM,
        sft.ALGORITHM.params(),
        source,
        language,
        Adam(model, AdamParams(3e-3, 120)),
        steps=120,
        track=lambda *_: None,
    )
    return model


def measured(model: Any, prompts: list[Prompt]) -> float:
    responses = sample(
        model, tiny.tokenizer(), prompts, 64, temperature=1.0, max_new_tokens=4, positions=64, keys=("held out",)
    )
    return sum(map(value, responses)) / len(responses)


def test_every_slotted_algorithm_has_a_learning_test() -> None:
    assert {name.split("-")[0] for name in VARIANTS} == set(ALGORITHMS)


@pytest.mark.parametrize("name", VARIANTS)
def test_reward_rises(name: str) -> None:
    module, params = VARIANTS[name]
    model = start()
    before = measured(model, PROMPTS)
    rollout = Rollout(4, 16, 1.0, 4, 64, 4096, 0.0)
    source = online(model, tiny.model(), tiny.tokenizer(), PROMPTS, score, module.ALGORITHM, params, rollout, (name,))
    adam = Adam(model, AdamParams(1e-3, 60))
    train(
        model,
        module.ALGORITHM,
        params,
        source,
        partial(language, temperature=1.0),
        adam,
        steps=60,
        track=lambda *_: None,
    )
    after = measured(model, PROMPTS)
    assert before < 0.5 and after > before + 0.35, f"{before:.2f} -> {after:.2f}"
