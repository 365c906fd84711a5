"""The stages of dvc.yaml. Each is thin: read artifacts, build the parts, call them, write artifacts and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape.project import Project
from grape.stages.declared import DeclaredParams, Grant

if TYPE_CHECKING:
    from grape.models.chat import Chat
    from grape.params import Optimisation, Params
    from grape.stages.inputs import Inputs
    from grape.track import StageRun
    from grape.training.adam import AdamParams
    from grape.training.checkpoint import Checkpoints

STAGES = ("prepare", "base", "sft", "critic", "preferences", "reward", "rl", "evaluate", "report")


@dataclass(frozen=True)
class Stage:
    """What a stage is given. `name` is DVC's (`rl@grpo-0`), `kind` its module (`rl`).

    Of `params` it can read what dvc.yaml declares for it; `read` holds the keys that it has read.
    """

    name: str
    kind: str
    params: Params
    project: Project
    run: StageRun
    algorithm: str | None = None
    seed: int | None = None
    inputs: Inputs | None = None  # as they were when the stage began; None: a stage that is called by hand
    left: dict[str, float] = field(default_factory=dict)  # what `left_out` has counted
    read: set[str] = field(default_factory=set)
    everything: Params = field(init=False, repr=False)  # for the identity of checkpoints alone

    def __post_init__(self) -> None:
        object.__setattr__(self, "everything", self.params)
        object.__setattr__(self, "params", DeclaredParams(self.params, Grant(self.name, self.run.params, self.read)))

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

    def chat(self, tokenizer: Any, model: Any = None) -> Chat:
        """The tokenizer with its chat template, told what `model.template` says."""
        from grape.models.chat import Chat

        chat = Chat(tokenizer, self.params.model.template, model)
        if chat.dated:
            print(
                f"{self.name}: the chat template asks for today's date and is told {chat.settings.date} (model.template.date)",
                flush=True,
            )
        return chat

    def left_out(self, counts: Mapping[str, float], kept: int, what: str, longest: str) -> None:
        """Note what became of a stage's rows: in the receipt, on the screen, in reports/train and so in the report.

        Args:
            counts: `dropped/REASON` and other counts. kept: rows that stay. what: they are. longest: what they had to fit into.

        Raises:
            GrapeError: `model.too_long` says that nothing may be left out, or nothing is left.
        """
        from grape.errors import GrapeError

        dropped, refuse = int(counts.get("dropped/too_long", 0)), self.params.model.too_long == "refuse"
        if dropped and (refuse or not kept):
            raise GrapeError(
                f"{dropped} of {kept + dropped} {what} are longer than {longest}",
                where=f"stage {self.name}",
                mend="raise model.positions in params.yaml or shorten the data"
                + (", or let them be left out (model.too_long: drop)" if kept else ""),
            )
        if dropped:
            print(f"{self.name}: {dropped} of {kept + dropped} {what} left out: longer than {longest}", flush=True)
        for name, count in {**counts, "rows/kept": kept}.items():
            self.left[name] = self.left.get(name, 0.0) + float(count)
        self.run.headline({n: c for n, c in self.left.items() if c or n == "dropped/too_long"})

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write reports/train: the metrics of every step; before them, as step 0, what was left out, if anything was or nothing
        was learned (DVC warns of empty files). A number that is not finite is null."""
        from math import isfinite

        from grape.files import write_lines

        said = any(c for n, c in self.left.items() if n.startswith("dropped/")) or not history
        left = [{"step": 0, **self.left}] if said else []
        rows = [{k: v if isfinite(v) else None for k, v in row.items()} for row in [*left, *history]]
        write_lines(self.history(), rows)

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
            self.params.model.dtype,
        )

    def history(self) -> Path:
        """Where the metrics of every step go."""
        name = f"rl/{self.policy}.jsonl" if self.kind == "rl" else f"{self.kind}.jsonl"
        return self.root / "reports" / "train" / name

    def checkpoints(self, every: int) -> Checkpoints:
        """Checkpoints that only a run with the same params, code and input bytes goes on from."""
        from grape.stages.inputs import identity
        from grape.training.checkpoint import Checkpoints

        same = identity(self.project, self.everything, self.name, self.inputs)
        changed = self.inputs.changed if self.inputs else None
        return Checkpoints(self.project.checkpoints / self.name, same, every, changed)


def train_stage(
    stage: Stage,
    model: Any,
    chat: Chat,
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
        GrapeError: there is no row.
    """
    from grape.errors import GrapeError
    from grape.progress import Progress
    from grape.training.adam import Adam
    from grape.training.batches import offline
    from grape.training.loop import train

    if not rows and section.steps > 0:
        raise GrapeError(
            "there is no row to train on: the dataset is empty",
            where=f"stage {stage.name}",
            mend=f"add data, or set {stage.kind}.steps to 0",
        )
    progress = Progress(stage.name, section.steps)

    def track(step: int, metrics: Any) -> None:
        stage.run.track(step, metrics)
        progress(step, metrics)

    keys = (stage.params.seed, stage.kind)
    source = offline(rows, chat.pad, section.batch_size, keys, model.device, unit, extra)
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
    stage.write_history(history)
    return history
