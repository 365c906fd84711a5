"""Every look at the test prompts: which policy was scored on them, and when.

A table of test scores says what it seems to say the first time. Whoever turns a knob after it and looks again has begun to choose
by the test, as if it were a validation split. That cannot be forbidden, but counted: `inputs/looks.jsonl` has a line for each
policy that was ever scored on a test split, and a report says how many of them do not stand in its table. To be kept in git, as
dvc.lock is.
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from grape import dvc
from grape.errors import GrapeError, first_problem
from grape.files import read_lines, write_lines
from grape.named import FOLDER
from grape.project import Project

FILE = f"{FOLDER}/looks.jsonl"
TEST = "data/prompts/test.jsonl"


class Look(BaseModel):
    """
    Attributes:
        test: md5 of the test prompts. policy: its name, as `grpo-0`. weights: md5 of its folder. at: when it was first scored, UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    test: str
    policy: str
    weights: str
    at: str


def read(root: Path) -> list[Look]:
    """All of them, in the order of time.

    Raises:
        GrapeError: a line is none.
    """
    path, found = root / FILE, []
    for number, row in read_lines(path) if path.exists() else ():
        try:
            found.append(Look.model_validate(row))
        except ValidationError as error:
            mend = "restore the file from git, or take the line out"
            raise GrapeError(": ".join(filter(None, first_problem(error))), where=f"{FILE}:{number}", mend=mend) from error
    return found


def others(root: Path, test: str, weights: Collection[str]) -> list[Look]:
    """The looks at this test split that were at other policies than these."""
    return [look for look in read(root) if look.test == test and look.weights not in weights]


def sentence(project: Project) -> str:
    """Before another look: how many there were."""
    test = dvc.locked(project).get(TEST)
    seen = [look for look in read(project.root) if look.test == test]
    how = (
        f"{len(seen)} policies were looked at by them so far, last {seen[-1].policy} on {seen[-1].at[:10]}"
        if seen
        else "the first look"
    )
    return f"test@ alone reads the test prompts ({TEST}): {how}; choose by the validation prompts, which evaluate@ reads"


def note(project: Project, test: str, policy: str, weights: str) -> None:
    """Write down that these weights are scored on this split, once."""
    with _alone(project):
        known = read(project.root)
        if all((look.test, look.weights) != (test, weights) for look in known):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            look = Look(test=test, policy=policy, weights=weights, at=now)
            write_lines(project.root / FILE, (one.model_dump() for one in [*known, look]))


@contextmanager
def _alone(project: Project) -> Iterator[None]:
    """Stages that run side by side write one after the other; the kernel frees a dead one's lock."""
    project.state.mkdir(parents=True, exist_ok=True)
    with (project.state / "looks.lock").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
