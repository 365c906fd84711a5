"""Every algorithm raises a reward it is given, on a tiny model, by more than luck: a broken sign, mask or baseline fails."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch

from grape.algorithms import ALGORITHMS, dpo, grape, grpo, ppo, reinforce, rejection, sft, trpo
from grape.algorithms.base import OnlineParams, ValueParams
from grape.models.forward import language
from grape.models.load import load_language_model, save_model
from grape.models.lora import LoRA, adapt, save_adapter
from grape.sampling import sample
from grape.training.adam import Adam, AdamParams
from grape.training.assemble import assemble
from grape.training.batches import offline
from grape.training.loop import train
from grape.training.reference import reference_logp
from grape.training.sampler import Sampling
from grape.types import Prompt, Response, Scores
from tests import tiny

PROMPTS = [tiny.prompt(text) for text in ("a", "b", "c", "d")]
ROUNDS, RATE = 60, 1e-3
SAMPLING = Sampling(4, 16, 1.0, 4, 64, 4096, 0.0)
# What differs from that: a step of a trust region is longer; pairs that are given are learned by heart at higher rates; where the
# values' head shares the policy's trunk one run in twelve ends below its start at the common rate, and none at half of it.
OWN_ROUNDS = {"trpo": 30}
MARGIN = 0.35
OWN_MARGIN = {"dpo": 0.2}  # the margin grows while both likelihoods fall: 2305.18290's own weakness, docs/dpo.md
OWN_RATE = {"dpo": 2e-4, "dpo-ipo": 2e-4, "dpo-hinge": 2e-4, "ppo-head": 5e-4}
VARIANTS: dict[str, tuple[Any, Any]] = {
    "rejection": (rejection, rejection.RejectionParams()),
    "rejection-threshold": (rejection, rejection.RejectionParams(keep=16, threshold=0.9, epochs=2)),
    "reinforce": (reinforce, reinforce.ReinforceParams()),
    "reinforce-group": (reinforce, reinforce.ReinforceParams(baseline="group")),
    "reinforce-moving": (reinforce, reinforce.ReinforceParams(baseline="moving")),
    "trpo": (trpo, trpo.TRPOParams()),
    "ppo": (ppo, ppo.PPOParams(value_init="policy")),
    "ppo-head": (ppo, ppo.PPOParams(value="head", truncated="bootstrap", whiten=False, entropy=0.001)),
    "ppo-penalty": (ppo, ppo.PPOParams(value_init="policy", objective="penalty")),
    "grpo": (grpo, grpo.GRPOParams()),
    "grpo-epochs": (grpo, grpo.GRPOParams(epochs=2, mini_batches=2, beta=0.01)),
    "grpo-dapo": (grpo, grpo.GRPOParams(aggregation="dapo", clip_high=0.28, zero_variance="drop", resample=2)),
    "grpo-dr": (grpo, grpo.GRPOParams(aggregation="dr_grpo", advantage="none")),
    "grpo-gspo": (grpo, grpo.GRPOParams(objective="gspo", epochs=2, overlong="mask")),
    "grpo-cispo": (grpo, grpo.GRPOParams(objective="cispo", aggregation="bnpo", epochs=2, overlong="penalty")),
    "grape": (grape, grape.GRAPEParams()),
    "grape-ema": (grape, grape.GRAPEParams(scope="ema", advantage="leave_one_out", epochs=2)),
    "grape-revise": (grape, grape.GRAPEParams(revise=0.25)),
    "grape-distil": (grape, grape.GRAPEParams(revise=0.25, revision="distil")),
    "grape-per-item": (grape, grape.GRAPEParams(advantage="per_item", aggregation="grpo")),
    "dpo": (dpo, dpo.DPOParams()),
    "dpo-ipo": (dpo, dpo.DPOParams(loss="ipo")),
    "dpo-hinge": (dpo, dpo.DPOParams(loss="hinge", sft=0.1)),
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


def critique(responses: list[Response], scores: Scores) -> list[str]:
    """Says that it is wrong, not what is right."""
    return ["z" if value < 0.5 else "" for value in scores.score[:, 0].tolist()]


def start(steps: int = 120) -> Any:
    """A model as noisy SFT leaves it: it knows the right answer, and gives it about a third of the time."""
    model = tiny.model(seed=2)
    model.load_state_dict(started(steps))
    return model


@cache
def started(steps: int) -> Any:
    """Its weights."""
    model = tiny.model(seed=2)
    rows = [tiny.answered(p, text) for p in PROMPTS for text in (p.text, p.text, p.text, "a", "b", "cd", "dc", "ab")]
    source = offline(rows, 0, 32, ("warm",), torch.device("cpu"))
    adam = Adam(model, AdamParams(3e-3, steps))
    train(model, sft.ALGORITHM, sft.ALGORITHM.params(), source, partial(language, model), adam, steps=steps, track=lambda *_: None)
    return model.state_dict()


def pairs(model: Any) -> list[Any]:
    """The model's own answers, the best of sixteen against the worst."""
    responses = sample(model, tiny.chat(), PROMPTS * 16, 16, temperature=1.0, max_new_tokens=4, positions=64, keys=("pairs",))
    rows = []
    for i in range(0, len(responses), 16):
        group = sorted((r for r in responses[i : i + 16] if r.finished), key=value)
        if value(group[-1]) > value(group[0]):
            rows += [tiny.answered(r.prompt, r.text) for r in (group[-1], group[0])]
    return rows


def learn(name: str, model: Any, folder: Any, rounds: int = 0) -> list[dict[str, float]]:
    """The algorithm as the rl stage runs it."""
    rounds, rate = rounds or OWN_ROUNDS.get(name, ROUNDS), OWN_RATE.get(name, RATE)
    module, params = VARIANTS[name]
    reference = tiny.model()
    reference.load_state_dict(model.state_dict())
    own = tiny.scalar_model(model) if isinstance(params, ValueParams) and params.value == "model" else None
    learner = assemble(module.ALGORITHM, params, model, AdamParams(rate, rounds, micro_batch_tokens=4096), value_model=own)
    if isinstance(params, OnlineParams):
        source = learner.rollouts(tiny.chat(), PROMPTS, score, SAMPLING, (name,), reference, critique)
    else:
        rows = pairs(model)
        logp = reference_logp(reference, "it", rows, 0, folder, 4096)
        source = offline(rows, 0, 16, (name,), torch.device("cpu"), 2, {"logp_ref": logp})
    return learner.train(source, rounds, lambda *_: None)


def measured(model: Any, prompts: list[Prompt]) -> float:
    responses = sample(model, tiny.chat(), prompts, 64, temperature=1.0, max_new_tokens=4, positions=64, keys=("held out",))
    return sum(map(value, responses)) / len(responses)


def test_every_slotted_algorithm_has_a_learning_test() -> None:
    assert {name.split("-")[0] for name in VARIANTS.keys() - PINNED_ALONE} == set(ALGORITHMS) and PINNED_ALONE < VARIANTS.keys()


# Variants whose equation the oracles of tests/laws and the pinned trajectories check; others of their algorithm learn here.
PINNED_ALONE = {"reinforce-moving", "reinforce-group", "rejection-threshold", "grpo-gspo", "grpo-cispo", "grpo-dr", "dpo-hinge"}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in PINNED_ALONE])
def test_reward_rises(name: str, tmp_path: Any) -> None:
    model = start()
    before = measured(model, PROMPTS)
    learn(name, model, tmp_path)
    after = measured(model, PROMPTS)
    assert before < 0.5 and after > before + OWN_MARGIN.get(name, MARGIN), f"{before:.2f} -> {after:.2f}"


def test_reward_rises_with_adapters_alone(tmp_path: Any) -> None:
    """Nothing but the low-rank parts moves, and the model that is loaded again, merged, is the trained one."""
    model = start()
    before = measured(model, PROMPTS)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    save_model(model, tiny.tokenizer(), tmp_path / "models/sft")
    adapt(model, LoRA(rank=4), 0)
    assert measured(model, PROMPTS) == before
    module, params = VARIANTS["grpo"]
    learner = assemble(module.ALGORITHM, params, model, AdamParams(1e-2, ROUNDS, micro_batch_tokens=4096))
    learner.train(learner.rollouts(tiny.chat(), PROMPTS, score, SAMPLING, ("grpo",)), ROUNDS, lambda *_: None)
    after = measured(model, PROMPTS)
    save_adapter(model, tiny.tokenizer(), tmp_path / "models/policy/it", "models/sft")
    merged = load_language_model(str(tmp_path / "models/policy/it"))[0]
    assert measured(merged, PROMPTS) == pytest.approx(after, abs=0.01) and after > before + 0.3
    moved = {key for key, value in merged.state_dict().items() if not torch.equal(value, plain[key])}
    assert moved and not any("embed" in key or "norm" in key for key in moved)


@pytest.mark.parametrize("name", ["trpo", "grape"])
def test_the_same_seed_gives_the_same_bits(name: str, tmp_path: Any) -> None:
    runs = []
    for i in range(2):
        model = start()
        history = learn(name, model, tmp_path / str(i), rounds=4)
        rows = [{k: v for k, v in row.items() if k != "step_time"} for row in history]
        runs.append((rows, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
