"""Checkpoints: a killed run goes on from the last one and ends with the weights of a straight run, bit for bit.

A checkpoint exists when its manifest does and every file matches it. It takes its place whole (grape.files.replacing), and the
previous one stays until it is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from grape.files import replacing
from grape.models.protocols import Trainable

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Resumed:
    """Where to go on: the next update, the algorithm's state, the metrics so far."""

    update: int
    state: Mapping[str, float]
    history: list[dict[str, float]]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _moving(model: Trainable) -> list[tuple[str, Any]]:
    """The weights that are trained, by name: with adapters those of the adapters alone."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


class Keeps(Protocol):
    """What has a state to keep: an optimiser."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Checkpoints:
    """The checkpoints of one stage, in `folder`; `identity` says what they belong to: every parameter, data and code file by name.

    Args:
        say: told of a checkpoint that is there and not gone on from, and why.
        changed: what of the identity was edited while the stage ran, if anything: its results will not be recorded then, and the
            last update is kept, so that undoing the edit costs no training.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        every: int,
        changed: Callable[[], Sequence[str]] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.identity, self.every, self.say = folder, dict(identity), every, say
        self.changed = changed

    def due(self, update: int, steps: int) -> bool:
        if update == steps:
            return self.every > 0 and self.changed is not None and bool(self.changed())
        return self.every > 0 and update % self.every == 0

    def save(
        self, update: int, model: Trainable, optimiser: Keeps, state: Mapping[str, float], history: list[dict[str, float]]
    ) -> None:
        """Keep everything update `update` needs to run as if nothing had happened."""
        name = f"update-{update:08d}"
        with replacing(self.folder / name) as beside:
            beside.mkdir()
            # What is frozen is loaded again. Tied weights appear once: state_dict names them twice, named_parameters does not.
            save_file({n: p.detach().contiguous() for n, p in _moving(model)}, str(beside / "model.safetensors"))
            torch.save(optimiser.state(), beside / "optimiser.pt")
            (beside / "progress.json").write_text(json.dumps({"state": dict(state), "history": history}))
            files = {path.name: {"sha256": _sha256(path), "size": path.stat().st_size} for path in sorted(beside.iterdir())}
            (beside / MANIFEST).write_text(json.dumps({"identity": self.identity, "update": update, "files": files}))
        for old in self.folder.iterdir():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def _valid(self, folder: Path) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            intact = all(_sha256(folder / name) == facts["sha256"] for name, facts in manifest["files"].items())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            manifest, intact = {}, False
        if not intact:
            self.say(f"{folder.parent.name}: the checkpoint {folder.name} is damaged and not used")
            return None
        theirs = manifest.get("identity")
        if theirs == self.identity:
            return manifest
        theirs = theirs if isinstance(theirs, dict) else {}
        other = sorted(k for k in {**theirs, **self.identity} if theirs.get(k) != self.identity.get(k))
        told = self._told(theirs, other)
        self.say(f"{folder.parent.name}: the checkpoint {folder.name} is of another run and not used: {told}")
        return None

    def _told(self, theirs: Mapping[str, str], names: Sequence[str]) -> str:
        """What differs, by name; short values of parameters before and after."""
        parts = []
        for name in names:
            before, now = theirs.get(name, "nothing"), self.identity.get(name, "nothing")
            digests = "/" in name or max(len(before), len(now)) > 60
            parts.append(f"{name} changed" if digests else f"{name} {before} -> {now}")
        return "; ".join(parts[:8]) + (f"; and {len(parts) - 8} more" if len(parts) > 8 else "")

    def restore(self, model: Trainable, optimiser: Keeps) -> Resumed | None:
        """Load the newest valid checkpoint of the same identity into model and optimiser; None if there is none."""
        folders = sorted(self.folder.glob("update-*"), reverse=True) if self.folder.is_dir() else []
        for folder in folders:
            manifest = self._valid(folder)
            if manifest is None:
                continue
            weights = load_file(str(folder / "model.safetensors"))
            with torch.no_grad():
                for name, parameter in _moving(model):
                    parameter.copy_(weights[name])
            optimiser.restore(torch.load(folder / "optimiser.pt", weights_only=True))
            progress = json.loads((folder / "progress.json").read_text())
            return Resumed(manifest["update"], progress["state"], progress["history"])
        return None
