"""Inputs of the report as the other stages write them, made up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grape.report import drawing

ITEMS = {"arithmetic": ("correct", "short"), "letters": ("correct", "format"), "courtesy": ("names", "asks", "polite")}
HOSTILE = "<script>alert('x')</script> & | `code` ```"
GAIN = {"grpo": 0.28, "reinforce": 0.02, "trpo": -0.1}


def interval(mean: float, half: float = 0.03) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def side(score: float, gold: bool, shift: float = 0.0) -> dict[str, Any]:
    categories = {
        name: {
            "n": 100,
            "gold": interval(score + 0.08 * (i - 1), 0.05) if gold else None,
            "proxy": interval(score + 0.05 + 0.08 * (i - 1), 0.05),
        }
        for i, name in enumerate(ITEMS)
    }
    items = {
        f"{category}/{item}": {
            "score": score + 0.04 * i,
            "confidence": 0.9 - 0.1 * i,
            "missing": 0.01 * i,
            "spread": 0.2,
            "length_correlation": 0.1,
        }
        for category, names in ITEMS.items()
        for i, item in enumerate(names)
    }
    overlap = [
        {"a": f"{category}/{a}", "b": f"{category}/{b}", "correlation": 0.3}
        for category, names in ITEMS.items()
        for a, b in combinations(names, 2)
    ]
    return {
        "gold": interval(score) if gold else None,
        "proxy": interval(score + 0.05),
        "greedy": {"gold": score + 0.1 if gold else None, "proxy": score + 0.12},
        "length": 9.0 + shift,
        "finished": 0.97,
        "entropy": 0.9 - shift / 4,
        "pass_at": {"1": score, "4": min(1.0, score + 0.2)},
        "categories": categories,
        "items": items,
        "overlap": overlap,
    }


def evaluation(algorithm: str, seed: int, gold: bool, split: str = "test") -> dict[str, Any]:
    gain = GAIN.get(algorithm, 0.1) + 0.01 * seed
    return {
        "split": split,
        "data": f"md5 of {split}",
        "weights": f"md5 of {algorithm}-{seed}",
        "algorithm": algorithm,
        "seed": seed,
        "prompts": 300,
        "samples": 4,
        "sft": side(0.55, gold),
        "policy": side(0.55 + gain, gold, shift=1.0),
        "difference": {"gold": interval(gain) if gold else None, "proxy": interval(gain + 0.03)},
        "win_rate": {**interval(0.5 + gain), "judge": "gold" if gold else "proxy"},
        "kl": {"token": 0.05 + abs(gain) / 4, "sequence": 0.6 + 2 * abs(gain)},
    }


def draws(number: int, gain: float) -> list[float]:
    """Four answers' scores: what the prompt is worth, the gain, and which draw it is."""
    return [round(min(1.0, max(0.0, 0.2 + 0.04 * (number * 7 % 10) + gain + 0.05 * ((number + g) % 3))), 6) for g in range(4)]


def sample(number: int, category: str, gold: bool, gain: float = 0.1) -> dict[str, Any]:
    items = {
        policy: [
            {"item": item, "score": 0.25 * (number % 5), "confidence": 0.8, "reason": f"{policy} {number} {item} because {HOSTILE}"}
            for item in ITEMS[category]
        ]
        for policy in ("sft", "policy")
    }
    texts = {
        "arithmetic": ("The answer is 9.", "8"),
        "letters": ("e", "f"),
        "courtesy": (f"give me it {HOSTILE}", "Dear Mary, could you please lend me your pen?\nThank you!"),
    }
    before, after = texts[category]
    score = (number * 7 % 10) / 10
    scores = {
        side: {"gold": draws(number, more) if gold else None, "proxy": draws(number, more)}
        for side, more in (("sft", 0.0), ("policy", gain))
    }
    return {
        "id": f"{category}-{number}",
        "category": category,
        "prompt": f"Question {number} about {category}?",
        "answer": "8" if category == "arithmetic" else None,
        "sft": {"text": before, "gold": 0.3 if gold else None, "proxy": 0.4, "items": items["sft"]},
        "policy": {"text": after, "gold": score if gold else None, "proxy": score, "items": items["policy"]},
        "draws": scores,
    }


def rl_record(algorithm: str, step: int, steps: int, gain: float, noise: float) -> dict[str, float]:
    progress = 1 - math.exp(-4 * step / steps)
    record = {
        "step": step,
        "loss": noise / 10,
        "reward": 0.5 + gain * progress + noise,
        "reward_std": 0.3,
        "kl": 0.1 * progress + noise / 20,
        "entropy": 0.9 - 0.3 * progress + noise,
        "completions/mean_length": 9 + progress + 5 * noise,
        "completions/finished": 0.97,
        "frac_reward_zero_std": 0.1 + 0.2 * progress,
        "grad_norm": 0.4 + noise,
        "learning_rate": 1e-4,
        "num_samples": 128.0,
        "num_tokens": 4000.0 + 40 * step,
        "step_time": 1.25,
        "num_updates": 2.0,
    }
    for category, names in ITEMS.items():
        record[f"reward/{category}"] = 0.5 + gain * progress + noise
        for index, item in enumerate(names):
            name = f"rubric/{category}/{item}"
            record[f"rewards/{category}/{item}/mean"] = 0.5 + gain * progress + 0.06 * index + noise
            record |= {
                f"{name}/confidence": 0.9 - 0.1 * index + noise / 5,
                f"{name}/failure_rate": 0.0,
                f"{name}/spread": 0.3 - 0.2 * progress + 0.02 * index + noise / 2,
            }
            if (step + index) % 3:  # in some rounds one of the two does not vary
                record[f"{name}/length_correlation"] = 0.1 * index + 4 * noise
            if algorithm == "grape":
                record |= {
                    f"{name}/weight": (1 + 0.2 * (index - (len(names) - 1) / 2) * progress) / len(names),
                    f"{name}/advantage": 0.05 + 0.02 * index + noise / 2,
                }
    if algorithm == "grape":
        record |= {
            "grape/reward": 0.52 + gain * progress + noise,
            "unsure": 0.0,
            "revision/share": 0.25,
            "revision/gain": 0.1 * progress,
            "revision/accepted": 0.5 + noise,
            "hack_rate": 0.0,
        }
    return record


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawing.STYLE, "figure.dpi", 40)  # drawing is most of the time, and fineness is not tested


@pytest.fixture
def make_reports(tmp_path: Path) -> Callable[..., Path]:
    """Writes reports/ of algorithms x seeds below tmp_path, which it returns."""

    def make(
        algorithms: Sequence[str] = ("grpo",),
        seeds: Sequence[int] = (0, 1, 2),
        gold: bool = True,
        steps: int = 60,
        samples: int = 12,
    ) -> Path:
        noise = np.random.default_rng(0)
        reports = tmp_path / "reports"
        for algorithm in algorithms:
            for seed in seeds:
                name = f"{algorithm}-{seed}"
                gain = GAIN.get(algorithm, 0.1) + 0.01 * seed
                for kind, split in (("evaluate", "validation"), ("test", "test")):
                    folder = reports / kind / name
                    folder.mkdir(parents=True)
                    (folder / "metrics.json").write_text(json.dumps(evaluation(algorithm, seed, gold, split)))
                    write_lines(folder / "samples.jsonl", [sample(n, c, gold, gain) for c in ITEMS for n in range(samples)])
                write_lines(
                    reports / "train" / "rl" / f"{name}.jsonl",
                    [
                        rl_record(algorithm, step, steps, GAIN.get(algorithm, 0.1), float(noise.normal(0, 0.02)))
                        for step in range(steps)
                    ],
                )
        for stage in ("prepare", "preferences"):
            write_lines(reports / "train" / f"{stage}.jsonl", [{"step": 0, "rows/kept": 100.0, "dropped/leakage": 0.0}])
        for stage in ("base", "sft", "critic", "reward"):
            write_lines(
                reports / "train" / f"{stage}.jsonl",
                [{"step": step, "loss": 2 * math.exp(-step / 20) + 0.3 + float(noise.normal(0, 0.02))} for step in range(steps)],
            )
        return tmp_path

    return make
