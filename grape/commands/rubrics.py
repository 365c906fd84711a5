"""`grape rubric check|show|try`: the project's rubrics, looked at, and a response from the command line scored item by item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from grape.errors import GrapeError
from grape.evaluation.judges import JudgesReport, read_judges
from grape.maths.advantage import weighted_reward
from grape.needed import why_not
from grape.project import Project
from grape.reward.rubric import Rubric, load_rubrics
from grape.types import Prompt, Response, Scores

FOLDERS = {"critic": "models/critic", "reward_model": "models/reward"}  # kind of item -> its judge


def check(project: Project) -> Iterator[str]:
    """A line per category.

    Raises:
        GrapeError: the first mistake, with file and line.
    """
    for category, rubric in load_rubrics(project.root / "rubrics").items():
        kinds = [item.kind for item in rubric.items]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        yield f"{category}: version {rubric.version}, {counts}"


def show(project: Project, category: str | None) -> Iterator[str]:
    """Items with their share of the reward; below a critic item how far its judges agree, once the critic stage has run."""
    rubrics, judges = load_rubrics(project.root / "rubrics"), read_judges(project.root)
    for name in [category] if category else rubrics:
        rubric = named(rubrics, name)
        yield f"{name} (version {rubric.version})"
        total = sum(item.weight for item in rubric.items)
        for item in rubric.items:
            how = f"{item.kind} {item.verifier}" if item.verifier else item.kind
            extra = (", gate" if item.gate else "") + (f", after {item.parent}" if item.parent else "")
            yield f"  {item.id:<16} {item.weight / total:4.0%}  {how + extra:<24} {item.question}"
            if judges and item.kind == "critic":
                yield from _judged(judges, f"{name}/{item.id}")
        yield ""


def _judged(found: JudgesReport, item: str) -> Iterator[str]:
    """A line per judge of a critic item, and one on how far they agree with each other."""
    for judge in found.judges:
        count, share, kappa = (judge.of(item, number) for number in ("judged", "agreement", "kappa"))
        if count:
            beyond = "" if kappa is None else f", kappa {kappa:.2f}"
            yield f"    {judge.name}: agrees with people in {share:.0%} of {count:.0f} held-out judgements{beyond}"
        elif not judge.curves:
            yield f"    {judge.name}: compared with nobody and not calibrated, since there are no held-out judgements"
    if item in found.between:
        yield f"    the judges among themselves: {found.statistic} {found.between[item]:.2f}"


def named(rubrics: dict[str, Rubric], category: str) -> Rubric:
    """The category's rubric; GrapeError where there is none."""
    if category not in rubrics:
        raise GrapeError(f"no rubric for the category {category!r}", where="rubrics/", mend=f"one of: {', '.join(rubrics)}")
    return rubrics[category]


def attempt(project: Project, category: str, prompt: str, response: str, answer: str | None) -> dict[str, Any]:
    """One response scored item by item, with reasons. Critic and reward model take part where their stages have run.

    Raises:
        GrapeError: no such category.
    """
    rubric = named(load_rubrics(project.root / "rubrics"), category)
    asked = Prompt("typed", category, ({"role": "user", "content": prompt},), answer)
    scores = _scores(project, rubric, asked, response)
    value, known = weighted_reward(scores.score, scores.valid, scores.weight, torch.zeros(1, dtype=torch.long))
    items: dict[str, dict[str, Any]] = {}
    for item in rubric.items:
        folder = FOLDERS.get(item.kind)
        left = why_not(project.root / folder) if folder else None
        why = f"it was not made, because {left}" if left else f"run the stage that makes the {item.kind}"
        items[item.id] = {"score": None, "confidence": None, "reason": f"not asked: {why}"}
    for k, name in enumerate(scores.items):
        found = (scores.score, scores.confidence)
        score, sure = (round(float(of[0, k]), 4) if bool(scores.valid[0, k]) else None for of in found)
        items[name.partition("/")[2]] = {"score": score, "confidence": sure, "reason": scores.reasons[0][k]}
    return {"category": category, "reward": round(float(value[0]), 4) if bool(known[0]) else None, "items": items}


def _scores(project: Project, rubric: Rubric, prompt: Prompt, response: str) -> Scores:
    """By the kinds of item whose judge is there."""
    # Here, so that looking at rubrics does not wait for transformers.
    from grape.params import load
    from grape.reward.critics.judge import load_critic
    from grape.reward.learned import LearnedReward
    from grape.reward.source import RubricReward

    critic, learned = (project.root / FOLDERS[kind] for kind in ("critic", "reward_model"))
    there = {kind for kind, folder in FOLDERS.items() if (project.root / folder).is_dir() and not why_not(project.root / folder)}
    kinds = ({"verify"} | there) & {item.kind for item in rubric.items}
    template = load(project.params).model.template
    reward_model = LearnedReward(learned, template=template) if "reward_model" in kinds else None
    critics = load_critic(critic, project.root, template=template) if "critic" in kinds else None
    judge = RubricReward({prompt.category: rubric}, critics, reward_model, frozenset(kinds))
    turns = [*prompt.messages, {"role": "assistant", "content": response}]
    ids = tuple(reward_model.chat.conversation(turns, prompt.id).row.response) if reward_model else ()
    return judge([Response(prompt, 0, ids, response, True)])


def lines(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    for name, item in found["items"].items():
        score = "missing" if item["score"] is None else f"{item['score']:.2f}"
        sure = "" if item["confidence"] is None else f"sure {item['confidence']:.2f}"
        yield f"{name:<16} {score:>7}  {sure:<10} {item['reason']}".rstrip()
    yield f"{'reward':<16} {'missing' if found['reward'] is None else format(found['reward'], '.2f'):>7}"
