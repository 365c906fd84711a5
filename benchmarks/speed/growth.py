"""How grape's step grows with the batch, the group, the prompt, the completion and the model: one of them is changed at a time.

python -m benchmarks.speed.growth JOB      JOB: JSON of `Job`; a process that takes a step of each shape in turn
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed.gate import Gate
from benchmarks.speed.work import LONG, NEW, PROMPT, PROMPTS, SAMPLES, Work


@dataclass(frozen=True)
class Shape:
    """Prompts of a round, completions of a prompt, tokens of a prompt (about), and of a completion; share of the model's blocks."""

    prompts: int = PROMPTS
    samples: int = SAMPLES
    prompt: int = PROMPT
    new: int = NEW
    blocks: float = 1.0


BASE = Shape()
SHAPES = [
    replace(BASE, samples=4),
    BASE,
    replace(BASE, samples=16),
    replace(BASE, prompts=2),
    replace(BASE, prompts=8),
    replace(BASE, prompt=2 * PROMPT),
    replace(BASE, new=16),
    replace(BASE, new=64),
    replace(BASE, blocks=0.5),
]


@dataclass(frozen=True)
class Job:
    """work: the file; the one with longer prompts lies beside it."""

    work: str
    dtype: str
    micro: int = 1024


def run(job: Job, gate: Gate) -> None:
    """One policy and one optimiser for all shapes: a second one would not fit into the memory of a small machine."""
    from benchmarks.speed import ours
    from grape.algorithms import grpo
    from grape.training.assemble import assemble
    from grape.training.sampler import Sampling

    work = Work.read(Path(job.work))
    far = Work.read(Path(job.work).with_name(LONG))
    policy, chat = ours.talker(work)
    params = grpo.GRPOParams(aggregation="dapo", beta=0.0)
    learner = assemble(grpo.ALGORITHM, params, policy, ours.Job("grpo", job.work, job.dtype, job.micro).adam(work))  # type: ignore[arg-type]

    def source(shape: Shape) -> Any:
        given = far if shape.prompt > PROMPT else work
        how = Sampling(shape.prompts, shape.samples, 1.0, shape.new, ours.room(given, shape.new), job.micro, 0.0)
        return ours.watched(learner.rollouts(chat, ours.asked(given), ours.score, how, (*ours.KEYS, shape)), gate)

    sources = {shape: source(shape) for shape in SHAPES}
    policy.eval()
    fit = cutter(policy)
    gate.wait()
    for step in range(ours.FOREVER):
        for shape, made in sources.items():
            fit(shape.blocks)
            batch = made(step, {}).batch
            learner.optimiser.update(learner.forward, lambda out, part: grpo.loss(out, part, params), batch, (step,))
            gate.wait()


def cutter(policy: Any) -> Callable[[float], None]:
    """What leaves the model the first blocks, that share of them (one at least); their weights stay the same ones."""
    from torch.nn import ModuleList

    config = policy.config.get_text_config()
    owner, name, blocks = next(
        (module, name, child)
        for module in policy.modules()
        for name, child in module.named_children()
        if isinstance(child, ModuleList) and len(child) == config.num_hidden_layers
    )

    def cut(share: float) -> None:
        config.num_hidden_layers = max(1, round(share * len(blocks)))
        setattr(owner, name, blocks[: config.num_hidden_layers])

    return cut


if __name__ == "__main__":
    run(Job(**json.loads(sys.argv[1])), Gate.of_process())
