"""Whose confidence? Confidence that varies from answer to answer, averaged over small groups, over the round or over rounds.

    python -m benchmarks.grape_scope                              seeds 0..4
    python -m benchmarks.grape_scope --write docs/grape.md --plot docs/img/grape_scope.png

Two items that pull in different directions. `right`, weight 1: the answer is right; a critic says so correctly, but how sure it is
of that varies. `thorough`, weight 0.6, a program with confidence 1: the answer names two different letters, which a right answer
never does. So a right answer is worth more than a hedge as long as the critic's mean confidence is above 0.6. Three critics:

    erratic            1 with probability 0.7, else 0.3, whatever the answer        mean 0.79
    unsure of hedges   0.1 of a hedge, 0.9 of all else                              0.8 at the start, 0.9 where nobody hedges
    unsure of right    0.4 of a right answer, 1 of all else                         0.7 at the start, 0.4 where all are right

The scopes come apart in a group of two, of a right answer and a hedge. There the second critic's mean is 0.5 and the hedge wins,
though over the round the mean is above 0.6. The third is the opposite. In such a pair its mean is 0.7 and the right answer wins,
always; over the round it falls below 0.6 once two answers in three are right, and from there on `batch` and `ema` pay for hedges.

Groups of 2, 4 and 8 with 64 samples a round in all cases, and `advantage: leave_one_out`. Half of the start's answers are right and
one in eight is a hedge. Measured: the shares of right answers and of hedges after 80 rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import count

from matplotlib.figure import Figure

from benchmarks import grape_bench as bench
from grape.algorithms import grape
from grape.randomness import generator
from grape.types import Response, Scores

MARKERS = "<!-- scope -->", "<!-- /scope -->"
ROUNDS = 80
DEMONSTRATIONS = (*[bench.RIGHT] * 4, "a", "b", "h", "cd")  # few hedges: every critic's mean begins above the 0.6 of `thorough`
GROUPS = ("2", "4", "8")
SCOPES = ("group", "batch", "ema")
ITEMS, WEIGHTS = ("letters/right", "letters/thorough"), (1.0, 0.6)
# How sure the critic is, from the answer and a uniform number.
CRITICS: dict[str, Callable[[Response, float], float]] = {
    "erratic": lambda response, u: 1.0 if u < 0.7 else 0.3,
    "unsure of hedges": lambda response, u: 0.1 if bench.hedge(response) else 0.9,
    "unsure of right": lambda response, u: 0.4 if bench.right(response) else 1.0,
}


def judge(critic: str, seed: int) -> bench.Judge:
    """What is drawn depends on seed, round and response: all scopes meet the same moods."""
    calls = count()

    def score(responses: Sequence[Response]) -> Scores:
        draws = generator(seed, "moods", next(calls)).random(len(responses))
        sure = [CRITICS[critic](response, float(u)) for response, u in zip(responses, draws, strict=True)]
        rows = [[(bench.right(r), c), (bench.hedge(r), 1.0)] for r, c in zip(responses, sure, strict=True)]
        return bench.scores(ITEMS, rows, WEIGHTS)

    return score


def run(case: bench.Case, seed: int) -> bench.Curves:
    critic, samples, scope = case
    params = grape.GRAPEParams.model_validate({"scope": scope, "advantage": "leave_one_out"})
    plan = bench.Plan(rounds=ROUNDS, every=ROUNDS // 4, samples=int(samples), demonstrations=DEMONSTRATIONS)
    return bench.curves(grape, params, judge(critic, seed), {"right": bench.right, "hedges": bench.hedge}, plan, seed)


def table(results: bench.Results) -> str:
    header = ("critic", "$G$", "`scope`", "right: start", f"after {ROUNDS}", "minus `group`, paired", f"hedges after {ROUNDS}")
    rows = []
    for (critic, samples, scope), runs in results.items():
        paired = "" if scope == "group" else bench.spread(bench.less(runs, results[(critic, samples, "group")], "right"))
        rows.append(
            (
                critic,
                samples,
                f"`{scope}`",
                bench.spread(bench.column(runs, "right", 0)),
                bench.spread(bench.column(runs, "right")),
                paired,
                bench.spread(bench.column(runs, "hedges")),
            )
        )
    return bench.markdown(header, rows)


def figure(results: bench.Results) -> Figure:
    panels: list[bench.Panel] = [
        (f"critic: {critic}", {scope: [bench.column(results[(critic, g, scope)], "right") for g in GROUPS] for scope in SCOPES})
        for critic in CRITICS
    ]
    return bench.ends(f"right answers after {ROUNDS} rounds", panels, "answers per group, G", GROUPS)


def main(arguments: Sequence[str] | None = None) -> int:
    given = bench.parser(__doc__).parse_args(arguments)
    cases = [(critic, samples, scope) for critic in CRITICS for samples in GROUPS for scope in SCOPES]
    results = bench.results(run, cases, given)
    bench.publish(given, table(results), MARKERS, lambda: figure(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
