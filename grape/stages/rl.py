"""rl: any algorithm of the slot, from the SFT policy, on the training prompts or on the preference pairs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from grape.algorithms.base import AnyAlgorithm, OnlineParams, SlotParams, ValueParams
from grape.artifacts import Preference, read_prompts, read_rows
from grape.budget import Budget
from grape.errors import GrapeError
from grape.models.chat import Chat, Row
from grape.models.checkpointing import checkpointed
from grape.models.encode import collate, encode_pairs, fitting_prompts
from grape.models.folder import chain
from grape.models.forward import language
from grape.models.load import device, load_language_model, load_scalar_model
from grape.models.lora import is_adapted
from grape.models.micro import fixed
from grape.models.protocols import LanguageModel, ScalarModel, Tokenizer
from grape.needed import made
from grape.reward.source import RubricReward
from grape.sampling import RolloutEngine
from grape.stages.chats import chat_of
from grape.stages.engines import engine
from grape.stages.fit import checkpoints, micro_batch_tokens, tracker
from grape.stages.judges import reward_source
from grape.stages.slot_checks import check_round, refuse
from grape.stages.stage import Stage
from grape.stages.trained import kept_in, save_trained, trainable
from grape.stages.validation import validated
from grape.track import digest
from grape.track.identity import peak_memory_mb
from grape.training.adam import AdamParams
from grape.training.assemble import Learner, assemble, needed
from grape.training.batches import Source, offline
from grape.training.mismatch import CAP, Importance
from grape.training.reference import reference_logp
from grape.training.sampler import Sampler, Sampling
from grape.types import Prompt, Tokens

LAST = 10  # rounds that the headline is the mean of
MOST = 100  # times rl.steps: rounds within which a budget must be used up
HEADLINE = ("reward", "kl", "entropy", "completions/mean_length", "accuracy")


@dataclass(frozen=True)
class Ready:
    """A run before its first round.

    Attributes:
        micro: tokens of a micro-batch.
    """

    learner: Learner
    tokenizer: Tokenizer
    chat: Chat
    prompts: list[Prompt]
    steps: int
    micro: int


def run(stage: Stage) -> None:
    it = ready(stage)
    learner, steps = it.learner, it.steps
    with engine(stage, learner) as writer:
        source = _pairs(stage, it) if learner.algorithm.data == "pairs" else _rollouts(stage, it, writer)
        budget, most = _budget(stage, steps)
        track, kept = tracker(stage, most, True, budget), checkpoints(stage, stage.params.rl.checkpoint_every)
        history = learner.train(source, most, track, kept, _keys(stage), budget)
    _refuse_unspent(budget, history)
    stage.write_history([*history[:-1], {**history[-1], "memory/peak_mb": peak_memory_mb()}])
    folder = f"models/policy/{stage.policy}"
    save_trained(stage, learner.policy, it.tokenizer, folder, "models/sft")
    stage.run.model(folder, "policy", register="grape-policy")
    stage.run.headline(_headline(history[-LAST:]))


def ready(stage: Stage, micro: int | None = None) -> Ready:
    """Everything loaded and put together but what samples and scores.

    Args:
        micro: tokens of a micro-batch; None: as they are measured here.

    Raises:
        GrapeError: what cannot work, before any model loads.
    """
    algorithm, knobs = stage.params.slot(stage.algorithm), stage.params.algorithm(stage.algorithm)
    prompts = read_prompts(stage.path("data/prompts/train.jsonl"))
    refuse(stage, algorithm, knobs, prompts)
    policy, tokenizer = load_language_model(stage.model("models/sft"), weights=kept_in(stage))
    policy = trainable(stage, policy, stage.seed, "policy")
    checkpointed(policy, stage.params.model.checkpointing).to(device())
    chat = chat_of(stage, tokenizer, policy)
    steps = (knobs.rounds if isinstance(knobs, OnlineParams) else None) or stage.params.rl.steps
    value = _value_model(stage, knobs) if "value" in algorithm.needs(knobs) else None
    micro = micro or _micro_batch_tokens(stage, algorithm, policy, chat, prompts)
    temperature = stage.params.rl.temperature
    learner = assemble(algorithm, knobs, policy, _adam(stage, steps, micro), temperature, value, _importance(stage))
    return Ready(learner, tokenizer, chat, prompts, steps, micro)


def _budget(stage: Stage, steps: int) -> tuple[Budget | None, int]:
    """What ends the run, and the most rounds it may take: a budget of updates is not used up by rounds that teach nothing."""
    given = stage.params.rl.budget
    if given is None:
        return None, steps
    ((unit, amount),) = given.items()
    return Budget(unit, amount), MOST * steps


def _refuse_unspent(budget: Budget | None, history: list[dict[str, float]]) -> None:
    if budget and not budget.spent(history):
        raise GrapeError(
            f"{len(history)} rounds used {budget.share(history):.0%} of the budget of {budget.amount:g} {budget.unit}",
            where="params.yaml, rl.budget",
            mend="raise rl.steps, of which no run may take more than a hundred times as many, or lower the budget",
        )


def _headline(rounds: list[dict[str, float]]) -> dict[str, float]:
    known = {name: [row[name] for row in rounds if name in row] for name in HEADLINE}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _keys(stage: Stage) -> tuple[object, ...]:
    """What the draws are for. Not the algorithm's name: algorithms see the same prompts and uniform numbers, so that they can be
    compared."""
    return (stage.params.seed, "rl", stage.seed)


def _micro_batch_tokens(stage: Stage, algorithm: AnyAlgorithm, policy: LanguageModel, chat: Chat, prompts: list[Prompt]) -> int:
    """Measured on rows like a round's: its first prompts, and answers of half the length that they may have, two to a prompt for
    pairs. The natural gradient keeps whole distributions of every token, so its passes stay short."""
    if algorithm.update == "natural_gradient":
        return fixed()
    rl, model, each = stage.params.rl, stage.params.model, 2 if algorithm.data == "pairs" else stage.params.rl.samples

    def rows() -> Tokens:
        answer = [chat.tokenizer.eos_token_id] * max(1, rl.max_new_tokens // 2)
        asked = [chat.prompt(prompt.messages, prompt.id) for prompt in prompts[: rl.prompts]]
        short = [ids[-max(1, model.positions - len(answer)) :] for ids in asked]
        return collate([Row(ids, answer) for ids in short for _ in range(each)], chat.pad).to(policy.device)

    return micro_batch_tokens(stage, policy, partial(language, policy, dtype=model.dtype), rows)


def _adam(stage: Stage, steps: int, tokens: int) -> AdamParams:
    rl, model = stage.params.rl, stage.params.model
    return AdamParams(
        learning_rate=rl.learning_rate,
        steps=steps,
        # Warm-up is a share of the run: fewer, larger rounds warm up in fewer.
        warmup_steps=round(rl.warmup_steps * steps / rl.steps),
        schedule=rl.schedule,
        weight_decay=rl.weight_decay,
        max_grad_norm=rl.max_grad_norm,
        micro_batch_tokens=tokens,
        dtype=model.dtype,
    )


def _importance(stage: Stage) -> Importance | None:
    how, cap = stage.params.rl.importance, stage.params.rl.importance_cap
    return Importance(how, cap or CAP) if how else None


def _value_model(stage: Stage, knobs: SlotParams) -> ScalarModel | None:
    """The value model of its own that the algorithm asks for, from the reward model's weights or the policy's; None: a head."""
    if not isinstance(knobs, ValueParams) or knobs.value == "head":
        return None
    learned = knobs.from_reward_model
    name = "models/reward" if learned else "models/sft"
    model, _ = load_scalar_model(stage.model(name), not learned, kept_in(stage))
    model = trainable(stage, model, stage.seed, "value")
    return checkpointed(model, stage.params.model.checkpointing).to(device())


def _reference(stage: Stage, policy: LanguageModel) -> LanguageModel:
    """The SFT model: the policy itself, whose adapters are off where it is the reference, or a second model."""
    if is_adapted(policy):
        return policy
    model, _ = load_language_model(stage.model("models/sft"), weights=stage.params.model.weights)
    return model.requires_grad_(False).to(device())


def _identity(stage: Stage) -> str:
    """Which bytes the reference is, of all folders that it stands on."""
    found, root = chain(stage.model("models/sft")), stage.project.root
    places = [*found.folders, Path(found.source)]
    inside = [digest.tracked(stage.project, p.relative_to(root).as_posix()) for p in places if p.is_relative_to(root / "models")]
    below = [] if places[-1].is_relative_to(root / "models") else [found.source, str(found.revision)]
    if below and places[-1].exists():
        below = [digest.computed(places[-1])]
    return " ".join([*inside, *below, *([stage.params.model.quantise] if stage.params.model.quantise else [])])


def _rollouts(stage: Stage, it: Ready, writer: RolloutEngine | None) -> Source:
    """Sampled batches."""
    drawn = sampler(stage, it, writer)
    compared = "reference" in it.learner.algorithm.needs(drawn.params) or stage.params.rl.kl_every
    rounds = it.learner.rounds(drawn, _reference(stage, it.learner.policy) if compared else None)
    return validated(stage, it.learner.policy, drawn.params, it.chat, it.steps, rounds, drawn.score)


def sampler(stage: Stage, it: Ready, writer: RolloutEngine | None) -> Sampler:
    """Who draws and scores the rounds; fewer than rl.steps are larger ones, so that every algorithm gets the same P x G x steps.

    Args:
        writer: the engine, for as long as it is needed.
    """
    learner, chat, rounds = it.learner, it.chat, it.steps
    rl, model, knobs = stage.params.rl, stage.params.model, needed(learner.params, OnlineParams, "learns from rollouts")
    stage.datasets("data/prompts/train.jsonl", "rubrics")
    room = model.positions - rl.max_new_tokens
    prompts, dropped = fitting_prompts(chat, it.prompts, room, "data/prompts/train.jsonl")
    longest = f"model.positions - rl.max_new_tokens = {room} tokens"
    stage.left_out({"dropped/too_long": len(dropped)}, len(prompts), "prompts", longest)
    check_round(stage, learner.algorithm, knobs, len(prompts))
    sampling = Sampling(
        prompts=rl.prompts * rl.steps // rounds,
        samples=rl.samples,
        temperature=rl.temperature,
        max_new_tokens=rl.max_new_tokens,
        positions=model.positions,
        micro_batch_tokens=it.micro,
        max_missing=rl.max_missing,
        kl_every=max(1, rl.kl_every * rounds // rl.steps) if rl.kl_every else 0,
    )
    source = reward_source(stage, prompts, "data/prompts/train.jsonl", knobs.reward)
    rubric = source if isinstance(source, RubricReward) else None
    critique, ahead = (rubric.critique, rubric.ahead) if rubric else (None, nullcontext)
    return learner.sampler(chat, prompts, source, sampling, _keys(stage), critique, writer, ahead)


def _pairs(stage: Stage, it: Ready) -> Source:
    """Batches of preference pairs with as many rows as a round of rollouts has, and the reference's log-probabilities."""
    learner, chat = it.learner, it.chat
    stage.datasets("data/preferences")
    records = read_rows(made(stage.path("data/preferences/train.jsonl")), Preference, mend="run it again: grape run preferences")
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
    known: dict[str, list[Tensor]] = {}
    if "reference" in learner.algorithm.needs(learner.params):
        identity, kept = _identity(stage), stage.project.state / "reference"
        reference, dtype = _reference(stage, learner.policy), stage.params.model.dtype
        known["logp_ref"] = reference_logp(reference, identity, rows, chat.pad, kept, it.micro, dtype)
    size = max(1, stage.params.rl.prompts * stage.params.rl.samples // 2)
    batches = offline(rows, chat.pad, size, (*_keys(stage), "pairs"), device(), 2, known)
    return validated(stage, learner.policy, needed(learner.params, SlotParams, "is slotted"), chat, it.steps, batches)
