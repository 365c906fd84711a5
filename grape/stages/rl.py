"""rl: any algorithm of the slot, from the SFT policy, on the training prompts."""

from __future__ import annotations

from functools import partial

from grape.algorithms import ALGORITHMS
from grape.artifacts import read_prompts, write_jsonl
from grape.errors import GrapeError
from grape.models.forward import language
from grape.models.load import device, load_language_model, save_model
from grape.progress import Progress
from grape.stages import Stage
from grape.stages.judges import reward_source
from grape.training.adam import Adam, AdamParams
from grape.training.batches import Rollout, online
from grape.training.loop import train
from grape.types import Metrics, Prompt


def run(stage: Stage) -> None:
    assert stage.algorithm is not None
    params = stage.params.rl
    algorithm, knobs = ALGORITHMS[stage.algorithm], stage.params.algorithm(stage.algorithm)
    stage.datasets("data/prompts", "rubrics")
    prompts = read_prompts(stage.root / "data/prompts/train.jsonl")
    refuse(stage, prompts)
    score = reward_source(stage, prompts)
    policy, tokenizer = load_language_model(str(stage.root / "models/sft"))
    policy.to(device())
    needs = algorithm.needs(knobs)
    reference = (
        load_language_model(str(stage.root / "models/sft"))[0].to(device())
        if "reference" in needs or params.kl_every
        else None
    )
    rollout = Rollout(
        params.prompts,
        params.samples,
        params.temperature,
        params.max_new_tokens,
        stage.params.model.positions,
        stage.params.model.micro_batch_tokens,
        params.max_missing,
        params.kl_every,
        stage.params.model.dtype,
    )
    keys = (stage.params.seed, stage.name)
    source = online(policy, reference, tokenizer, prompts, score, algorithm, knobs, rollout, keys)
    adam = Adam(
        policy,
        AdamParams(
            params.learning_rate,
            params.steps,
            params.warmup_steps,
            params.schedule,
            params.weight_decay,
            params.max_grad_norm,
            stage.params.model.micro_batch_tokens,
        ),
    )
    progress = Progress(stage.name, params.steps)

    def track(step: int, metrics: Metrics) -> None:
        stage.run.track(step, metrics)
        progress(step, metrics)

    forward = partial(language, temperature=params.temperature, dtype=stage.params.model.dtype)
    history = train(
        policy,
        algorithm,
        knobs,
        source,
        forward,
        adam,
        steps=params.steps,
        track=track,
        checkpoints=stage.checkpoints(params.checkpoint_every),
        keys=keys,
    )
    write_jsonl(stage.history(), history)
    folder = f"models/policy/{stage.policy}"
    save_model(policy, tokenizer, stage.root / folder)
    stage.run.model(folder, "policy", register="grape-policy")
    last = history[-10:]
    stage.run.headline(
        {
            name: sum(row[name] for row in last if name in row) / max(sum(name in row for row in last), 1)
            for name in ("reward", "kl", "entropy", "completions/mean_length")
            if any(name in row for row in last)
        }
    )


def refuse(stage: Stage, prompts: list[Prompt]) -> None:
    """What cannot work is refused before any model loads.

    Raises:
        GrapeError: fewer prompts than a round needs, or groups too small for the algorithm.
    """
    params = stage.params.rl
    if params.prompts > len(prompts):
        raise GrapeError(
            f"a round takes {params.prompts} prompts, but data/prompts has {len(prompts)}",
            where="params.yaml, rl.prompts",
            mend="lower rl.prompts or raise prepare.prompts",
        )
    knobs = stage.params.algorithm(str(stage.algorithm))
    mini_batches = getattr(knobs, "mini_batches", 1)
    if mini_batches > params.prompts:
        raise GrapeError(
            f"{mini_batches} mini-batches of {params.prompts} groups",
            where=f"params.yaml, algorithms.{stage.algorithm}.mini_batches",
            mend="lower mini_batches or raise rl.prompts; groups stay together",
        )
    relative = (
        getattr(knobs, "baseline", None) in ("group", "leave_one_out") or getattr(knobs, "advantage", None) is not None
    )
    if relative and params.samples < 2:
        raise GrapeError(
            f"{stage.algorithm} compares the responses to a prompt with each other and needs at least two of them",
            where="params.yaml, rl.samples",
            mend="set rl.samples to 2 or more",
        )
