"""Checkpoints: a killed run goes on from the last one and ends with the weights of a straight run, bit for bit.

A checkpoint exists when its manifest does and every file matches it. Files are written and fsynced in a folder beside, the
manifest last, then the folder is renamed; the previous checkpoint stays until the new one is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoints:
    """The checkpoints of one stage, in `folder`; `identity` says what they belong to (params, data and code of the stage)."""

    def __init__(self, folder: Path, identity: str, every: int) -> None:
        self.folder, self.identity, self.every = folder, identity, every

    def due(self, update: int, steps: int) -> bool:
        return self.every > 0 and update % self.every == 0 and update < steps

    def save(
        self, update: int, model: Any, optimiser: Any, state: Mapping[str, float], history: list[dict[str, float]]
    ) -> None:
        """Keep everything update `update` needs to run as if nothing had happened."""
        name = f"update-{update:08d}"
        beside = self.folder / f"{name}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        # Tied weights appear once: state_dict names them twice, named_parameters does not.
        save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, str(beside / "model.safetensors"))
        torch.save(optimiser.state(), beside / "optimiser.pt")
        (beside / "progress.json").write_text(json.dumps({"state": dict(state), "history": history}))
        files = {path.name: {"sha256": _sha256(path), "size": path.stat().st_size} for path in sorted(beside.iterdir())}
        for path in beside.iterdir():
            _fsync(path)
        (beside / MANIFEST).write_text(json.dumps({"identity": self.identity, "update": update, "files": files}))
        _fsync(beside / MANIFEST)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        os.replace(beside, self.folder / name)
        _fsync(self.folder)
        for old in self.folder.iterdir():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def _valid(self, folder: Path) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            intact = all(_sha256(folder / name) == facts["sha256"] for name, facts in manifest["files"].items())
        except (OSError, ValueError, KeyError):
            return None
        return manifest if intact and manifest.get("identity") == self.identity else None

    def restore(self, model: Any, optimiser: Any) -> Resumed | None:
        """Load the newest valid checkpoint of the same identity into model and optimiser; None if there is none."""
        folders = sorted(self.folder.glob("update-*"), reverse=True) if self.folder.is_dir() else []
        for folder in folders:
            manifest = self._valid(folder)
            if manifest is None:
                continue
            weights = load_file(str(folder / "model.safetensors"))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(weights[name])
            optimiser.restore(torch.load(folder / "optimiser.pt", weights_only=True))
            progress = json.loads((folder / "progress.json").read_text())
            return Resumed(manifest["update"], progress["state"], progress["history"])
        return None
