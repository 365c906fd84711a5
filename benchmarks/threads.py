"""Threads and a small model: step times on one thread, and on all of them with spinning and with sleeping waits.

    python benchmarks/threads.py

Prints the median and the longest step of each setting beside a busy process, in one run. Because of what this shows on small
machines grape sets OMP_WAIT_POLICY=PASSIVE (grape/project.py) and gives small models one thread (grape/models/load.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

STEPS = 25


def measure() -> None:
    """Steps of SFT on random rows with the environment this process was given."""
    import torch

    from grape.algorithms.sft import ALGORITHM
    from grape.models.encode import collate
    from grape.models.forward import language
    from grape.models.scratch import character_tokenizer, scratch
    from grape.training.adam import Adam, AdamParams
    from grape.types import Batch

    threads = torch.get_num_threads()
    model = scratch("llama", 3, 128, 4, 256, character_tokenizer([]), 0)
    torch.set_num_threads(threads)  # scratch() has just chosen one: here it is what is measured
    generator = torch.Generator().manual_seed(0)
    rows = [([2], torch.randint(4, 90, (40,), generator=generator).tolist()) for _ in range(64)]
    batch, adam, times = Batch.of(collate(rows, 0)), Adam(model, AdamParams(1e-3, STEPS, micro_batch_tokens=2048)), []
    for _ in range(STEPS):
        began = time.perf_counter()
        adam.update(lambda part: language(model, part), lambda out, part: ALGORITHM.loss(out, part, ALGORITHM.params()), batch)
        times.append(time.perf_counter() - began)
    times = sorted(times[5:])
    print(f"median {times[len(times) // 2]:.3f} s, longest {times[-1]:.3f} s")


if __name__ == "__main__":
    if "measure" in sys.argv:
        measure()
    else:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            for policy, threads in (("PASSIVE", 1), ("ACTIVE", os.cpu_count()), ("PASSIVE", os.cpu_count())):
                environment = {**os.environ, "OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
                print(f"{threads} threads, OMP_WAIT_POLICY={policy:<8}", end=" ", flush=True)
                subprocess.run([sys.executable, __file__, "measure"], env=environment, check=True)
        finally:
            busy.kill()
