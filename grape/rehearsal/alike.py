"""Which runs of rl draw and score their rounds alike, so that one rehearsal stands for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grape import needed
from grape.project import Project
from grape.stages.inputs import Inputs

# What decides how is learned, not what is drawn: another value of these needs no other rehearsal.
OF_LEARNING = ("learning_rate", "warmup_steps", "schedule", "weight_decay", "max_grad_norm", "checkpoint_every")
LEARNING = {f"rl.{knob}" for knob in OF_LEARNING}
OF_ALGORITHMS = ("algorithms", "grape/algorithms", f"{needed.FOLDER}/without")


@dataclass(frozen=True)
class Alike:
    """
    Attributes:
        algorithms: of rl.algorithms. seeds: rl.seeds. how: as `needed.Needed.sampled` has it.
    """

    algorithms: tuple[str, ...]
    seeds: tuple[int, ...]
    how: Mapping[str, Any]

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(f"{name}-{seed}" for name in self.algorithms for seed in self.seeds)

    @property
    def name(self) -> str:
        """Of logs and tags."""
        return "-".join(self.algorithms)


def alike(project: Project) -> list[Alike]:
    """The runs that params.yaml asks for and that sample; those that learn from pairs do not.

    Raises:
        GrapeError: as `needed.answer` does.
    """
    answer, kinds = needed.answer(project), dict[str, list[str]]()
    for name, how in answer.sampled.items():
        kinds.setdefault(json.dumps(how, sort_keys=True), []).append(name)
    seeds = tuple(dict.fromkeys(int(run["seed"]) for run in answer.runs.values()))
    return [Alike(tuple(names), seeds, json.loads(how)) for how, names in kinds.items()]


def key(project: Project, kind: Alike, run: str) -> str:
    """Of all that a rehearsal of this kind depends on: the bytes of models, prompts, rubrics and code, and the knobs; the same for
    every run of the kind.

    Raises:
        GrapeError: as `Inputs.read` does.
    """
    inputs = Inputs.read(project, f"rl@{run}")
    others = {made for stage, made in needed.MAKES.items() if stage not in kind.how["judges"]}
    bytes_ = {path: md5 for path, md5 in inputs.hashes.items() if path not in others and not path.startswith(OF_ALGORITHMS)}
    knobs = {name: value for name, value in inputs.values.items() if name not in LEARNING and not name.startswith(OF_ALGORITHMS)}
    whole = {"algorithms": kind.algorithms, "how": kind.how, "bytes": bytes_, "knobs": knobs}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:16]
