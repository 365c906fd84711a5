"""What cannot work in the rl stage is refused before any model loads, with the key or stage that mends it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AutoConfig, AutoTokenizer

from grape.algorithms.base import AnyAlgorithm, OnlineParams, SlotParams, TrustRegionParams, ValueParams
from grape.errors import GrapeError
from grape.models.folder import chain
from grape.needed import made
from grape.reward.learned import statistics
from grape.stages.engines import refuse_engine
from grape.stages.stage import Stage
from grape.training.assemble import needed
from grape.training.revision import groups
from grape.types import Prompt


def refuse(stage: Stage, algorithm: AnyAlgorithm, knobs: SlotParams, prompts: Sequence[Prompt]) -> None:
    """
    Raises:
        GrapeError: what the algorithm needs is not there, or its knobs do not fit the round.
    """
    needs = algorithm.wants(knobs)
    if algorithm.data == "rollouts":
        online = needed(knobs, OnlineParams, "learns from rollouts")
        refuse_engine(stage)
        check_round(stage, algorithm, online, len(prompts))
        if (online.reward or stage.params.rl.reward) == "reward_model":
            _there(stage, "models/reward", "reward", f"algorithms.{stage.algorithm}.reward" if online.reward else "rl.reward")
            statistics(stage.path("models/reward"))
    else:
        _there(stage, "data/preferences/train.jsonl", "preferences", f"algorithm {stage.algorithm}")
    learned = "value" in needs and needed(knobs, ValueParams, "needs a value model").from_reward_model
    if learned:
        _there(stage, "models/reward", "reward", f"algorithms.{stage.algorithm}.value_init")
    if algorithm.update == "natural_gradient":
        _trust_region(stage, needed(knobs, TrustRegionParams, "asks for the natural gradient"))
    _tokenizers(stage, learned)


def _key(stage: Stage, name: str) -> str:
    return f"params.yaml, algorithms.{stage.algorithm}.{name}"


def check_round(stage: Stage, algorithm: AnyAlgorithm, knobs: OnlineParams, count: int) -> None:
    """Raises GrapeError if rounds of these `count` prompts cannot be made."""
    params = stage.params.rl
    rounds = knobs.rounds or params.steps
    if params.steps % rounds:
        raise GrapeError(
            f"{params.steps} steps cannot be spread evenly over {rounds} rounds",
            where=_key(stage, "rounds"),
            mend=f"take a divisor of rl.steps = {params.steps}",
        )
    prompts = params.prompts * params.steps // rounds
    if prompts > count:
        raise GrapeError(
            f"a round takes {prompts} prompts, but there are {count} in data/prompts/train.jsonl that fit",
            where="params.yaml, rl.prompts" if rounds == params.steps else _key(stage, "rounds"),
            mend="lower rl.prompts, take more rounds, or raise prepare.prompts",
        )
    if prompts % knobs.mini_batches:
        raise GrapeError(
            f"{knobs.mini_batches} mini-batches of {prompts} groups do not come out even",
            where=_key(stage, "mini_batches"),
            mend=f"take a divisor of {prompts}; groups stay together",
        )
    if knobs.revise:
        _revisions(stage, knobs, prompts)
    if "group" in algorithm.needs(knobs) and params.samples < 2:
        raise GrapeError(
            f"{stage.algorithm} compares the responses to a prompt with each other and needs at least two of them",
            where="params.yaml, rl.samples",
            mend="set rl.samples to 2 or more",
        )


def _revisions(stage: Stage, knobs: OnlineParams, prompts: int) -> None:
    if (knobs.reward or stage.params.rl.reward) != "rubric":
        raise GrapeError(
            "a revision is asked for by the rubric's items, and the reward is not the rubric",
            where=_key(stage, "revise"),
            mend="set it to 0, or the reward (rl.reward, or the algorithm's own) to rubric",
        )
    if not 0 < groups(knobs, prompts) < prompts:
        raise GrapeError(
            f"{knobs.revise:g} of {prompts} prompts is {groups(knobs, prompts)}: a round needs plain prompts and revisions",
            where=_key(stage, "revise"),
            mend=f"take a share from {1 / prompts:g} to {1 - 1 / prompts:g}",
        )


def _there(stage: Stage, path: str, maker: str, why: str) -> None:
    if not made(stage.path(path)).exists():
        raise GrapeError(f"{path} is missing, and {why} needs it", where=f"stage {stage.name}", mend=f"grape run {maker}")


def _trust_region(stage: Stage, knobs: TrustRegionParams) -> None:
    which, rank = knobs.parameters, stage.params.model.lora.rank
    if (which == "adapters") != (rank > 0):
        raise GrapeError(
            "with LoRA adapters only those can move" if rank else "there are no adapters to move",
            where=_key(stage, "parameters"),
            mend=f"set it to adapters, or model.lora.rank to 0 (it is {rank})" if rank else "set model.lora.rank above 0",
        )


def _tokenizers(stage: Stage, value_model: bool) -> None:
    """The policy's tokenizer against its weights, and against the reward model's where that reads the policy's token ids."""
    policy = _vocabulary(stage, "models/sft")
    found = chain(str(stage.path("models/sft")))
    size = AutoConfig.from_pretrained(found.source, revision=found.revision).get_text_config().vocab_size
    if max(policy.values()) >= size:
        raise GrapeError(
            f"the tokenizer has ids up to {max(policy.values())}, the model knows {size}",
            where="models/sft",
            mend="run the stage that makes it again: grape run sft",
        )
    if value_model and _vocabulary(stage, "models/reward") != policy:
        raise GrapeError(
            "the reward model has another tokenizer than the policy, so it cannot become its value model",
            where=_key(stage, "value_init"),
            mend="set it to policy, or run the reward stage again: grape run reward",
        )


def _vocabulary(stage: Stage, name: str) -> dict[str, int]:
    folder, revision = chain(stage.model(name)).tokenizer
    try:
        found: dict[str, int] = AutoTokenizer.from_pretrained(folder, revision=revision).get_vocab()
    except Exception as error:  # transformers raises its own kinds for what is missing or damaged
        raise GrapeError(
            f"its tokenizer cannot be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=folder,
            mend="delete the folder and run again",
        ) from error
    return found
