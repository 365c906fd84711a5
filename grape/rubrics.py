"""`grape rubric check|show|try`: the project's rubrics, looked at and tried out on a response typed on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grape.errors import GrapeError
from grape.project import Project
from grape.reward.rubric import Rubric, load_rubrics


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
    """Items with their share of the reward."""
    rubrics = load_rubrics(project.root / "rubrics")
    for name in [category] if category else rubrics:
        rubric = _rubric(rubrics, name)
        yield f"{name} (version {rubric.version})"
        total = sum(item.weight for item in rubric.items)
        for item in rubric.items:
            how = f"{item.kind} {item.verifier}" if item.verifier else item.kind
            extra = (", gate" if item.gate else "") + (f", after {item.parent}" if item.parent else "")
            yield f"  {item.id:<16} {item.weight / total:4.0%}  {how + extra:<24} {item.question}"
        yield ""


def attempt(project: Project, category: str, prompt: str, response: str, answer: str | None) -> dict[str, Any]:
    """One response scored item by item, with reasons. Critic and reward model take part where their stages have run.

    Raises:
        GrapeError: no such category.
    """
    import torch

    from grape.maths.advantage import weighted_reward
    from grape.params import load
    from grape.reward.critics.judge import load_critic
    from grape.reward.learned import LearnedReward
    from grape.reward.source import RubricReward
    from grape.types import Prompt, Response

    rubric = _rubric(load_rubrics(project.root / "rubrics"), category)
    critic, learned = project.root / "models" / "critic", project.root / "models" / "reward"
    kinds = {item.kind for item in rubric.items}
    there = {"verify"} | ({"critic"} if critic.is_dir() else set()) | ({"reward_model"} if learned.is_dir() else set())
    template = load(project.params).model.template
    reward_model = LearnedReward(learned, template=template) if "reward_model" in kinds & there else None
    judge = RubricReward(
        {category: rubric},
        load_critic(critic, project.root, template=template) if "critic" in kinds & there else None,
        reward_model,
        frozenset(kinds & there),
    )
    asked = Prompt("typed", category, ({"role": "user", "content": prompt},), answer)
    turns = [*asked.messages, {"role": "assistant", "content": response}]
    ids = tuple(reward_model.chat.conversation(turns, "typed").row.response) if reward_model else ()
    scores = judge([Response(asked, 0, ids, response, True)])
    value, known = weighted_reward(scores.score, scores.valid, scores.weight, torch.zeros(1, dtype=torch.long))
    items: dict[str, dict[str, Any]] = {
        item.id: {"score": None, "confidence": None, "reason": f"not asked: run the stage that makes the {item.kind}"}
        for item in rubric.items
    }
    for k, name in enumerate(scores.items):
        ok = bool(scores.valid[0, k])
        items[name.partition("/")[2]] = {
            "score": round(float(scores.score[0, k]), 4) if ok else None,
            "confidence": round(float(scores.confidence[0, k]), 4) if ok else None,
            "reason": scores.reasons[0][k],
        }
    return {"category": category, "reward": round(float(value[0]), 4) if bool(known[0]) else None, "items": items}


def attempt_lines(found: dict[str, Any]) -> Iterator[str]:
    for name, item in found["items"].items():
        score = "missing" if item["score"] is None else f"{item['score']:.2f}"
        sure = "" if item["confidence"] is None else f"sure {item['confidence']:.2f}"
        yield f"{name:<16} {score:>7}  {sure:<10} {item['reason']}".rstrip()
    yield f"{'reward':<16} {'missing' if found['reward'] is None else format(found['reward'], '.2f'):>7}"


def _rubric(rubrics: dict[str, Rubric], category: str) -> Rubric:
    if category not in rubrics:
        raise GrapeError(f"no rubric for the category {category!r}", where="rubrics/", mend=f"one of: {', '.join(rubrics)}")
    return rubrics[category]
