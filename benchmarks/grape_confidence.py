"""What confidence buys: a clean verifiable item beside a critic item that is pure noise, with honest, constant or wrong confidence.

    python -m benchmarks.grape_confidence                          seeds 0..4, some minutes on one core
    python -m benchmarks.grape_confidence --write docs/grape.md    and put the table into the page

A tiny model knows the right answer and gives it about a third of the time, as noisy demonstrations leave it. The reward has two
items: `true` (the answer is right and ends; a program checks it) and `noise` (a judge that throws dice), three times as heavy
unless `--weights` says otherwise. Three judges of the noise: `calibrated` knows that it does not know (confidence 0.1 against 1),
`constant` says the same for everything, `overconfident` has it the wrong way round (0.95 for the noise, 0.3 for the true item).
Trained by GRAPE, by GRAPE with exponent 0 (rubrics as rewards, RaR) and by GRPO on the sum, from one start, with the same samples
drawn. Measured: the true item on fresh samples after every 10 rounds. Intervals are t over seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scipy.special import stdtrit  # type: ignore[import-untyped]

from benchmarks.results_table import write
from grape.algorithms import grape, grpo, sft
from grape.models.encode import encode_chat
from grape.models.forward import language
from grape.models.load import character_tokenizer, scratch
from grape.randomness import generator
from grape.sampling import sample
from grape.training.adam import Adam, AdamParams
from grape.training.batches import Actors, Rollout, offline, online
from grape.training.loop import train
from grape.types import Prompt, Response, Scores

MARKERS = "<!-- experiments -->", "<!-- /experiments -->"
PROMPTS = [Prompt(t, "letters", ({"role": "user", "content": t},), t) for t in "abcdefgh"]
ROUNDS, EVERY, SAMPLES = 40, 10, 8
JUDGES = {"calibrated": (1.0, 0.1), "constant": (0.7, 0.7), "overconfident": (0.3, 0.95)}  # of the true item, of the noise
ALGORITHMS: dict[str, tuple[Any, Any]] = {
    "GRAPE": (grape, grape.GRAPEParams()),
    "RaR": (grape, grape.GRAPEParams(exponent=0.0)),
    "GRPO on the sum": (grpo, grpo.GRPOParams()),
}


def right(response: Response) -> float:
    return float(response.finished and response.text == response.prompt.answer)


def judge(confidence: tuple[float, float], weight: float, seed: int) -> Callable[[Sequence[Response]], Scores]:
    """Two items; the noise is drawn by seed, round and response, so all algorithms hear the same dice."""
    calls = iter(range(10**9))

    def score(responses: Sequence[Response]) -> Scores:
        draws = generator(seed, "noise", next(calls)).random(len(responses))
        values = torch.tensor([[right(r), float(u)] for r, u in zip(responses, draws, strict=True)])
        given = torch.tensor([confidence]).expand_as(values)
        weights = torch.tensor([[1.0, weight]]).expand_as(values)
        return Scores(("letters/true", "letters/noise"), values, given, torch.ones_like(values).bool(), weights)

    return score


def start(tokenizer: Any, seed: int) -> Any:
    model = scratch("llama", 2, 32, 2, 64, tokenizer, seed).eval()
    rows = [encode_chat(tokenizer, p.messages, text) for p in PROMPTS
            for text in (str(p.answer), str(p.answer), str(p.answer), "a", "b", "cd", "dc", "ab", "h")]
    source = offline(rows, tokenizer.pad_token_id, 36, ("warm", seed), torch.device("cpu"))
    adam = Adam(model, AdamParams(5e-3, 150))
    train(model, sft.ALGORITHM, sft.ALGORITHM.params(), source, language, adam, steps=150, track=lambda *_: None)
    return model


def measured(model: Any, tokenizer: Any, seed: int) -> float:
    responses = sample(model, tokenizer, PROMPTS, 32, temperature=1.0, max_new_tokens=4, positions=64, keys=("held out", seed))
    return fmean(map(right, responses))


def curve(algorithm: str, confidence: tuple[float, float], weight: float, seed: int) -> list[float]:
    """The true item before training and after every EVERY rounds."""
    module, params = ALGORITHMS[algorithm]
    tokenizer = character_tokenizer(["abcdefgh"])
    model = start(tokenizer, seed)
    values = [measured(model, tokenizer, seed)]
    rollout = Rollout(len(PROMPTS), SAMPLES, 1.0, 4, 64, 8192, 0.0)
    score = judge(confidence, weight, seed)
    source = online(Actors(model, tokenizer), PROMPTS, score, module.ALGORITHM, params, rollout, ("train", seed))

    def track(step: int, metrics: Any) -> None:
        if step % EVERY == 0:
            values.append(measured(model, tokenizer, seed))

    train(model, module.ALGORITHM, params, source, partial(language, temperature=1.0), Adam(model, AdamParams(5e-4, ROUNDS)),
          steps=ROUNDS, track=track)
    return values


def spread(values: Sequence[float]) -> str:
    """`0.81 ± 0.03`, half of a 95 % t interval."""
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{fmean(values):.3f} ± {half:.3f}"


def table(results: dict[tuple[float, str, str], list[list[float]]]) -> str:
    lines = ["| noise weight | confidence | algorithm | start | after 10 | after 20 | after 40 | end minus RaR, paired |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for (weight, confidence, algorithm), runs in results.items():
        plain = results[(weight, confidence, "RaR")]
        paired = "" if algorithm == "RaR" else spread([a[-1] - b[-1] for a, b in zip(runs, plain, strict=True)])
        cells = [spread([run[i] for run in runs]) for i in (0, 1, 2, 4)]
        lines.append(f"| {weight:g} | {confidence} | {algorithm} | {' | '.join(cells)} | {paired} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weights", type=float, nargs="+", default=[3.0], help="of the noise, the true item has 1")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this file")
    given = parser.parse_args()
    results: dict[tuple[float, str, str], list[list[float]]] = {}
    for weight in given.weights:
        for name, confidence in JUDGES.items():
            for algorithm in ALGORITHMS:
                runs = [curve(algorithm, confidence, weight, seed) for seed in range(given.seeds)]
                results[(weight, name, algorithm)] = runs
                print(f"{weight:g} {name} {algorithm}: {spread([run[-1] for run in runs])}", file=sys.stderr, flush=True)
    text = table(results)
    if given.write:
        write(given.write, text, *MARKERS)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
