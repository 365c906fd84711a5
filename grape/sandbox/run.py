"""One program in a sandbox: calls go in, JSON comes back. The parent's side: nothing here runs the model's code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from grape.sandbox.box import Answer, Ended, Sandbox, quoted
from grape.sandbox.places import Limits
from grape.sandbox.protocol import NotJson, read

Call = tuple[str, Sequence[object]]


@dataclass(frozen=True)
class Run:
    """One program in the sandbox.

    Attributes:
        answers: one per call. ended: why not every call was answered; "": they were.
        clean: nothing of the program was left when the sandbox had been closed.
    """

    answers: tuple[Answer, ...]
    ended: str
    clean: bool


def run(source: str, calls: Sequence[Call], mechanism: str, limits: Limits) -> Run:
    """The answers of a program to calls of its functions.

    Raises:
        HarnessError: the sandbox could not be started.
    """
    answers: list[Answer] = []
    ended = ""
    with Sandbox(mechanism, limits) as sandbox:
        sandbox.start({"source": source, "calls": [(name, list(arguments)) for name, arguments in calls]})
        deadline = time.monotonic() + limits.wall
        while len(answers) < len(calls) and not ended:
            try:
                line = sandbox.line(deadline)
                index, returned, value = read(line)
                if returned is not True and index == -1:
                    ended = f"the program cannot be loaded: {quoted(value)}"
                elif type(index) is not int or index != len(answers) or type(returned) is not bool:
                    raise NotJson("an answer to another call")
                else:
                    answers.append(Answer(value) if returned else Answer(None, quoted(value)))
            except (ValueError, TypeError) as error:
                ended = f"wrote what is no answer: {error}"
            except Ended as end:
                ended = str(end)
    missing = [Answer(None, ended)] * (len(calls) - len(answers))
    return Run(tuple(answers + missing), ended, sandbox.clean)
