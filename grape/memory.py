"""How much memory is free on this machine, and too little of it as the one message that says which knobs help."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from grape.errors import GrapeError, causes

if TYPE_CHECKING:
    import torch

LARGE = 1 << 30  # bytes of a process, from which on what is free is worth asking for
SETTLING, GROWN = 2, 1.03  # rounds until a process holds what it needs; from which share of that on it has grown
# What torch's allocators, C++ and the kernel say; only CUDA's and Python's errors are of a kind of their own.
_SAYS = re.compile(
    r"defaultcpuallocator: (can't allocate|not enough) memory|out of memory|bad_alloc|cannot allocate memory|os error 12\b", re.I
)
# In the order that helps: what costs least first.
MEND = (
    "set GRAPE_MICRO_BATCH_TOKENS=512 in the environment, or less; then set model.checkpointing: true, train "
    "adapters (model.lora.rank: 16), or set model.weights: bfloat16; `grape doctor --fit` shows what each stage takes"
)


def short(error: BaseException) -> bool:
    """Whether the error, or one that it comes from, is that memory could not be had."""
    return any(_says(e) for e in causes(error))


def refusal(error: BaseException, where: str) -> GrapeError | None:
    """The message for a program that ran out of memory; None for any other error.

    Args:
        where: what ran out.
    """
    if not short(error):
        return None
    return GrapeError(f"out of memory{_wanted(error)}", where=where, mend=MEND)


def _wanted(error: BaseException) -> str:
    """How much was asked for when there was no more, as far as it is told."""
    for e in causes(error):
        if found := re.search(r"tried to allocate (\d+) bytes", str(e)):
            return f": {int(found[1]) / 2**20:.0f} MiB more could not be had"
        if found := re.search(r"Tried to allocate ([\d.]+ [KMG]i?B)", str(e)):
            return f": {found[1]} more could not be had"
    return ""


def _says(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_SAYS.search(str(error)))


def free_bytes(device: torch.device) -> int:
    """What is free for this process now: of the accelerator, or of the machine and of the container around it."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for itself and uses no more counts as free.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()), 0)
    return _free()


def _free() -> int:
    import psutil

    return min([int(psutil.virtual_memory().available), *(max(limit - used, 0) for limit, used in _limits())])


def total_bytes(device: torch.device) -> int:
    """All of it."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, used) of the control group, where one is set: psutil knows the machine alone."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            most = int((root / limit).read_text())
            taken = int((root / used).read_text())
            lines = (root / limit).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # none is set ("max"), or this is no Linux
            continue
        reclaimable = next((int(line.split()[1]) for line in lines if line.split()[0] == stat), 0)
        if most < 1 << 60:
            yield most, taken - reclaimable


class Heap:
    """What the C library keeps of freed memory. It saves the next round pages that the system would hand out zeroed (a fifth of an
    update of SmolLM2-135M), but is in pieces that the next round may not fit into. So it goes back to the system where a process
    holds more than it did after its first two rounds, or where so much is not free on the machine. Small processes never ask."""

    def __init__(self) -> None:
        self.rounds = self.held = 0

    def ended(self) -> None:
        """A round of sampling and training is over."""
        now = _resident()
        if now <= LARGE:
            return
        self.rounds += 1
        settling = self.rounds <= SETTLING
        if settling:
            self.held = max(self.held, now)
        if now > GROWN * self.held or _free() < now:
            _trim()


def _resident() -> int:
    """Bytes of this process in memory; 0 where that is not Linux, whose C library alone can be asked."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _trim() -> None:
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it, musl has not
        trim(0)
