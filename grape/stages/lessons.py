"""A labelled judgement as the critic's question, and as a question and its answer to learn from."""

from __future__ import annotations

from grape.artifacts import Demonstration, Judgement, Turn
from grape.errors import GrapeError
from grape.reward.critics.logits import NO, YES
from grape.reward.rubric import Rubric
from grape.reward.verdict import Question
from grape.types import transcript


def lesson(judgement: Judgement, question: Question) -> Demonstration:
    """A judgement as a question and its answer, in the very words it will be asked in during RL."""
    turns = [Turn(role="user", content=question.text), Turn(role="assistant", content=YES if judgement.label else NO)]
    return Demonstration(id=judgement.id, category=judgement.category, messages=turns)


def question(rubrics: dict[str, Rubric], judgement: Judgement, where: str) -> Question:
    """The critic's question about a judged response, in the very words it will be asked during RL.

    Args:
        where: the row, for messages.

    Raises:
        GrapeError: no rubric for its category, or no such item there.
    """
    rubric = rubrics.get(judgement.category)
    if rubric is None:
        raise GrapeError(
            f"no rubric for the category {judgement.category!r}", where=where, mend=f"write rubrics/{judgement.category}.yaml"
        )
    item = next((i for i in rubric.items if i.id == judgement.item), None)
    if item is None:
        raise GrapeError(
            f"the rubric of {judgement.category!r} has no item {judgement.item!r}",
            where=where,
            mend=f"its items: {', '.join(i.id for i in rubric.items)}",
        )
    return rubric.ask(item, transcript([turn.message() for turn in judgement.prompt]), judgement.response)
