"""`grape rubric check|show`: the project's rubrics, looked at."""

from __future__ import annotations

from collections.abc import Iterator

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
        rubric = named(rubrics, name)
        yield f"{name} (version {rubric.version})"
        total = sum(item.weight for item in rubric.items)
        for item in rubric.items:
            how = f"{item.kind} {item.verifier}" if item.verifier else item.kind
            extra = (", gate" if item.gate else "") + (f", after {item.parent}" if item.parent else "")
            yield f"  {item.id:<16} {item.weight / total:4.0%}  {how + extra:<24} {item.question}"
        yield ""


def named(rubrics: dict[str, Rubric], category: str) -> Rubric:
    """
    Raises:
        GrapeError: no such category.
    """
    if category not in rubrics:
        raise GrapeError(f"no rubric for the category {category!r}", where="rubrics/", mend=f"one of: {', '.join(rubrics)}")
    return rubrics[category]
