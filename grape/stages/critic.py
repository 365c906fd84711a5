"""critic: train, or merely calibrate, the judge of rubric items on labelled judgements; report agreement and calibration held out.

The held-out judgements are halved: one half fits the calibration, the other measures it, so that the reported numbers are of
judgements neither training nor calibration has seen. A judge from outside (`critic.judge.backend` local or openai) is not
trained, only asked about those two halves; so are the further ones of `critic.panel`. Without judgements there is no calibration:
confidence is then the judge's own, which is said.
"""

from __future__ import annotations

import shutil
from functools import partial

import torch

from grape.algorithms.sft import ALGORITHM
from grape.artifacts import Judgement, read_rows
from grape.models import micro
from grape.models.encode import Rows, encode_turns
from grape.models.folder import point
from grape.models.forward import language
from grape.models.load import device, load_language_model
from grape.randomness import permutation
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.judge import FIRST, Judge, make_critic
from grape.reward.critics.logits import trained_critic
from grape.reward.rubric import load_rubrics
from grape.reward.verdict import Critic, Question
from grape.stages.chats import chat_of
from grape.stages.fit import fit
from grape.stages.lessons import lesson, question
from grape.stages.panel import Heldout, calibrate_all, tell
from grape.stages.stage import Stage
from grape.stages.trained import kept_in, save_trained, trainable


def run(stage: Stage) -> None:
    stage.datasets("data/judgements")
    params = stage.params.critic
    judgements = read_rows(
        stage.path("data/judgements/train.jsonl"), Judgement, mend="run the prepare stage again: grape run prepare"
    )
    rubrics = load_rubrics(stage.path("rubrics"))
    questions = [question(rubrics, j, f"data/judgements, {j.id}") for j in judgements]
    order = [int(i) for i in permutation(len(judgements), stage.params.seed, "critic", "split")]
    count = int(len(order) * params.heldout)
    folder = stage.path("models/critic")
    if params.judge.backend == "trained":
        critic = _trained(stage, judgements, questions, order[count:])
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stage.write_history([])
        critic = _outside(stage, params.judge)
    judges: dict[str, tuple[Judge, Critic]] = {FIRST: (params.judge, critic)}
    judges |= {judge.name: (judge, _outside(stage, judge)) for judge in params.panel}
    names, labels = [f"{j.category}/{j.item}" for j in judgements], torch.tensor([j.label for j in judgements])
    heldout = Heldout(names, questions, labels, order[: count // 2], order[count // 2 : count])
    found = calibrate_all(stage, judges, heldout)
    if params.judge.backend == "trained":
        stage.run.model("models/critic", "critic")
    tell(stage, found, rubrics, len(judgements))


def _outside(stage: Stage, judge: Judge) -> Critic:
    """A judge that this stage does not train."""
    model = stage.params.model
    how = (model.dtype, micro.fixed())
    return make_critic(judge, Calibration({}), stage.path("models/critic"), stage.project.root, *how, weights=model.weights)


def _trained(stage: Stage, judgements: list[Judgement], questions: list[Question], training: list[int]) -> Critic:
    """The critic trained on these judgements and saved."""
    params, common = stage.params.critic, stage.params.model
    model, tokenizer = load_language_model(stage.model("models/base"), weights=kept_in(stage))
    chat, rows = chat_of(stage, tokenizer, model), Rows()
    if training and params.steps:
        asked = [lesson(judgements[i], questions[i]) for i in training]
        rows = encode_turns(chat, asked, common.positions, "data/judgements")
    stage.left_out(rows.counts, len(rows.kept), "judgements", f"model.positions = {common.positions} tokens")
    section = params if rows.rows else params.model_copy(update={"steps": 0})
    if section.steps:
        model = trainable(stage, model)
    forward = partial(language, model, dtype=common.dtype)
    fit(stage, model.to(device()), chat, ALGORITHM, ALGORITHM.params(), rows.rows, section, forward)
    if section.steps:
        save_trained(stage, model, tokenizer, "models/critic", "models/base")
    else:
        point(stage.path("models/critic"), "models/base")
    return trained_critic(model, chat, Calibration({}), micro.fixed(), common.dtype)
