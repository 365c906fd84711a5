"""The engine `vllm` with a real server, where GRAPE_VLLM names one: what it says is what the policy says, before an update and
after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from grape.errors import GrapeError
from grape.models.encode import collate
from grape.models.forward import batched_language
from grape.models.lora import LoRA, adapt
from grape.sampling import Wanted, Written
from grape.sampling.handover import hand_over
from grape.sampling.vllm import Vllm
from grape.sampling.vllm_server import VARIABLE, VllmServer
from tests import tiny

PROGRAM = os.environ.get("VLLM_FOR_TESTS", "")  # tests/conftest.py takes every GRAPE_ variable away
pytestmark = [
    pytest.mark.skipif(not PROGRAM, reason="GRAPE_VLLM names no vllm program (docs/sampling.md)"),
    pytest.mark.timeout(900),
]
PROMPTS = ([5, 6, 7], [9] * 14, [8, 4, 11, 30, 12], [13])
STOP = 2


def wanted(**changes: Any) -> Wanted:
    given: dict[str, Any] = {"samples": 4, "temperature": 0.8, "keys": ("t",), "stops": frozenset({STOP}), "pad": 0}
    return Wanted(PROMPTS, [f"p{i}" for i in range(len(PROMPTS))], [20, 12, 20, 16], **given | changes)


def off(policy: Any, rows: list[Written], temperature: float = 0.8) -> float:
    """The largest difference of any token, nats."""
    tokens = collate([(list(PROMPTS[i // 4]), row.ids) for i, row in enumerate(rows)], 0)
    own = batched_language(policy, tokens, temperature, 4096).logp
    return max(float((own[i, : len(row.ids)] - torch.tensor(row.logp)).abs().max()) for i, row in enumerate(rows))


@pytest.fixture(scope="module")
def policy() -> Any:
    return tiny.model(width=64)  # heads of 32: vLLM has no attention for 16 on a CPU


@pytest.fixture(scope="module")
def served(policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    place = tmp_path_factory.mktemp("vllm")
    hand_over(policy, place / "weights-0", "float32")
    os.environ[VARIABLE] = PROGRAM
    with VllmServer(place / "weights-0", place / "server", place / "logs" / "vllm.log", "float32", 64, 1 << 27, True) as server:
        yield Vllm(server, policy, "float32")


def test_it_draws_from_the_policy_and_the_same_again(served: Vllm, policy: Any) -> None:
    rows = served.write(wanted())
    assert off(policy, rows) < 1e-3
    assert len(rows) == 16 and [r.ids for r in rows] == [r.ids for r in served.write(wanted())]
    assert len({tuple(r.ids) for r in rows[:4]}) > 1 and rows != served.write(wanted(keys=("u",)))
    assert all((r.ids[-1] == STOP) != (STOP not in r.ids) and r.ids.count(STOP) <= 1 for r in rows)
    alone = served.write(wanted().part([2]))  # its seeds are its own, whoever is beside
    assert [r.ids for r in alone] == [r.ids for r in rows[8:12]]


def test_after_an_update_it_draws_from_the_new_weights_and_old_ones_are_refused(served: Vllm, policy: Any) -> None:
    served.write(wanted())
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(noise * parameter.std(correction=0) * 0.3)
    assert off(policy, served.write(wanted())) > 0.1
    served.checked = False  # as after a hand-over that did nothing
    with pytest.raises(GrapeError, match="does not draw from the policy"):
        served.write(wanted())
    served.follow()
    assert off(policy, served.write(wanted())) < 1e-3


def test_adapters_are_handed_over_merged(served: Vllm) -> None:
    adapted = adapt(tiny.model(seed=3, width=64), LoRA(rank=4, alpha=None, targets="all-linear"), 0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    served.policy = adapted
    served.follow()
    assert off(adapted, served.write(wanted())) < 1e-3


def test_its_end_in_mid_run_is_one_message_and_leaves_nothing(served: Vllm) -> None:
    import psutil

    guard = psutil.Process(served.server._process.pid)  # type: ignore[union-attr]
    below = guard.children(recursive=True)
    next(p for p in below if "vllm" in " ".join(p.cmdline())).kill()
    with pytest.raises(GrapeError, match="ended in mid-run"):
        served.write(wanted())
    assert not psutil.wait_procs(below, timeout=60)[1]
