"""Facts of this machine that decide how stages share it. They never enter a stage's command or parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from grape.dvc import Graph


def cores() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_gpu() -> bool:
    """A CUDA device, told without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/proc/driver/nvidia/version").exists()


def default_workers() -> int:
    """Two stages side by side where there are two cores; one where they would share a GPU's memory."""
    return 1 if has_gpu() else min(2, cores())


def threads(graph: Graph, workers: int) -> Mapping[str, int]:
    """How many threads each stage computes with: all cores for a stage that nothing can run beside, else its share.

    It depends on the graph alone, not on what happens to run at that moment: sums in another order give other last
    bits, and a run must be repeatable on the same machine.
    """
    return {stage: max(1, cores() // min(workers, 1 + others)) for stage, others in graph.beside().items()}
