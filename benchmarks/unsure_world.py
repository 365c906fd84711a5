"""The project that `benchmarks.grape_unsure` runs in, made by `grape init --preset unsure`, and its critic read in several ways.

There is nothing to run here. The critic is the one that the critic stage trained. Its calibrated probability p of a yes becomes

    a score       s = p (graded), or 1 if p > 1/2 and else 0 (verdict),
    a confidence  c = max(p, 1 - p) (right), or |2p - 1| (margin).

`MERGED` is a calibration on labels merged by majority before anybody looked at how far people agree, a common habit: it makes
the critic sure of the contested item, as sure as most people's preference is clear, and so overconfident about people.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from grape.artifacts import Judgement, read_prompts, read_rows
from grape.models.chat import Chat
from grape.models.load import load_language_model
from grape.params import Params, load
from grape.reward.critics.calibration import RUN_CRITIC, Calibration, fit_calibration
from grape.reward.critics.judge import Judge, make_critic
from grape.reward.rubric import Rubric, load_rubrics
from grape.reward.source import RubricReward
from grape.sampling import sample
from grape.stages.lessons import question
from grape.stages.modules import load_module
from grape.training.sampler import Sampling
from grape.types import Prompt, Response

CONTESTED, CATEGORIES = "taste", ("letters", "courtesy")  # the item, and the rubrics that have it
MERGED, WITHOUT = "verdict, margin, merged labels", "not asked about it"
CRITICS: dict[str, dict[str, Any]] = {
    "verdict, margin": {"score": "verdict", "confidence": "margin"},
    "verdict, right": {"score": "verdict", "confidence": "right"},
    "graded, right": {"score": "graded", "confidence": "right"},  # grape's default
    MERGED: {"score": "verdict", "confidence": "margin"},
    WITHOUT: {"score": "verdict", "confidence": "right"},  # the rubric without the contested item
}
MERGED_LABELS = 800  # judgements of the contested item that such a calibration is fitted on


def prepared(folder: Path) -> None:
    """The project with its SFT policy and its critic; what DVC has from before is not computed again."""
    command = [sys.executable, "-m", "grape.cli"]
    if not (folder / "params.yaml").exists():
        subprocess.run([*command, "init", "--preset", "unsure", str(folder)], check=True)
    for stage in ("sft", "critic"):
        subprocess.run([*command, "run", stage], cwd=folder, check=True)


@dataclass(frozen=True)
class World:
    """A prepared project."""

    folder: Path
    params: Params

    def model(self, name: str) -> tuple[Any, Chat]:
        model, tokenizer = load_language_model(str(self.folder / "models" / name))
        return model, Chat(tokenizer, self.params.model.template, model)

    def prompts(self, split: str) -> list[Prompt]:
        return read_prompts(self.folder / f"data/prompts/{split}.jsonl")

    def answers(self, model: Any, chat: Chat, split: str, samples: int, count: int | None = None) -> list[Response]:
        """By the same uniform numbers whatever the model."""
        rl = self.params.rl
        return sample(
            model, chat, self.prompts(split)[:count], samples, temperature=rl.temperature, max_new_tokens=rl.max_new_tokens,
            positions=self.params.model.positions, keys=(self.params.seed, "unsure", split),
        )  # fmt: skip

    def sampling(self, prompts: int) -> Sampling:
        rl = self.params.rl
        return Sampling(prompts, rl.samples, rl.temperature, rl.max_new_tokens, self.params.model.positions, 16384, rl.max_missing)

    @cached_property
    def module(self) -> Any:
        return load_module(self.folder / self.params.prepare.source)

    def gold(self, responses: Sequence[Response]) -> list[float]:
        return [float(self.module.gold(response.prompt, response.text)) for response in responses]

    @cached_property
    def rubrics(self) -> dict[str, Rubric]:
        return load_rubrics(self.folder / "rubrics")

    def judge(self, critic: str) -> RubricReward:
        """The rubrics as a reward, with one of CRITICS."""
        place = self.folder / "models/critic"
        judge = Judge.read(place).model_copy(update=CRITICS[critic])
        calibration = self.merged if critic == MERGED else Calibration.read(place)
        rubrics = {c: uncontested(r) if critic == WITHOUT else r for c, r in self.rubrics.items()}
        return RubricReward(rubrics, make_critic(judge, calibration, place, self.folder))

    @cached_property
    def merged(self) -> Calibration:
        """The critic's calibration, with that of the contested item on what most people say."""
        place = self.folder / "models/critic"
        rows = read_rows(self.folder / "data/judgements/train.jsonl", Judgement, mend=RUN_CRITIC)
        rows = [row for row in rows if row.item == CONTESTED][:MERGED_LABELS]
        names = [f"{row.category}/{row.item}" for row in rows]
        critic = make_critic(Judge.read(place), Calibration({}), place, self.folder)
        z = critic.judge(names, [question(self.rubrics, row, f"judgement {row.id}") for row in rows]).evidence
        most = torch.tensor([int(self.module.terse(row.category, row.response)) for row in rows])
        curves = fit_calibration(names, z, most).items
        return Calibration({**Calibration.read(place).items, **{name: curve for name, curve in curves.items() if name}})


def uncontested(rubric: Rubric) -> Rubric:
    return rubric.model_copy(update={"items": tuple(item for item in rubric.items if item.id != CONTESTED)})


@lru_cache
def world(folder: Path) -> World:
    return World(folder, load(folder / "params.yaml"))
