"""The one exception a user's mistake raises: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class GrapeError(Exception):
    """A mistake of the user or of the machine that a message can mend; the commands print it and exit with code 2.

    Args:
        what: what is wrong, one sentence.
        where: file, key, row or stage, e.g. ``params.yaml:12, rl.steps``.
        mend: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}\n  -> {mend}" if mend else message)


def nearest(name: object, known: Collection[str], otherwise: str) -> str:
    """How to mend an unknown name: by the one it resembles, else by what `otherwise` says, with all there are in place of %s."""
    near = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise.replace("%s", ", ".join(known))


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The first thing pydantic found wrong: where, as a dotted name ("" for the whole), and what."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
