"""evaluate: the policy against the SFT policy it came from, on held-out prompts. Gold, rubric, win rate, KL, lengths, samples."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from grape.artifacts import read_prompts
from grape.errors import GrapeError
from grape.evaluation.record import KL, Evaluation, Greedy, Sample
from grape.evaluation.sides import COLUMNS, Answers, describe, difference, samples, table, win_rate
from grape.evaluation.statistics import Bootstrap, prompt_groups
from grape.files import write_json, write_lines, write_text
from grape.models.chat import Chat
from grape.models.encode import collate, fitting_prompts
from grape.models.forward import batched_language, exact_kl
from grape.models.load import device, load_language_model
from grape.models.protocols import LanguageModel
from grape.reward.limit import time_limit
from grape.sampling import response_rows, sample
from grape.stages.chats import chat_of
from grape.stages.judges import Gold, gold_judge, reward_source
from grape.stages.stage import Stage
from grape.types import Prompt, Response, Scores

GOLD_SECONDS = 20.0  # for one answer
TABLE = "samples.json"  # its place among the artifacts of the MLflow run
Source = Callable[[Sequence[Response]], Scores]


def run(stage: Stage) -> None:
    prompts = read_prompts(stage.path("data/prompts/heldout.jsonl"))
    stage.datasets("data/prompts", "rubrics", context="evaluation")
    source, gold = reward_source(stage, prompts, "data/prompts/heldout.jsonl"), gold_judge(stage)
    reference, tokenizer = load_language_model(str(stage.path("models/sft")))
    policy, policy_tokenizer = load_language_model(str(stage.path(f"models/policy/{stage.policy}")))
    chat, own_chat = chat_of(stage, tokenizer, reference), chat_of(stage, policy_tokenizer, policy)
    room = stage.params.model.positions - stage.params.rl.max_new_tokens
    prompts, dropped = fitting_prompts(chat, prompts, room, "data/prompts")
    longest = f"model.positions - rl.max_new_tokens = {room} tokens"
    stage.left_out({"dropped/too_long": len(dropped)}, len(prompts), "held-out prompts", longest)
    sft = answer(stage, reference.to(device()), chat, prompts, source, gold)
    own = answer(stage, policy.to(device()), own_chat, prompts, source, gold)
    kl = divergence(stage, policy, reference, own_chat, own.responses)
    write(stage, compare(stage, prompts, sft, own, kl, len(dropped)), samples(prompts, sft, own))


def answer(stage: Stage, model: LanguageModel, chat: Chat, prompts: Sequence[Prompt], source: Source, gold: Gold | None) -> Answers:
    """Sample and score. The draws are the same for both policies: common random numbers narrow the interval of the difference."""
    params, of_model = stage.params.evaluate, stage.params.model
    draw = partial(
        sample,
        model,
        chat,
        prompts,
        max_new_tokens=stage.params.rl.max_new_tokens,
        positions=of_model.positions,
        keys=(stage.params.seed, "evaluate"),
        dtype=of_model.dtype,
    )
    responses = draw(params.samples, temperature=params.temperature)
    scores = source(responses)
    greedy = draw(1, temperature=0.0)
    batch = collate(response_rows(chat, responses), chat.pad).to(device())
    out = batched_language(model, batch, params.temperature, of_model.micro_batch_tokens, of_model.dtype)
    return Answers(
        responses,
        scores,
        proxy=_rewards(scores, len(prompts)),
        gold=None if gold is None else np.array([_gold(gold, r) for r in responses]).reshape(len(prompts), -1),
        greedy=Greedy(
            gold=None if gold is None else round(float(np.mean([_gold(gold, r) for r in greedy])), 6),
            proxy=round(float(np.nanmean(_rewards(source(greedy), len(prompts)))), 6),
        ),
        entropy=round(float(out.entropy.sum() / batch.mask.sum()), 6),
    )


def _gold(gold: Gold, response: Response) -> float:
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


def _rewards(scores: Scores, prompts: int) -> np.ndarray:
    """(P, G) rubric rewards, NaN where missing."""
    reward, known = scores.reward(prompt_groups(scores.score.shape[0], prompts))
    return torch.where(known, reward, torch.nan).reshape(prompts, -1).double().numpy()


def divergence(stage: Stage, policy: LanguageModel, reference: LanguageModel, chat: Chat, responses: Sequence[Response]) -> KL:
    """Exact KL(policy || SFT) over the vocabulary on the policy's samples: mean per token, and mean sum per response, nats."""
    batch = collate(response_rows(chat, responses), chat.pad).to(device())
    kl, _ = exact_kl(policy, reference, batch, stage.params.evaluate.temperature, stage.params.model.micro_batch_tokens)
    return KL(token=round(float(kl.sum() / batch.mask.sum()), 6), sequence=round(float(kl.sum(1).mean()), 6))


def compare(stage: Stage, prompts: Sequence[Prompt], sft: Answers, own: Answers, kl: KL, too_long: int) -> Evaluation:
    """Everything that reports/evaluate says of the policy."""
    over = Bootstrap(stage.params.evaluate.confidence, (stage.params.seed, "evaluate", "bootstrap"))
    return Evaluation(
        algorithm=stage.algorithm,
        seed=stage.seed,
        prompts=len(prompts),
        samples=stage.params.evaluate.samples,
        sft=describe(prompts, sft, over),
        policy=describe(prompts, own, over),
        difference=difference(sft, own, over),
        win_rate=win_rate(sft, own, over),
        dropped={"too_long": too_long},
        kl=kl,
    )


def write(stage: Stage, found: Evaluation, answers: Sequence[Sample]) -> None:
    """Into reports/evaluate and the stage's run."""
    folder, judge = stage.path(f"reports/evaluate/{stage.policy}"), found.win_rate.judge
    write_json(folder / "metrics.json", found.model_dump())
    write_lines(folder / "samples.jsonl", (answer.row() for answer in answers))
    log_table(stage, answers)
    gain = found.difference.of(judge)
    stage.run.headline(
        {
            "policy": found.policy.of(judge).mean,
            "sft": found.sft.of(judge).mean,
            "difference": gain.mean,
            "difference_low": gain.low,
            "win_rate": found.win_rate.mean,
            "kl": found.kl.token,
            "length": found.policy.length,
        },
        model=f"models/policy/{stage.policy}",
        dataset="data/prompts",
    )


def log_table(stage: Stage, answers: Sequence[Sample]) -> None:
    """The samples as a table in MLflow's UI, a row per item: the file and the tag that MlflowClient.log_table would leave."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TABLE
        write_text(path, json.dumps({"columns": COLUMNS, "data": list(table(answers, stage.policy))}, allow_nan=False))
        stage.run.artifact(path)
    stage.run.tag({"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])})
