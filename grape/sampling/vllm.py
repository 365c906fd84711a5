"""The engine `vllm`: tokens from a vLLM server (grape/sampling/vllm_server.py), which gets the policy's weights before every round.

It draws with random numbers of its own, from seeds that follow grape's one rule: sample i of a prompt has the seed
key(keys, prompt) + i, whatever is written beside it. Kernels whose sums depend on the batch may still move a token.
"""

from __future__ import annotations

import asyncio
import shutil
from math import isfinite
from typing import Any

import httpx
import torch

from grape.errors import GrapeError
from grape.models.encode import collate
from grape.models.forward import Dtype, batched_language
from grape.models.protocols import LanguageModel
from grape.randomness import key
from grape.sampling.engine import Told, Wanted, Written
from grape.sampling.handover import hand_over
from grape.sampling.vllm_server import REQUEST_SECONDS, VllmServer

SEEDS = 2**62  # of a 64-bit signed number, with room for i
CHECKED = 8  # rows of a round whose log-probabilities the policy itself is asked for
# Nats a token between the server and the policy, on average. Measured on SmolLM2-135M: 1e-5 in float32; matrices of old weights
# that were forgotten in a reload made it 0.2.
MEAN_OFF = {"float32": 0.01, "bfloat16": 0.1}


def request(wanted: Wanted, p: int, model: str) -> dict[str, Any]:
    """What /v1/completions is asked for the G responses to prompt p: nothing is left to the server's defaults that changes what is
    drawn."""
    return {
        "model": model,
        "prompt": list(wanted.prompts[p]),
        "n": wanted.samples,
        "seed": key(*wanted.keys, wanted.names[p]) % SEEDS,
        "max_tokens": wanted.limits[p],
        "temperature": wanted.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # what ends a response is said here alone
        "stop_token_ids": sorted(wanted.stops),
        "logprobs": 0,  # of the drawn token alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # it has no tokenizer
        "detokenize": False,
    }


def responses(answer: dict[str, Any], wanted: Wanted, p: int) -> list[Written]:
    """The G responses that an answer holds, in the order of their seeds.

    Raises:
        ValueError: it does not hold them.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        found = [Written(list(c["token_ids"]), [float(x) for x in c["logprobs"]["token_logprobs"]]) for c in choices]
        ends = [choice["finish_reason"] for choice in choices]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no answer as vLLM gives it: {type(error).__name__}: {error}") from error
    if len(found) != wanted.samples:
        raise ValueError(f"{len(found)} responses where {wanted.samples} were asked for")
    for (ids, logp), end in zip(found, ends, strict=True):
        if len(ids) != len(logp) or not 1 <= len(ids) <= wanted.limits[p] or not all(map(isfinite, logp)):
            raise ValueError(f"{len(ids)} ids with {len(logp)} log-probabilities, of at most {wanted.limits[p]}")
        whole = ids[-1] in wanted.stops if end == "stop" else len(ids) == wanted.limits[p]
        if end not in ("stop", "length") or not whole:
            raise ValueError(f"a response of {len(ids)} tokens that ended by {end!r}")
    return found


class Vllm:
    """The engine `vllm`. The server computes in `dtype`, and first serves the weights of `server.folder`."""

    def __init__(self, server: VllmServer, policy: LanguageModel, dtype: Dtype) -> None:
        self.server, self.policy, self.dtype = server, policy, dtype
        self.version, self.checked = 0, False

    def follow(self) -> None:
        """Hand the policy's weights over: a folder, loaded in place of the old ones; what was kept of prompts is forgotten."""
        self.version += 1
        folder = self.server.folder.with_name(f"weights-{self.version}")
        try:
            hand_over(self.policy, folder, self.dtype)
            path = {"weights_path": str(folder.absolute())}
            self.server.post("/collective_rpc", {"method": "reload_weights", "kwargs": path})
            if not self.server.post("/reset_prefix_cache").get("success"):
                raise self.server.failed("the vLLM server keeps what older weights made of the prompts")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.checked = False

    def write(self, wanted: Wanted, told: Told | None = None) -> list[Written]:
        if wanted.temperature <= 0 or wanted.greedy:
            raise ValueError("this engine draws; the most likely tokens are grape's own engine's")
        bodies = [request(wanted, p, self.server.name) for p in range(len(wanted.prompts))]
        try:
            answers = asyncio.run(self._all(bodies))
        except httpx.HTTPError as error:
            raise self.server.lost(error) from error
        try:
            groups = [responses(answer, wanted, p) for p, answer in enumerate(answers)]
        except ValueError as error:
            raise self.server.failed(f"the vLLM server answered something else than was asked: {error}") from error
        if groups and not self.checked:
            self._check(wanted, groups)
        return [row for group in groups for row in group]

    async def _all(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All at once: the server itself decides how many rows go together."""
        timeout, limits = httpx.Timeout(REQUEST_SECONDS, connect=60), httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as client:
            asked = [client.post(f"{self.server.url}/v1/completions", json=body) for body in bodies]
            return [self.server.said(response) for response in await asyncio.gather(*asked)]

    def _check(self, wanted: Wanted, groups: list[list[Written]]) -> None:
        """The first answers after a hand-over are compared with the policy's own log-probabilities.

        Raises:
            GrapeError: the server draws from other weights, or from another distribution.
        """
        chosen = [(list(p), group[0]) for p, group in list(zip(wanted.prompts, groups, strict=True))[:CHECKED]]
        rows = collate([(prompt, written.ids) for prompt, written in chosen], wanted.pad).to(self.policy.device)
        own = batched_language(self.policy, rows, wanted.temperature, 1024, self.dtype).logp.cpu()
        said = [torch.tensor(written.logp) for _, written in chosen]
        off = torch.cat([(own[i, : len(x)] - x).abs() for i, x in enumerate(said)])
        # Few tokens say little about their mean. Said so that a NaN does not pass.
        if not float(off.mean()) - 3 * float(off.std(correction=0)) / len(off) ** 0.5 <= MEAN_OFF[self.dtype]:
            raise GrapeError(
                f"vLLM does not draw from the policy: its log-probabilities are off by {float(off.mean()):.2g} nats a token, "
                f"{float(off.max()):.2g} at most, after the weights were handed over; nothing was updated",
                where=f"params.yaml, rl.engine: vllm {self.server.version}, in {self.dtype}",
                mend="set rl.engine: grape; this version of vLLM computes this model otherwise, or does not load its weights anew",
            )
        self.checked = True
