"""What the stages that train have in common: progress on the screen and in MLflow, checkpoints, and training on fixed rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from grape.algorithms.base import AlgorithmParams, AnyAlgorithm
from grape.budget import Budget
from grape.errors import GrapeError
from grape.models import micro
from grape.models.chat import Chat, Row
from grape.models.checkpointing import checkpointed
from grape.models.protocols import Transformer
from grape.progress import Progress
from grape.stages.stage import Stage
from grape.track.identity import peak_memory_mb
from grape.training.adam import Adam, AdamParams, Forward
from grape.training.batches import offline
from grape.training.checkpoint import Checkpoints
from grape.training.loop import train
from grape.types import Metrics, Track

if TYPE_CHECKING:
    from grape.schema import Optimisation

EVERY = 100  # updates from one checkpoint to the next, where no knob says


def checkpoints(stage: Stage, every: int = EVERY, part: str = "") -> Checkpoints:
    """Checkpoints that only a run with the same params, code and input bytes goes on from. part: as `fit` has it."""
    changed = stage.inputs.changed if stage.inputs else None
    return Checkpoints(stage.project.checkpoints / stage.name / part, stage.identity(), every, changed)


def tracker(stage: Stage, steps: int, memory: bool = False, budget: Budget | None = None, part: str = "") -> Track:
    """Tells MLflow and the screen of every step; of the later models of a stage the screen alone.

    Args:
        memory: with the peak of the process, MiB. budget: what ends the run, if not the number of steps. part: as `fit` has it.
    """
    progress, history = Progress(f"{stage.name} {part}".rstrip(), steps), list[Metrics]()

    def track(step: int, metrics: Metrics) -> None:
        if not part:
            stage.run.track(step, {**metrics, "memory/peak_mb": peak_memory_mb()} if memory else metrics)
        history.append(metrics)
        if budget:  # as many steps as there will be, if they go on like this
            progress.total = max(step, round(step / max(budget.share(history), step / steps)))
        progress(step, metrics)

    return track


def fit(
    stage: Stage,
    model: Transformer,
    chat: Chat,
    algorithm: AnyAlgorithm,
    params: AlgorithmParams,
    rows: Sequence[Row],
    section: Optimisation,
    forward: Forward,
    unit: int = 1,
    extra: Mapping[str, Sequence[Tensor]] | None = None,
    part: str = "",
) -> list[dict[str, float]]:
    """Train on fixed rows with the one loop; writes reports/train.

    Args:
        unit, extra: as `grape.training.batches.offline` has them.
        part: where a stage trains several models, which one this is after the first: its draws and checkpoints are its own, and
            reports/train stays the first one's.

    Raises:
        GrapeError: there is no row.
    """
    if not rows and section.steps > 0:
        raise GrapeError(
            "there is no row to train on: the dataset is empty",
            where=f"stage {stage.name}",
            mend=f"add data, or set {stage.kind}.steps to 0",
        )
    keys, steps = (stage.params.seed, stage.kind, *([part] if part else [])), section.steps
    checkpointed(model, stage.params.model.checkpointing and steps > 0)
    source = offline(rows, chat.pad, section.batch_size, keys, model.device, unit, extra)
    tokens = micro_batch_tokens(stage, model, forward, lambda: source(0, {}).batch) if steps else micro.fixed()
    history = train(
        model,
        algorithm,
        params,
        source,
        forward,
        Adam(model, adam_params(stage, section, tokens)),
        steps=steps, track=tracker(stage, steps, part=part), checkpoints=checkpoints(stage, part=part), keys=keys,
    )  # fmt: skip
    if not part:
        stage.write_history(history)
    return history


def micro_batch_tokens(stage: Stage, model: Transformer, forward: Forward, batch: Callable[[], Any]) -> int:
    """The tokens of the stage's micro-batches, in its receipt and on the screen where they were measured or set.

    Args:
        batch: rows as the stage will train on.
    """
    common, config = stage.params.model, model.config.to_json_string()
    how = {"stage": stage.kind, "algorithm": stage.algorithm, "dtype": common.dtype, "checkpointing": common.checkpointing}
    facts = {**how, "config": config, "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    size = micro.chosen(model, forward, batch, stage.project.state / "micro_batches", facts)
    stage.run.tag({"grape.micro_batch_tokens": f"{size.tokens} ({size.by})"})
    if size.by != "fixed":
        print(f"{stage.name}: micro-batches of {size.tokens} tokens ({size.by})", flush=True)
    return size.tokens


def adam_params(stage: Stage, section: Optimisation, tokens: int) -> AdamParams:
    return AdamParams(
        learning_rate=section.learning_rate,
        steps=section.steps,
        warmup_steps=section.warmup_steps,
        schedule="cosine",
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        micro_batch_tokens=tokens,
        dtype=stage.params.model.dtype,
    )
