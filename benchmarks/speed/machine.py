"""What this machine could do at best: the peak of its matrix products, how fast it copies, and what it is.

python -m benchmarks.speed.machine         JSON of `Machine`
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SIDE = 2048  # of the matrices
COPIED = 1 << 28  # bytes, far above any cache but the largest
TRIES = 8
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        tflops: dtype -> 2 x SIDE^3 / seconds of a product of two matrices, 10^12 a second, best of TRIES.
        copy: bytes read and as many written, 10^9 of both together a second.
    """

    name: str
    cores: int
    threads: int
    flags: list[str]
    tflops: dict[str, float]
    copy: float
    device: str
    versions: dict[str, str] = field(default_factory=dict)


def processor() -> tuple[str, list[str]]:
    """Its name and the instructions that matter to matrix products, as Linux tells them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    known = facts.get("flags", facts.get("Features", "")).split()
    return facts.get("model name", platform.processor() or platform.machine()), [flag for flag in FLAGS if flag in known]


def best(work: Callable[[], object], wait: Callable[[], object]) -> float:
    """Seconds of the fastest of TRIES, after one that does not count."""
    found = []
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def measure() -> Machine:
    import torch

    from grape.models.load import device

    place = device()

    def wait() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize()

    tflops = {}
    for dtype in ("float32", "bfloat16"):
        a, b = (torch.randn(SIDE, SIDE, device=place).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        tflops[dtype] = 2 * SIDE**3 / best(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out), wait) / 1e12
    one = torch.ones(COPIED // 4, device=place)
    other = torch.empty_like(one)
    copy = 2 * COPIED / best(lambda: other.copy_(one), wait) / 1e9
    name, flags = processor()
    device_name = torch.cuda.get_device_name() if place.type == "cuda" else place.type
    return Machine(name, os.cpu_count() or 1, torch.get_num_threads(), flags, tflops, copy, device_name, versions())


def versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "trl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
