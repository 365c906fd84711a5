"""Who judges: the reward source that training sees, and the gold judge that only evaluation sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from grape.models import micro
from grape.reward.critics.judge import load_critic
from grape.reward.learned import LearnedReward
from grape.reward.rubric import load_rubrics
from grape.reward.source import RewardSource, RubricReward
from grape.sandbox.tiers import tier
from grape.stages.modules import load_module
from grape.stages.stage import Stage
from grape.types import Prompt

# Verifiers that run what a model has written; how well they are shut in goes into the receipt.
SANDBOXED = frozenset({"python_tests", "math", "reasoning_gym"})

Gold = Callable[[Prompt, str], float]


def gold_judge(stage: Stage) -> Gold | None:
    """`gold` of the world's file, or of gold.py beside the user's own data; None where there is none."""
    source = stage.path(stage.params.prepare.source)
    path = source if source.suffix == ".py" else source / "gold.py"
    return getattr(load_module(path), "gold", None) if path.is_file() else None


def reward_source(stage: Stage, prompts: Sequence[Prompt], file: str | None = None, which: str | None = None) -> RewardSource:
    """The source `which` names (rubric, reward_model; None: what rl.reward says), checked against the prompts, lines of `file`."""
    how = (stage.params.model.dtype, micro.fixed())
    template, weights = stage.params.model.template, stage.params.model.weights
    if (which or stage.params.rl.reward) == "reward_model":
        return LearnedReward(Path(stage.model("models/reward")), *how, template, weights)
    rubrics = load_rubrics(stage.path("rubrics"))
    kinds = {item.kind for rubric in rubrics.values() for item in rubric.items}
    critic = None
    if "critic" in kinds:
        critic = load_critic(Path(stage.model("models/critic")), stage.project.root, *how, template, weights)
    learned = LearnedReward(Path(stage.model("models/reward")), *how, template, weights) if "reward_model" in kinds else None
    source = RubricReward(rubrics, critic, learned)
    source.check(prompts, file)
    if any(item.verifier in SANDBOXED for rubric in rubrics.values() for item in rubric.items):
        stage.run.tag({f"grape.sandbox.{name}": str(value) for name, value in tier().receipt().items()})
    return source
