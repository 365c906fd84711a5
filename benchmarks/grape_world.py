"""GRAPE in the default world: its variants, GRPO on the sum, and PPO with a learned reward model, at equal samples.

    python -m benchmarks.grape_world ../world                                    seeds 0..4, about an hour on two cores
    python -m benchmarks.grape_world ../world --write docs/grape.md --plot docs/img/grape_world.png
    python -m benchmarks.grape_world ../revise --preset revise        in the world whose SFT data has second turns

Makes a project in an empty folder (`grape init`), or goes on with the one that is there, and runs in it

    grape run compare --algorithms grape,rar,grape_ema,grape_revise,grape_distil,grpo,ppo_rm --seeds 0,1,2,3,4

where the names that are not grape's own stand for settings, see VARIANTS. All start from one SFT policy, with the same number of
samples a round; a revision is one of them. Gold score on test prompts; intervals are t over seeds, paired for differences. With
`--preset revise` the algorithms are those of MENDING, chosen, as the preset's numbers, before any of its runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats  # type: ignore[import-untyped]

from benchmarks.results_table import write

GRAPE, PPO = "grape.algorithms.grape:ALGORITHM", "grape.algorithms.ppo:ALGORITHM"
Variants = dict[str, tuple[str, dict[str, Any]]]
VARIANTS: Variants = {
    "grape": ("GRAPE", {}),
    "rar": ("confidence ignored (RaR)", {"use": GRAPE, "exponent": 0.0}),
    "grape_ema": ("confidence from earlier rounds", {"use": GRAPE, "scope": "ema"}),
    "grape_revise": ("a quarter revised, second turn", {"use": GRAPE, "revise": 0.25}),
    "grape_distil": ("a quarter revised, distilled", {"use": GRAPE, "revise": 0.25, "revision": "distil"}),
    "grpo": ("GRPO on the sum", {}),
    "ppo_rm": ("PPO with the reward model", {"use": PPO, "reward": "reward_model", "epochs": 1, "learning_rate": 2e-4}),
}
MENDING = {name: VARIANTS[name] for name in ("grape", "grape_revise", "grape_distil")} | {
    "grape_distil_half": ("half revised, distilled", {"use": GRAPE, "revise": 0.5, "revision": "distil"})
}
WORLDS = {"default": VARIANTS, "revise": MENDING}  # by preset
LAST = 10  # rounds that `mended` is the mean over


def run(folder: Path, preset: str, seeds: Sequence[int]) -> None:
    """The comparison; what DVC has from before is not computed again."""
    variants = WORLDS[preset]
    grape = str(Path(sys.executable).with_name("grape"))
    if not (folder / "params.yaml").exists():
        subprocess.run([grape, "init", "--preset", preset, str(folder)], check=True)
    sets = [
        argument
        for name, (_, knobs) in variants.items()
        if knobs
        for argument in ("--set", f"algorithms.{name}={json.dumps(knobs)}")
    ]
    names = ["--algorithms", ",".join(variants), "--seeds", ",".join(map(str, seeds))]
    subprocess.run([grape, "run", "compare", *sets, *names], cwd=folder, check=True)


def runs(metrics: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The policies of an algorithm in order of their seeds."""
    return sorted((p for p in metrics["policies"].values() if p["algorithm"] == name), key=lambda p: int(p["seed"]))


def spread(values: Sequence[float]) -> str:
    """Mean and half of a 95 % t interval."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{fmean(values):.3f} ± {half:.3f}"


def against(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean difference with a paired t interval: with one seed all algorithms see the same prompts and uniform numbers."""
    if len(values) < 2:
        return f"{fmean(values) - fmean(others):+.3f}"
    interval = stats.ttest_rel(values, others).confidence_interval(0.95)
    return f"{fmean(values) - fmean(others):+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def mended(folder: Path, name: str, seed: int) -> float | None:
    """How much better revisions score than what they revise, mean over the last rounds of a run; None: it has none."""
    lines = (folder / f"reports/train/rl/{name}-{seed}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [gain for line in lines if (gain := json.loads(line).get("revision/gain")) is not None]
    return fmean(found[-LAST:]) if found else None


def table(folder: Path, metrics: dict[str, Any], variants: Variants) -> str:
    head = ("", "gold", "minus SFT", "minus GRAPE", "revised", "rubric", "KL", "length", "seconds", "MiB")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    first = [run["gold"] for run in runs(metrics, "grape")]
    for name, (words, _) in variants.items():
        own = runs(metrics, name)
        gains = [gain for run in own if (gain := mended(folder, name, int(run["seed"]))) is not None]
        cost = metrics["algorithms"][name]
        cells = (
            words,
            spread([run["gold"] for run in own]),
            spread([run["difference"]["gold"] for run in own]),
            "" if name == "grape" else against([run["gold"] for run in own], first),
            f"{fmean(gains):+.3f}" if gains else "",
            f"{fmean(run['proxy'] for run in own):.3f}",
            f"{fmean(run['kl_sequence'] for run in own):.2f}",
            f"{fmean(run['length'] for run in own):.1f}",
            f"{cost['seconds']:.0f}",
            f"{cost['memory_mb']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    seeds = ", ".join(str(run["seed"]) for run in runs(metrics, "grape"))
    note = f"*SFT: gold {metrics['sft']['gold']:.3f}. Seeds {seeds}; revised: how much better a revision scores than what it"
    more = (
        f"revises, by the rubric, last {LAST} rounds; KL in nats per response; seconds of one run's rounds; MiB: its largest peak.*"
    )
    return "\n".join([*lines, "", f"{note} {more}"])


def plot(metrics: dict[str, Any], variants: Variants, path: Path) -> None:
    """The difference to SFT: a point per seed, the mean with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), dpi=160, layout="constrained")
    axis = figure.subplots()
    for place, (name, (words, _)) in enumerate(variants.items()):
        values = [run["difference"]["gold"] for run in runs(metrics, name)]
        half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        colour = "#0072b2" if words.startswith("GRAPE") else "#56b4e9" if name.startswith(("grape", "rar")) else "#d55e00"
        axis.plot(values, [place] * len(values), ".", color=colour, alpha=0.5)
        axis.errorbar(fmean(values), place, xerr=half, fmt="o", color=colour, capsize=3)
    axis.axvline(0, color="#888888", linewidth=1)
    axis.set_yticks(range(len(variants)), [words for words, _ in variants.values()])
    axis.invert_yaxis()
    axis.set_xlabel("gold score minus SFT's, held out (dots: seeds; bars: 95 % t interval)")
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the project to make, or to go on with")
    parser.add_argument("--preset", choices=WORLDS, default="default", help="the world, and with it what is compared")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only-read", action="store_true", help="run nothing, take the report that is there")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this file")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    given = parser.parse_args()
    if not given.only_read:
        run(given.folder, given.preset, range(given.seeds))
    metrics = json.loads((given.folder / "reports/metrics.json").read_text(encoding="utf-8"))
    variants, name = WORLDS[given.preset], "world" if given.preset == "default" else given.preset
    if given.plot:
        plot(metrics, variants, given.plot)
    text = table(given.folder, metrics, variants)
    if given.write:
        write(given.write, text, f"<!-- {name} -->", f"<!-- /{name} -->")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
