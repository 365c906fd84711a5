"""Threads and a small model: an SFT step and a round of sampling on one thread, and on all of them with sleeping and with spinning
waits; alone, and beside a process that keeps one core busy.

    python benchmarks/threads.py            # two minutes

Prints the median and the longest of each, in milliseconds, in one run. Because of what this shows on small machines grape sets
OMP_WAIT_POLICY=PASSIVE (grape/project.py) and gives small models one thread (grape/models/load.py): all threads are a fifth
faster where they spin and every core is theirs, and several times as slow where one is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

STEPS = 25
# libgomp: threads that wait sleep at once, spin for a while (what PyTorch does where nothing is set), or spin on.
POLICIES = ("PASSIVE", "", "ACTIVE")


def measure() -> None:
    """Steps with the environment this process was given."""
    import torch

    from grape.algorithms.sft import ALGORITHM
    from grape.models.encode import collate
    from grape.models.forward import language
    from grape.models.scratch import character_tokenizer, scratch
    from grape.sampling import Own, Wanted
    from grape.training.adam import Adam, AdamParams
    from grape.types import Batch

    threads = torch.get_num_threads()
    model = scratch("llama", 3, 96, 3, 256, character_tokenizer([]), 0)
    torch.set_num_threads(threads)  # scratch() has just chosen one: here it is what is measured
    generator = torch.Generator().manual_seed(0)
    rows = [([2], torch.randint(4, 90, (40,), generator=generator).tolist()) for _ in range(64)]
    batch, adam = Batch.of(collate(rows, 0)), Adam(model, AdamParams(1e-3, STEPS))
    prompts = [row for _, row in rows[:4]]
    wanted = Wanted(prompts, ["a", "b", "c", "d"], [32] * 4, 8, 1.0, ("threads",), frozenset(), 0)

    def sft() -> None:
        adam.update(lambda part: language(model, part), lambda out, part: ALGORITHM.loss(out, part, ALGORITHM.params()), batch)

    def sampling() -> None:
        Own(model).write(wanted)

    print("SFT", timed(sft), "  sampling", timed(sampling))


def timed(step: Callable[[], None]) -> str:
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - began))
    times = sorted(times[5:])
    return f"{times[len(times) // 2]:5.0f} (longest {times[-1]:5.0f})"


def main() -> None:
    for beside in (False, True):
        print("beside a busy process:" if beside else "alone:")
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside else None
        try:
            for threads, policy in ((1, POLICIES[0]), *((os.cpu_count(), policy) for policy in POLICIES)):
                environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
                environment = {name: value for name, value in environment.items() if value}
                print(f"  {threads} threads, OMP_WAIT_POLICY {policy or 'unset':<8}", end=" ", flush=True)
                subprocess.run([sys.executable, __file__, "measure"], env=environment, check=True)
        finally:
            if busy:
                busy.kill()


if __name__ == "__main__":
    measure() if "measure" in sys.argv else main()
