"""What an answer's own confidence invites: a policy that learns to leave its judge in doubt.

    python -m benchmarks.grape_gaming                              seeds 0..4
    python -m benchmarks.grape_gaming --write docs/grape.md --plot docs/img/grape_gaming.png

Two items of weight 1. `short` is easy: the answer ends within two letters; a program checks it, confidence 1. `right` is judged by
an honest critic: to a single letter it gives p = 0.9 where it is right and 0.1 where it is wrong, and its confidence is |2p - 1| =
0.8; of a hedge, an answer of two different letters, it cannot tell much: p = 0.45, confidence 0.1. A hedge is never right. R of an
answer, weighted by its own confidence (`scope: sample`) and, beside it, by an item's confidence of 0.8 (nobody hedges):

    right  (1 + 0.8 * 0.90) / 1.8 = 0.956      0.956
    wrong  (1 + 0.8 * 0.10) / 1.8 = 0.600      0.600
    hedge  (1 + 0.1 * 0.45) / 1.1 = 0.950      0.756

So with its own confidence a policy should hedge unless it is right 98 times in 100, with the item's unless it is right 44 times in
100 (as it is with equal confidences, RaR: the critic does give a hedge half a point, and no weighting cures that).

How often can it be right? `known` is how often the letter of the prompt is the right answer. In the other cases it is one of the
seven other letters, drawn anew for every prompt and round and to be seen nowhere, so nobody can be right more often than `known`.
1: can be learned in full, with time. 0.7: cannot be, and committing oneself is still worth it. 0.3: it is not.

Measured: the probability that an answer is right, over what is hidden, and the share of hedges. A third of the start's answers are
hedges, from two-letter answers among the demonstrations. RaR is exponent 0.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from itertools import count

from matplotlib.figure import Figure

from benchmarks import grape_bench as bench
from grape.algorithms import grape
from grape.randomness import generator
from grape.types import Response, Scores

MARKERS = "<!-- gaming -->", "<!-- /gaming -->"
PLAN = bench.Plan(rounds=60)
KNOWN = ("1", "0.7", "0.3")
SCOPES = {
    "sample": {"scope": "sample"},
    "group": {"scope": "group"},
    "batch": {"scope": "batch"},
    "ema": {"scope": "ema"},
    "RaR": {"exponent": 0.0},
}
ITEMS = "letters/short", "letters/right"


def params(name: str) -> grape.GRAPEParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of `scope: sample`, and what it warns of is the experiment
        return grape.GRAPEParams.model_validate(SCOPES[name])


def short(response: Response) -> float:
    return float(response.finished and 1 <= len(response.text) <= 2)


def verdict(response: Response, answer: str) -> tuple[float, float]:
    """The critic's p and its confidence |2p - 1|."""
    p = 0.45 if bench.hedge(response) else 0.9 if response.finished and response.text == answer else 0.1
    return p, abs(2 * p - 1)


def hidden(letter: str, known: float, seed: int, call: int) -> str:
    """What the right answer is this time."""
    draw = generator(seed, "hidden", call, letter)
    others = [other for other in bench.LETTERS if other != letter]
    return letter if draw.random() < known else others[int(draw.integers(len(others)))]


def judge(known: float, seed: int) -> bench.Judge:
    calls = count()

    def score(responses: Sequence[Response]) -> Scores:
        call = next(calls)
        answers = {letter: hidden(letter, known, seed, call) for letter in bench.LETTERS}
        rows = [[(short(r), 1.0), verdict(r, answers[r.prompt.text])] for r in responses]
        return bench.scores(ITEMS, rows, (1.0, 1.0))

    return score


def chance(response: Response, known: float) -> float:
    """The probability that the answer is right, over what is hidden."""
    if not response.finished or len(response.text) != 1 or response.text not in bench.LETTERS:
        return 0.0
    return known if bench.right(response) else (1 - known) / (len(bench.LETTERS) - 1)


def run(case: bench.Case, seed: int) -> bench.Curves:
    known, scope = float(case[0]), case[1]
    measures: dict[str, bench.Measure] = {"right": lambda r: chance(r, known), "hedges": bench.hedge}
    return bench.curves(grape, params(scope), judge(known, seed), measures, PLAN, seed)


def table(results: bench.Results) -> str:
    header = (
        "known",
        "confidence",
        "right: start",
        f"after {PLAN.rounds // 3}",
        f"after {PLAN.rounds}",
        "minus `group`, paired",
        "hedges: start",
        f"after {PLAN.rounds // 3}",
        f"after {PLAN.rounds}",
    )
    places = (0, PLAN.rounds // 3 // PLAN.every, -1)
    rows = []
    for (known, scope), runs in results.items():
        answers, hedges = ([bench.spread(bench.column(runs, name, i)) for i in places] for name in ("right", "hedges"))
        paired = "" if scope == "group" else bench.spread(bench.less(runs, results[(known, "group")], "right"))
        rows.append((known, scope if scope == "RaR" else f"`{scope}`", *answers, paired, *hedges))
    return bench.markdown(header, rows)


def figure(results: bench.Results) -> Figure:
    def panels(measure: str) -> list[bench.Panel]:
        return [
            (
                f"right answer known: {float(known):.0%}" if measure == "right" else "",
                {scope: [run[measure] for run in results[(known, scope)]] for scope in SCOPES},
            )
            for known in KNOWN
        ]

    return bench.learning({"right answers": panels("right"), "hedges": panels("hedges")}, PLAN.every)


def main(arguments: Sequence[str] | None = None) -> int:
    given = bench.parser(__doc__).parse_args(arguments)
    results = bench.results(run, [(known, scope) for known in KNOWN for scope in SCOPES], given)
    bench.publish(given, table(results), MARKERS, lambda: figure(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
