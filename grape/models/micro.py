"""How many tokens a forward pass takes at once: a fact of the machine, so never in params.yaml.

The gradient is the same for every size, but for the order of additions. A pass that is too short wastes the processor, one that is
too long its caches and memory; which is which, depends on the machine, the model and the precision. So a stage that trains a
large model measures it once, on its own rows, and keeps what it found in `.grape/micro_batches/`: the next run, and one that goes
on from a checkpoint, take the same size and add in the same order. Small models and passes without gradient have a fixed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from grape import memory
from grape.errors import GrapeError
from grape.files import read_json, write_json
from grape.models.forward import micro_batches
from grape.models.protocols import Trainable
from grape.models.shared import share
from grape.types import Outputs, Tokens

VARIABLE = "GRAPE_MICRO_BATCH_TOKENS"
FIXED = 1024
LARGE = 5_000_000  # weights from which on the size is measured: of smaller ones all are about as fast
SMALLEST, LARGEST, LARGEST_OF_ACCELERATORS = 512, 8192, 65536
BETTER = 1.03  # what a larger size must be faster by: it takes more memory


class Chosen(NamedTuple):
    """Tokens of a micro-batch, and who says so: the environment, measured, fixed."""

    tokens: int
    by: str


def named() -> int | None:
    """What the environment says. Raises GrapeError: it is not a whole number above 0."""
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    if not given.isascii() or not given.isdigit() or int(given) == 0:
        raise GrapeError(f"{given!r} is not a number of tokens", where=VARIABLE, mend="set it to a whole number >= 1, or unset it")
    return int(given)


def fixed() -> int:
    """Of passes without gradient, and wherever nothing is measured."""
    return named() or FIXED


def chosen(
    model: Trainable, forward: Callable[[Any], Outputs], batch: Callable[[], Tokens], folder: Path, facts: Mapping[str, object]
) -> Chosen:
    """The size for a stage that trains.

    Args:
        forward: what is differentiated. batch: rows as the stage will see them, asked for where they are measured.
        folder: where what was measured is kept. facts: what it depends on beside the machine: stage, model, precision.

    Raises:
        GrapeError: the environment's size is none.
    """
    if (given := named()) is not None:
        return Chosen(given, "environment")
    if sum(p.numel() for p in model.parameters()) < LARGE:
        return Chosen(FIXED, "fixed")
    text = json.dumps({**facts, **_machine(model.device)}, sort_keys=True, default=str)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        speeds = measured(model, forward, share(model, batch()))
        best = next(size for size in sorted(speeds) if max(speeds.values()) <= BETTER * speeds[size])
        if not path.is_file():  # else a stage beside this one was faster, and both go by it
            write_json(path, {"tokens": best, "tokens_per_second": speeds, "of": json.loads(text)})
    return Chosen(int(read_json(path, f"delete it, or set {VARIABLE}")["tokens"]), "measured")


def _machine(device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "cores": psutil.cpu_count(),
        "torch": torch.__version__,
    }


def measured(model: Trainable, forward: Callable[[Any], Outputs], batch: Tokens) -> dict[int, float]:
    """Tokens per second of forward and backward passes, by the size of the micro-batch: twice as large while that is faster and
    what is kept for the way back takes less than half of the memory that is free. Weights and generators stay as they are."""
    speeds: dict[int, float] = {}
    device, size, before = model.device, SMALLEST, 0
    free = memory.free_bytes(device) / 2  # the other half is the gradient's, the head's, and a value model's
    while size <= (LARGEST if device.type == "cpu" else LARGEST_OF_ACCELERATORS):
        part = batch.select(next(iter(micro_batches(batch, size))))
        if part.rows == before:  # there are no more rows than these
            break
        try:
            if not speeds:
                each = _kept(model, forward, part) / part.tokens  # and warm
            if speeds and each * part.tokens > free:
                break
            speeds[size] = part.tokens / min(seconds(forward, part) for _ in range(2))
        except Exception as error:  # of torch's allocators: as `grape.memory` knows them
            if not speeds or not memory.short(error):
                raise
            break
        if len(speeds) > 1 and speeds[size] < speeds[size // 2]:
            break
        size, before = 2 * size, part.rows
    for parameter in model.parameters():
        parameter.grad = None
    return speeds


def seconds(forward: Callable[[Any], Outputs], part: Tokens) -> float:
    """Of one forward and backward pass; the gradient is added to what is there."""
    began = time.perf_counter()
    _pass(forward, part)
    if part.response.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def _pass(forward: Callable[[Any], Outputs], part: Tokens) -> None:
    said = [x.float().sum() for x in forward(part).tensors().values() if x.requires_grad]
    torch.stack(said).sum().backward()


def _kept(model: Trainable, forward: Callable[[Any], Outputs], part: Tokens) -> int:
    """Bytes that a forward pass keeps for the way back, the weights aside."""
    own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _pass(forward, part)
    return sum(size for place, size in found.items() if place not in own)
