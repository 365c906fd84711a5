"""Who writes the rollouts of the rl stage: `rl.engine`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from grape import memory
from grape.algorithms.base import OnlineParams
from grape.errors import GrapeError
from grape.models.forward import Dtype
from grape.models.protocols import LanguageModel
from grape.sampling import Own, RolloutEngine, key_value_bytes
from grape.sampling.handover import hand_over
from grape.sampling.vllm import Vllm
from grape.sampling.vllm_server import VllmServer, executable
from grape.stages.stage import Stage
from grape.training.assemble import Learner

BLOCK = 128  # tokens that vLLM keeps keys and values of together, at most


def refuse_engine(stage: Stage) -> None:
    """Raises GrapeError where the engine that is named cannot start; before any model loads."""
    if stage.params.rl.engine == "vllm":
        executable()


@contextmanager
def engine(stage: Stage, learner: Learner) -> Iterator[RolloutEngine | None]:
    """The engine that `rl.engine` names, in the receipt, for as long as it is needed; None where nothing is sampled."""
    if not isinstance(learner.params, OnlineParams):
        yield None
    elif stage.params.rl.engine == "grape":
        stage.run.tag({"grape.engine": "grape"})
        yield Own(learner.policy, learner.dtype)
    else:
        with tempfile.TemporaryDirectory(prefix="vllm-") as place, _server(stage, learner, Path(place)) as server:
            stage.run.tag({"grape.engine": f"vllm {server.version}"})
            yield Vllm(server, learner.policy, learner.dtype)


def _server(stage: Stage, learner: Learner, place: Path) -> VllmServer:
    log = stage.project.state / "logs" / f"vllm-{stage.name}.log"
    hand_over(learner.policy, place / "weights-0", learner.dtype)
    room = _room(stage, learner.policy, learner.dtype)
    positions = stage.params.model.positions
    print(f"{stage.name}: starting vLLM, which takes a minute or more", flush=True)
    return VllmServer(
        place / "weights-0", place / "server", log, learner.dtype, positions, room, learner.policy.device.type == "cpu"
    )


def _room(stage: Stage, policy: LanguageModel, dtype: Dtype) -> int:
    """Bytes for keys and values: of a round's rows, within a quarter of the memory that is free; of one row at least.

    Raises:
        GrapeError: there is no room for one.
    """
    positions, width = stage.params.model.positions, getattr(torch, dtype).itemsize
    row = key_value_bytes(policy.config, (positions // BLOCK + 2) * BLOCK, width)
    free = memory.free_bytes(policy.device) // 4
    if row > free:
        raise GrapeError(
            f"no room for the keys and values of one row of {positions} tokens: {row >> 20} MiB of {free >> 20} MiB",
            where="params.yaml, model.positions",
            mend="lower it, or set model.dtype: bfloat16",
        )
    return min(free, row * (1 + stage.params.rl.prompts * stage.params.rl.samples))
