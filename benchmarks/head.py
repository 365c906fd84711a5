"""The head of a large vocabulary, forward and back: grape's beside autograd's own passes over the same logits, in turns.

python -m benchmarks.head          # seconds, median of five: 832 tokens, width 576, V = 49152 (SmolLM2's), both dtypes
"""

from __future__ import annotations

import os
import statistics
import time
from types import SimpleNamespace

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as stages have it, before torch is there to read it

import torch
from torch import Tensor

from grape.maths.logprob import entropies, log_softmax
from grape.models.forward import Dtype, autocast
from grape.models.head import Head, chunked_logp

TOKENS, WIDTH, VOCABULARY, TURNS = 832, 576, 49152, 5
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")


def autograds(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    """log pi(y) with the entropy as a metric, of all logits at once."""
    logp_all = log_softmax(head(hidden))
    entropies(logp_all.detach())
    return logp_all.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def ours(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    return chunked_logp(head, hidden, ids, torch.ones_like(ids, dtype=torch.bool), 1.0, False)[0]


def main() -> None:
    torch.manual_seed(0)
    head = Head(torch.nn.Linear(WIDTH, VOCABULARY, bias=False), SimpleNamespace())
    ids, weight = torch.randint(0, VOCABULARY, (1, TOKENS)), torch.randn(1, TOKENS)
    for dtype in DTYPES:
        took: dict[str, list[float]] = {"grape": [], "autograd": []}
        for turn in range(TURNS + 1):  # the first warms up
            for name, way in (("grape", ours), ("autograd", autograds)):
                hidden = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
                head.module.weight.grad = None
                began = time.perf_counter()
                with autocast(dtype, ids.device):
                    logp = way(head, hidden, ids)
                (weight * logp).sum().backward()
                took[name] += [time.perf_counter() - began] * (turn > 0)
        each = {name: statistics.median(times) for name, times in took.items()}
        ratio = each["autograd"] / each["grape"]
        print(f"{dtype}: grape {each['grape']:.2f} s, autograd {each['autograd']:.2f} s, {ratio:.2f} times")


if __name__ == "__main__":
    main()
