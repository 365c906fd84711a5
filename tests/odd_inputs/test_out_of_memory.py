"""A machine with too little memory: one message that names the knobs, whatever library could not have more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grape import memory
from grape import params as params_file
from grape.errors import GrapeError
from grape.project import Project
from tests.odd_inputs.test_models import run

# All is imported before the limit is set, so that what is short is the memory of the stage's own work.
LIMITED = """
import resource, sys
import grape.stages.base, grape.stages.stage, grape.params, grape.track
from grape.stages.__main__ import main
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
limit = size + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(["base"]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the size of a process is read from /proc")
def test_a_stage_that_really_runs_out_of_memory(project: Project, root: Path) -> None:
    big = ["model.base=scratch", "model.layers=2", "model.width=4096", "model.heads=16", "base.steps=1"]
    params_file.set_values(project.params, big)
    run(project, "prepare")
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED], cwd=project.root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "base: out of memory" in done.stderr and "MiB more could not be had" in done.stderr
    knobs = ["GRAPE_MICRO_BATCH_TOKENS", "model.checkpointing", "model.lora.rank", "model.weights", "grape doctor --fit"]
    places = [done.stderr.find(knob) for knob in knobs]
    assert -1 not in places and places == sorted(places)
    assert not (project.root / "models").exists() and not project.receipt("base").exists()


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.90 GB, max allowed: 18.13 GB). Tried to allocate 256.00 MB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:131] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 4398046511104 bytes."),
    RuntimeError("std::bad_alloc"), MemoryError(), OSError(12, "Cannot allocate memory"),
])  # fmt: skip
def test_what_each_library_says(error: Exception) -> None:
    try:
        raise ValueError("while loading") from error
    except ValueError as outer:
        found = memory.refusal(outer, "sft")
    assert found is not None and found.what.startswith("out of memory") and found.where == "sft" and found.mend


def test_what_is_no_matter_of_memory() -> None:
    for error in (ValueError("out of memory"), RuntimeError("shape"), GrapeError("no"), OSError(2, "No such file")):
        assert memory.refusal(error, "sft") is None
