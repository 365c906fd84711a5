"""What a model answers to the held-out prompts, and what the judges say of it: sampled once and kept by content.

The answers of a model follow from its weights, the prompts and how they are sampled; its scores from the answers and the judges.
Both are kept in `.grape/answers` under a key of all that decides them, so that SFT and base are not sampled anew for every policy,
and a rubric that was edited samples nothing again. The folder may be deleted at any time: it spares time and changes no result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grape.errors import GrapeError
from grape.evaluation.kept import kept, key
from grape.evaluation.record import KL, Greedy
from grape.evaluation.sides import Answers
from grape.evaluation.statistics import prompt_groups
from grape.models import micro
from grape.models.chat import Chat
from grape.models.encode import collate
from grape.models.forward import batched_language, exact_kl
from grape.models.load import device, load_language_model
from grape.models.protocols import LanguageModel
from grape.needed import WITHOUT
from grape.reward.limit import time_limit
from grape.reward.source import RewardSource
from grape.sampling import response_rows, sample
from grape.stages.chats import chat_of
from grape.stages.judges import Gold
from grape.stages.stage import Stage
from grape.track import digest
from grape.types import Prompt, Response, Scores

FOLDER = "answers"  # below .grape
GOLD_SECONDS = 20.0  # for one answer
# Of the stage's inputs these do not decide what a model answers, as all others do: JUDGING, prepare.source and what it names decide
# how it is judged; of OTHERWISE what is read here stands in the key itself.
JUDGING = frozenset(
    {"rubrics", "models/critic", "models/reward", "inputs/critic.judge.model", "grape/reward", "grape/sandbox", "rl.reward"}
    | {"prepare.source", *WITHOUT.values()}
)
OTHERWISE = frozenset(
    {"data/prompts/validation.jsonl", "data/prompts/test.jsonl", "models/base", "models/sft", "sft.steps", "evaluate"}
    | {"evaluate.samples", "evaluate.temperature", "evaluate.confidence", "inputs/evaluate.benchmarks.folder"}
)
Record = dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """A model to evaluate, loaded when something is asked of it that is not kept.

    Attributes:
        name: for messages. ancestors: the models it may be kept as a difference from; `folder`, of the project, comes last.
    """

    stage: Stage
    name: str
    ancestors: tuple[str, ...]

    @property
    def folder(self) -> str:
        return self.ancestors[-1]

    @cached_property
    def model(self) -> LanguageModel:
        return self._loaded[0].to(device())

    @cached_property
    def chat(self) -> Chat:
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[LanguageModel, Chat]:
        # All in the same: else a KL would be that of rounding, too.
        model, tokenizer = load_language_model(self.stage.model(self.folder), weights=self.stage.params.model.weights)
        return model, chat_of(self.stage, tokenizer, model)

    @cached_property
    def identity(self) -> list[str]:
        """Of its weights: the md5 of the files as they are, not as dvc.lock has them."""
        return [digest.computed(self.stage.path(folder), self.stage.project) for folder in self.ancestors]


@dataclass(frozen=True)
class Answering:
    """Answers of models to P prompts, with the scores of `source`, the reward that training sees, and of `gold`, which it does not
    (None: there is none)."""

    stage: Stage
    prompts: Sequence[Prompt]
    source: RewardSource
    gold: Gold | None

    def __call__(self, model: Evaluated, reference: Evaluated | None = None) -> Answers:
        """What the model answers. The draws are the same for all models: common random numbers narrow the interval of a difference.

        Args:
            reference: the SFT model, for the KL of a policy; None: none is asked for.
        """
        what = self._asked | {"model": model.identity, "reference": reference and reference.identity}
        said = kept(self._path(what), partial(_sampled, self.stage, model, self.prompts, reference))
        drawn, greedy = (_responses(said[name], self.prompts) for name in ("sampled", "greedy"))

        def judged() -> Record:
            return {"sampled": self._judged(drawn), "greedy": self._judged(greedy)}

        # A score that is missing may be there the next time: a judge was away.
        found = kept(self._path(what | self._judging), judged, worth=lambda value: all(map(_complete, value.values())))
        scores, modes = (self._known(model, _scores(found[name])) for name in ("sampled", "greedy"))
        gold, best = (found[name]["gold"] for name in ("sampled", "greedy"))
        return Answers(
            drawn,
            scores,
            proxy=_rewards(scores, len(self.prompts)),
            gold=None if gold is None else np.array(gold).reshape(len(self.prompts), -1),
            greedy=Greedy(
                gold=None if best is None else round(float(np.mean(best)), 6),
                proxy=round(float(np.nanmean(_rewards(modes, len(self.prompts)))), 6),
            ),
            entropy=said["entropy"],
            kl=None if said["kl"] is None else KL.model_validate(said["kl"]),
        )

    def _judged(self, responses: Sequence[Response]) -> Record:
        found, gold = self.source(responses), self.gold
        numbers = {name: getattr(found, name).tolist() for name in ("score", "confidence", "valid", "weight")}
        judged = None if gold is None else [gold_score(gold, response) for response in responses]
        return {"items": list(found.items), **numbers, "reasons": [list(row) for row in found.reasons], "gold": judged}

    def _known(self, model: Evaluated, scores: Scores) -> Scores:
        """
        Raises:
            GrapeError: not one answer has a score: there is nothing to compare.
        """
        if not bool(scores.reward(prompt_groups(scores.score.shape[0], len(self.prompts)))[1].any()):
            why = next((reason for row in scores.reasons for reason in row if reason), "no judge gave one")
            mend = "mend the judge and run it again; the answers are kept"
            raise GrapeError(f"not one answer of {model.name} has a score: {why}", where=f"stage {self.stage.name}", mend=mend)
        return scores

    # ---- what decides the answers, and what the scores

    @cached_property
    def _asked(self) -> Record:
        params, apart = self.stage.params.evaluate, JUDGING | OTHERWISE | {self.stage.everything.prepare.source}
        rest = {n: v for n, v in self._identity.items() if n not in apart and not n.startswith("models/policy/")}
        runs = [f"{package} {version(package)}" for package in ("torch", "transformers", "tokenizers")]
        prompts = hashlib.sha256(repr(self.prompts).encode()).hexdigest()
        how = {"samples": params.samples, "temperature": params.temperature, "device": device().type, "packages": runs}
        return {"rest": rest, "prompts": prompts, **how}

    @cached_property
    def _judging(self) -> Record:
        names = JUDGING | {self.stage.everything.prepare.source}
        return {"judges": {name: value for name, value in self._identity.items() if name in names}}

    @cached_property
    def _identity(self) -> dict[str, str]:
        return self.stage.identity()

    def _path(self, what: Record) -> Path:
        return self.stage.project.state / FOLDER / f"{key(what)}.json"


# ---- sampling


def _sampled(stage: Stage, model: Evaluated, prompts: Sequence[Prompt], reference: Evaluated | None) -> Record:
    """Sampled and greedy answers; entropy and, with a reference, exact KL(model || reference) over the vocabulary on the sampled
    ones, in nats: means per token, and the KL's mean sum per response."""
    print(f"{stage.name}: {model.name} answers {len(prompts)} prompts", flush=True)
    params, of_model = stage.params.evaluate, stage.params.model
    drawn = sample(
        model.model,
        model.chat,
        prompts,
        params.samples,
        temperature=params.temperature,
        max_new_tokens=stage.params.rl.max_new_tokens,
        positions=of_model.positions,
        keys=(stage.params.seed, "evaluate"),
        dtype=of_model.dtype,
        greedy=True,
    )
    responses = [response for response in drawn if response.index < params.samples]
    greedy = [replace(response, index=0) for response in drawn if response.index == params.samples]
    batch = collate(response_rows(model.chat, responses), model.chat.pad).to(device())
    how = (batch, params.temperature, micro.fixed(), of_model.dtype)
    if reference is None:
        entropy, kl = batched_language(model.model, *how).entropy, None
    else:
        each, entropy = exact_kl(model.model, reference.model, *how)
        kl = {"token": round(float(each.sum() / batch.mask.sum()), 6), "sequence": round(float(each.sum(1).mean()), 6)}
    mean = round(float(entropy.sum() / batch.mask.sum()), 6)
    return {"sampled": [*map(_row, responses)], "greedy": [*map(_row, greedy)], "entropy": mean, "kl": kl}


def _row(response: Response) -> Record:
    return {name: getattr(response, name) for name in ("index", "ids", "text", "finished", "raw")}


def _responses(rows: Sequence[Record], prompts: Sequence[Prompt]) -> list[Response]:
    each = len(rows) // len(prompts)
    return [Response(prompts[i // each], **row | {"ids": tuple(row["ids"])}) for i, row in enumerate(rows)]


# ---- scores


def _scores(found: Record) -> Scores:
    score, confidence, weight = (torch.tensor(found[name], dtype=torch.float32) for name in ("score", "confidence", "weight"))
    reasons = tuple(tuple(row) for row in found["reasons"])
    return Scores(tuple(found["items"]), score, confidence, torch.tensor(found["valid"], dtype=torch.bool), weight, reasons)


def _complete(found: Record) -> bool:
    """Whether everything that was asked has a score."""
    rows = zip(found["valid"], found["weight"], strict=True)
    return all(ok or not weight for valid, weights in rows for ok, weight in zip(valid, weights, strict=True))


def _rewards(scores: Scores, prompts: int) -> np.ndarray:
    """(P, G) rubric rewards, NaN where missing."""
    reward, known = scores.reward(prompt_groups(scores.score.shape[0], prompts))
    return torch.where(known, reward, torch.nan).reshape(prompts, -1).double().numpy()


def gold_score(gold: Gold, response: Response) -> float:
    """A truncated answer is judged by what there is of it; a judge's value outside [0, 1] is its author's mistake."""
    try:
        with time_limit(GOLD_SECONDS):
            value = float(gold(response.prompt, response.text))
    except Exception as error:  # the gold judge is a program of the user's
        raise GrapeError(
            f"the gold judge raised {type(error).__name__} for prompt {response.prompt.id}: {error}",
            where="prepare.source, gold",
            mend="mend `gold`: it takes any text and returns a score in [0, 1]",
        ) from error
    if not 0 <= value <= 1:
        raise GrapeError(
            f"the gold judge gave {value} for prompt {response.prompt.id}",
            where="prepare.source, gold",
            mend="return a score in [0, 1]",
        )
    return value
