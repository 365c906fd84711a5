"""The stages of dvc.yaml. Each is thin: read artifacts, build the parts, call them, write artifacts and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape.project import Project

if TYPE_CHECKING:
    from grape.params import Optimisation, Params
    from grape.track import StageRun
    from grape.training.adam import AdamParams
    from grape.training.checkpoint import Checkpoints

STAGES = ("prepare", "base", "sft", "critic", "preferences", "reward", "rl", "evaluate", "report")


@dataclass(frozen=True)
class Stage:
    """What a stage is given. `name` is DVC's (`rl@grpo-0`), `kind` its module (`rl`)."""

    name: str
    kind: str
    params: Params
    project: Project
    run: StageRun
    algorithm: str | None = None
    seed: int | None = None

    @property
    def root(self) -> Path:
        return self.project.root

    @property
    def policy(self) -> str:
        return f"{self.algorithm}-{self.seed}"

    def datasets(self, *paths: str, context: str = "training") -> None:
        """Note the tracked inputs of this stage in its run."""
        for path in paths:
            self.run.dataset(path, context)

    def adam(self, section: Optimisation, schedule: str = "cosine") -> AdamParams:
        from grape.training.adam import AdamParams

        return AdamParams(
            section.learning_rate,
            section.steps,
            section.warmup_steps,
            schedule,
            section.weight_decay,
            section.max_grad_norm,
            self.params.model.micro_batch_tokens,
        )

    def history(self) -> Path:
        """Where the metrics of every step go."""
        name = f"rl/{self.policy}.jsonl" if self.kind == "rl" else f"{self.kind}.jsonl"
        return self.root / "reports" / "train" / name

    def checkpoints(self, every: int) -> Checkpoints:
        """Checkpoints that only a run with the same params, code and input bytes goes on from."""
        from grape.stages.inputs import identity
        from grape.training.checkpoint import Checkpoints

        return Checkpoints(self.project.checkpoints / self.name, identity(self.project, self.params, self.name), every)


def train_stage(
    stage: Stage,
    model: Any,
    tokenizer: Any,
    algorithm: Any,
    params: Any,
    rows: Sequence[Any],
    section: Optimisation,
    forward: Any,
    unit: int = 1,
    extra: Any = None,
) -> list[dict[str, float]]:
    """Train on fixed rows with the one loop: metrics to MLflow, the screen and reports/train, checkpoints for a killed run.

    Raises:
        GrapeError: no row fits into the model's positions.
    """
    from grape.artifacts import write_jsonl
    from grape.errors import GrapeError
    from grape.progress import Progress
    from grape.training.adam import Adam
    from grape.training.batches import offline
    from grape.training.loop import train

    if not rows and section.steps > 0:
        raise GrapeError(
            "no training row is left: every one is longer than model.positions, or the dataset is empty",
            where=f"stage {stage.name}",
            mend="raise model.positions in params.yaml, or shorten the data",
        )
    progress = Progress(stage.name, section.steps)

    def track(step: int, metrics: Any) -> None:
        stage.run.track(step, metrics)
        progress(step, metrics)

    keys = (stage.params.seed, stage.kind)
    source = offline(rows, tokenizer.pad_token_id, section.batch_size, keys, model.device, unit, extra)
    checkpoints = stage.checkpoints(every=100)
    history = train(
        model,
        algorithm,
        params,
        source,
        forward,
        Adam(model, stage.adam(section)),
        steps=section.steps,
        track=track,
        checkpoints=checkpoints,
        keys=keys,
    )
    write_jsonl(stage.history(), history)
    return history
