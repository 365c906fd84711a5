"""What a stage is given: the keys of params.yaml and the paths that dvc.yaml declares for it, and a run to tell what it did."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from grape.errors import GrapeError
from grape.files import replacing, write_json, write_lines
from grape.models.folder import chain
from grape.needed import ANEW, MAKES, RUNS, UNMADE, UNMADE_KEY, WITHOUT, made
from grape.project import Project
from grape.stages.declared import DeclaredParams, Grant
from grape.stages.inputs import Inputs, identity, paths
from grape.track import StageRun

if TYPE_CHECKING:
    from grape.params import Params


@dataclass(frozen=True)
class Stage:
    """`name` is DVC's (`rl@grpo-0`), `kind` its module (`rl`).

    Of `params` it can read what dvc.yaml declares for it; `read` holds the keys that it has read.
    """

    name: str
    kind: str
    params: Params
    project: Project
    run: StageRun
    algorithm: str = ""  # of rl and evaluate alone, as is the seed
    seed: int = 0
    inputs: Inputs | None = None  # as they were when the stage began; None: a stage that is called by hand
    left: dict[str, float] = field(default_factory=dict)  # what `left_out` has counted
    read: set[str] = field(default_factory=set)
    everything: Params = field(init=False, repr=False)  # for the identity of checkpoints alone

    def __post_init__(self) -> None:
        object.__setattr__(self, "everything", self.params)
        object.__setattr__(self, "params", DeclaredParams(self.params, Grant(self.name, self.run.params, self.read)))

    @property
    def policy(self) -> str:
        return f"{self.algorithm}-{self.seed}"

    @cached_property
    def declared(self) -> frozenset[str]:
        """The paths that dvc.yaml declares for this stage."""
        return paths(self.project, self.everything.prepare.source, self.name)

    def path(self, name: str) -> Path:
        """A file or folder of the project that this stage may read or write.

        Raises:
            GrapeError: dvc.yaml does not declare it, nor a folder that it is in.
        """
        wanted = PurePosixPath(os.path.normpath(name))
        if not any(wanted.is_relative_to(os.path.normpath(known)) for known in self.declared):
            if stage := next((stage for stage, folder in MAKES.items() if wanted.is_relative_to(folder)), None):
                if WITHOUT[stage] in self.declared:
                    what = f"{RUNS} does not say that {self.name} reads {name}"
                    raise GrapeError(what, where=f"stage {self.name}", mend=ANEW)
            raise GrapeError(
                f"the stage {self.name} opens {name}, which it does not declare: a change of it would re-run nothing",
                where=f"dvc.yaml, stages.{self.kind}",
                mend=f"add `- {name}` to its deps or outs",
            )
        return self.project.root / name

    def model(self, name: str) -> str:
        """A model folder of the project that this stage may load, with all that it stands on.

        Raises:
            GrapeError: dvc.yaml does not declare it, or a folder of the project that it stands on; or it was not needed when its
                stage ran.
        """
        folder = made(self.path(name))
        found = chain(str(folder))
        for below in (*found.folders, Path(found.source)):
            if below.is_relative_to(self.project.root / "models"):
                self.path(below.relative_to(self.project.root).as_posix())
        return str(folder)

    def datasets(self, *paths: str, context: str = "training") -> None:
        """Note the tracked inputs of this stage in its run."""
        for path in paths:
            self.run.dataset(path, context)

    def identity(self) -> dict[str, str]:
        """What a checkpoint of this stage belongs to: its params, code and input bytes."""
        return identity(self.project, self.everything, self.name, self.inputs)

    def left_out(self, counts: Mapping[str, float], kept: int, what: str, longest: str) -> None:
        """Note what became of a stage's rows: in the receipt, on the screen, in reports/train and so in the report.

        Args:
            counts: `dropped/REASON` and other counts. kept: rows that stay. what: they are. longest: what they had to fit into.

        Raises:
            GrapeError: `model.too_long` says that nothing may be left out, or nothing is left.
        """
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

    def not_made(self, folder: str, reason: str, mend: str) -> None:
        """Leave in place of `folder`, which this stage makes, why there is nothing to make: what reads it refuses with that
        (`grape.needed.made`), and what does not goes on."""
        with replacing(self.path(folder)) as place:
            write_json(place / UNMADE, {"stage": self.name, "reason": reason, "mend": mend})
        write_lines(self.path(f"reports/train/{self.kind}.jsonl"), [{"step": 0, UNMADE_KEY: reason, **self.left}])
        self.run.tag({f"grape.{UNMADE_KEY}": reason})
        print(f"{self.name}: nothing was made: {reason}\n  -> {mend}", flush=True)

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write reports/train: the metrics of every step; before them, as step 0, what was left out, if anything was or nothing
        was learned (DVC warns of empty files). A number that is not finite is null."""
        said = any(c for n, c in self.left.items() if n.startswith("dropped/")) or not history
        left = [{"step": 0, **self.left}] if said else []
        rows = [{k: v if isfinite(v) else None for k, v in row.items()} for row in [*left, *history]]
        name = f"rl/{self.policy}" if self.kind == "rl" else self.kind
        write_lines(self.path(f"reports/train/{name}.jsonl"), rows)
