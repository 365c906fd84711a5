"""rl: any algorithm of the slot, from the SFT policy, on the training prompts or on the preference pairs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from grape.algorithms.base import Algorithm, OnlineParams, SlotParams
from grape.artifacts import Preference, read_prompts, read_rows
from grape.errors import GrapeError
from grape.models.chat import Chat
from grape.models.encode import encode_pairs, fitting_prompts
from grape.models.forward import language
from grape.models.load import device, load_language_model, load_scalar_model, save_model
from grape.models.lora import adapt, merge
from grape.models.value import ActorCritic, actor_critic
from grape.progress import Progress
from grape.reward.source import RubricReward
from grape.stages import Stage
from grape.stages.judges import reward_source
from grape.stages.slot_checks import check_round, refuse
from grape.track.identity import peak_memory_mb
from grape.training.adam import Adam, AdamParams
from grape.training.batches import Actors, Rollout, Source, offline, online
from grape.training.loop import Update, train
from grape.training.natural import NaturalGradient
from grape.training.reference import reference_logp
from grape.types import Metrics


def run(stage: Stage) -> None:
    assert stage.algorithm is not None
    params = stage.params.rl
    algorithm, knobs = stage.params.slot(stage.algorithm), stage.params.algorithm(stage.algorithm)
    assert isinstance(knobs, SlotParams)
    prompts = read_prompts(stage.root / "data/prompts/train.jsonl")
    refuse(stage, algorithm, knobs, prompts)
    policy, tokenizer = load_language_model(str(stage.root / "models/sft"))
    if params.lora_rank:
        adapt(policy, params.lora_rank, stage.params.seed)
    policy.to(device())
    chat = stage.chat(tokenizer, policy)
    model, critic = policy, None
    if "value" in algorithm.needs(knobs):
        model = critic = ActorCritic(policy, _value_model(stage, knobs))
    if algorithm.data == "pairs":
        steps, source = params.steps, _pairs(stage, chat)
    else:
        assert isinstance(knobs, OnlineParams)
        steps = knobs.rounds or params.steps
        source = _rollouts(stage, algorithm, knobs, Actors(policy, chat, critic=critic), prompts, steps)
    optimiser = _update(stage, algorithm, knobs, model, steps)
    progress = Progress(stage.name, steps)

    def track(step: int, metrics: Metrics) -> None:
        stage.run.track(step, {**metrics, "memory/peak_mb": peak_memory_mb()})
        progress(step, metrics)

    history = train(
        model,
        algorithm,
        knobs,
        source,
        _forward(stage, algorithm, knobs, critic),
        optimiser,
        steps=steps,
        track=track,
        checkpoints=stage.checkpoints(params.checkpoint_every),
        keys=_keys(stage),
    )
    stage.write_history([*history[:-1], {**history[-1], "memory/peak_mb": peak_memory_mb()}])
    folder = f"models/policy/{stage.policy}"
    save_model(merge(policy), tokenizer, stage.root / folder)
    stage.run.model(folder, "policy", register="grape-policy")
    last = history[-10:]
    stage.run.headline(
        {
            name: sum(row[name] for row in last if name in row) / max(sum(name in row for row in last), 1)
            for name in ("reward", "kl", "entropy", "completions/mean_length", "accuracy")
            if any(name in row for row in last)
        }
    )


def _keys(stage: Stage) -> tuple[object, ...]:
    """What the draws are for. Not the algorithm's name: algorithms see the same prompts and uniform numbers, so that they can be
    compared."""
    return (stage.params.seed, "rl", stage.seed)


def _value_model(stage: Stage, knobs: SlotParams) -> Any | None:
    """The value model of its own that the algorithm asks for, from the reward model's weights or the policy's; None: a head."""
    if getattr(knobs, "value", "model") == "head":
        return None
    learned = getattr(knobs, "value_init", "policy") == "reward_model"
    return load_scalar_model(str(stage.root / ("models/reward" if learned else "models/sft")), not learned)[0].to(device())


def _forward(stage: Stage, algorithm: Algorithm, knobs: SlotParams, critic: ActorCritic | None) -> Any:
    """What the model says in training: at the rollout's temperature and precision, for pairs at temperature 1."""
    trusted = algorithm.update == "natural_gradient"
    how: dict[str, Any] = {
        "temperature": stage.params.rl.temperature if algorithm.data == "rollouts" else 1.0,
        "dtype": "float32" if trusted else stage.params.model.dtype,
        "entropy_gradient": "entropy" in algorithm.needs(knobs),
    }
    return partial(actor_critic, **how) if critic is not None else partial(language, distribution=trusted, **how)


def _update(stage: Stage, algorithm: Algorithm, knobs: SlotParams, model: Any, steps: int) -> Update:
    params, micro = stage.params.rl, stage.params.model.micro_batch_tokens
    if algorithm.update == "natural_gradient":
        return NaturalGradient(model, knobs, micro)  # type: ignore[arg-type]  # refuse() has seen that it has the knobs
    rate = knobs.learning_rate or params.learning_rate
    # Warm-up is a share of the run: fewer, larger rounds warm up in fewer.
    warmup = round(params.warmup_steps * steps / params.steps)
    adam = AdamParams(rate, steps, warmup, params.schedule, params.weight_decay, params.max_grad_norm, micro,
                      stage.params.model.dtype)
    if not isinstance(model, ActorCritic):
        return Adam(model, adam)
    policy, value = model.families()
    return Adam(model, adam, [(policy, rate), (value, getattr(knobs, "value_learning_rate", None) or rate)])


def _rollouts(
    stage: Stage, algorithm: Algorithm, knobs: OnlineParams, actors: Actors, prompts: list[Any], rounds: int
) -> Source:
    """Sampled batches; fewer rounds than rl.steps are larger ones, so that every algorithm gets the same P x G x steps."""
    params = stage.params.rl
    stage.datasets("data/prompts", "rubrics")
    room = stage.params.model.positions - params.max_new_tokens
    prompts, dropped = fitting_prompts(actors.chat, prompts, room, "data/prompts")
    longest = f"model.positions - rl.max_new_tokens = {room} tokens"
    stage.left_out({"dropped/too_long": len(dropped)}, len(prompts), "prompts", longest)
    check_round(stage, knobs, len(prompts))
    if "reference" in algorithm.needs(knobs) or params.kl_every:
        actors = replace(actors, reference=load_language_model(str(stage.root / "models/sft"))[0].to(device()))
    rollout = Rollout(
        params.prompts * params.steps // rounds,
        params.samples,
        params.temperature,
        params.max_new_tokens,
        stage.params.model.positions,
        stage.params.model.micro_batch_tokens,
        params.max_missing,
        max(1, params.kl_every * rounds // params.steps) if params.kl_every else 0,
        "float32" if algorithm.update == "natural_gradient" else stage.params.model.dtype,
    )
    source = reward_source(stage, prompts, "data/prompts/train.jsonl", knobs.reward)
    critique = source.critique if isinstance(source, RubricReward) else None
    return online(actors, prompts, source, algorithm, knobs, rollout, _keys(stage), critique)


def _pairs(stage: Stage, chat: Chat) -> Source:
    """Batches of preference pairs with as many rows as a round of rollouts has, and the reference's log-probabilities."""
    params = stage.params.rl
    stage.datasets("data/preferences")
    records = read_rows(stage.root / "data/preferences/train.jsonl", Preference, mend="run it again: grape run preferences")
    positions = stage.params.model.positions
    encoded = encode_pairs(chat, records, positions, "data/preferences")
    stage.left_out(encoded.counts, len(encoded.kept), "pairs", f"model.positions = {positions} tokens")
    rows = encoded.rows
    if not rows:
        raise GrapeError(
            "there is no preference pair to learn from",
            where="data/preferences/train.jsonl",
            mend="raise preferences.prompts or lower preferences.margin",
        )
    reference = load_language_model(str(stage.root / "models/sft"))[0].to(device())
    from grape.track import digest

    identity = digest.tracked(stage.project, "models/sft")
    micro, dtype = stage.params.model.micro_batch_tokens, stage.params.model.dtype
    logp = reference_logp(
        reference, identity, rows, chat.pad, stage.project.state / "reference", micro, dtype
    )
    size = max(1, params.prompts * params.samples // 2)
    keys = (*_keys(stage), "pairs")
    return offline(rows, chat.pad, size, keys, device(), 2, {"logp_ref": logp})
