"""What confidence buys: a clean verifiable item beside a critic item that is pure noise, with honest, constant or wrong confidence.

    python -m benchmarks.grape_confidence                          seeds 0..4
    python -m benchmarks.grape_confidence --write docs/grape.md --plot docs/img/grape_confidence.png

A tiny model knows the right answer and gives it about a third of the time, as noisy demonstrations leave it. The reward has two
items: `true` (the answer is right and ends; a program checks it) and `noise` (a judge that throws dice), three times as heavy
unless `--weights` says otherwise. Three judges of the noise: `calibrated` knows that it does not know (confidence 0.1 against 1),
`constant` says the same for everything, `overconfident` has it the wrong way round (0.95 for the noise, 0.3 for the true item).
Trained by GRAPE, by GRAPE with exponent 0 (rubrics as rewards, RaR) and by GRPO on the sum, from one start, with the same samples
drawn. Measured: the true item on fresh samples, which the table gives after 10, 20 and 40 rounds and the plot after every 5.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import count
from typing import Any

from matplotlib.figure import Figure

from benchmarks import grape_bench as bench
from grape.algorithms import grape, grpo
from grape.randomness import generator
from grape.types import Response, Scores

MARKERS = "<!-- experiments -->", "<!-- /experiments -->"
PLAN = bench.Plan()
JUDGES = {"calibrated": (1.0, 0.1), "constant": (0.7, 0.7), "overconfident": (0.3, 0.95)}  # of the true item, of the noise
ALGORITHMS: dict[str, tuple[Any, Any]] = {
    "GRAPE": (grape, grape.GRAPEParams()),
    "RaR": (grape, grape.GRAPEParams(exponent=0.0)),
    "GRPO on the sum": (grpo, grpo.GRPOParams()),
}


def judge(confidence: tuple[float, float], weight: float, seed: int) -> bench.Judge:
    """Two items; the noise is drawn by seed, round and response, so all algorithms hear the same dice."""
    calls = count()

    def score(responses: Sequence[Response]) -> Scores:
        draws = generator(seed, "noise", next(calls)).random(len(responses))
        rows = [[(bench.right(r), confidence[0]), (float(u), confidence[1])] for r, u in zip(responses, draws, strict=True)]
        return bench.scores(("letters/true", "letters/noise"), rows, (1.0, weight))

    return score


def run(case: bench.Case, seed: int) -> bench.Curves:
    weight, confidence, algorithm = case
    score = judge(JUDGES[confidence], float(weight), seed)
    return bench.curves(*ALGORITHMS[algorithm], score, {"true": bench.right}, PLAN, seed)


def table(results: bench.Results) -> str:
    header = ("noise weight", "confidence", "algorithm", "start", "after 10", "after 20", "after 40", "end minus RaR, paired")
    rows = []
    for (weight, confidence, algorithm), runs in results.items():
        plain = results[(weight, confidence, "RaR")]
        paired = "" if algorithm == "RaR" else bench.spread(bench.less(runs, plain, "true"))
        cells = [bench.spread(bench.column(runs, "true", after // PLAN.every)) for after in (0, 10, 20, 40)]
        rows.append((weight, confidence, algorithm, *cells, paired))
    return bench.markdown(header, rows)


def figure(results: bench.Results) -> Figure:
    """A panel per judge; with several weights a row of panels each."""
    grid = {
        f"right answers (noise weighs {weight})": [
            (f"confidence: {name}", {a: [run["true"] for run in results[(weight, name, a)]] for a in ALGORITHMS}) for name in JUDGES
        ]
        for weight in dict.fromkeys(case[0] for case in results)
    }
    return bench.learning(grid, PLAN.every)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.parser(__doc__)
    parser.add_argument("--weights", type=float, nargs="+", default=[3.0], help="of the noise, the true item has 1")
    given = parser.parse_args(arguments)
    cases = [(f"{weight:g}", name, algorithm) for weight in given.weights for name in JUDGES for algorithm in ALGORITHMS]
    results = bench.results(run, cases, given)
    bench.publish(given, table(results), MARKERS, lambda: figure(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
