"""What a trial runs, stage by stage: of an algorithm in the slot rl and evaluate, of SFT the stage sft, whose models are then
evaluated as policies beside the project's own SFT model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grape import settings
from grape.project import Project
from grape.slot import SFT
from grape.tune import workspace

MODEL, CURVE = Path("models/sft"), Path("reports/train/sft.jsonl")


@dataclass(frozen=True)
class Course(ABC):
    """In the workspace `here`. algorithm: of rl.algorithms; evaluate looks for a policy in the places of its runs."""

    here: Project
    algorithm: str
    seeds: Sequence[int]

    @property
    def policies(self) -> list[str]:
        """What evaluate is asked about, seed by seed: `grpo-1000`."""
        return [f"{self.algorithm}-{seed}" for seed in self.seeds]

    @property
    @abstractmethod
    def curve(self) -> Path:
        """Where the metrics of the first seed's training stand when `stages` has ended."""

    @abstractmethod
    def stages(self) -> Iterator[str]:
        """In order. What has to be there for a stage is made when it is asked for, so the one before has ended well by then."""


class Slot(Course):
    """An algorithm's."""

    @property
    def curve(self) -> Path:
        return self.here.root / "reports" / "train" / "rl" / f"{self.policies[0]}.jsonl"

    def stages(self) -> Iterator[str]:
        for policy in self.policies:
            yield f"rl@{policy}"
            yield f"evaluate@{policy}"


@dataclass(frozen=True)
class Sft(Course):
    """SFT's. The model that a trial has made is put where a policy stands, and all else is as in the project again: it is
    scored by the same judges, which may stand on the project's SFT model, and beside that.

    Args:
        make: the workspace `here` anew, with a text as its params.yaml. before: the project's text; trial: of the trial.
    """

    make: Callable[[str], Project]
    before: str
    trial: str

    @property
    def curve(self) -> Path:
        return self._aside(self.seeds[0]) / CURVE

    def stages(self) -> Iterator[str]:
        for seed in self.seeds:
            self.make(settings.apply(self.trial, "params.yaml", [f"seed={seed}"]))
            yield SFT
            self._put_aside(seed)
        self.make(self.before)
        for seed, policy in zip(self.seeds, self.policies, strict=True):
            workspace.link(self._aside(seed) / MODEL, self.here.root / "models" / "policy" / policy, Path())
        yield from (f"evaluate@{policy}" for policy in self.policies)

    def _put_aside(self, seed: int) -> None:
        """The workspace is made anew, but for its state: there it stays."""
        workspace.remove(self._aside(seed))
        for made in (MODEL, CURVE):
            workspace.link(self.here.root, self._aside(seed), made)

    def _aside(self, seed: int) -> Path:
        return self.here.state / "made" / str(seed)
