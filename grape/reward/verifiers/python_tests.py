"""`python_tests`: the verifier that runs the response's program in the sandbox."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from grape.reward.verdict import Options, Undecidable, Verdict, reference
from grape.reward.verifiers.cases import BadCases, judge, parse
from grape.reward.verifiers.program import program
from grape.sandbox.box import HarnessError
from grape.sandbox.places import Limits
from grape.sandbox.run import run
from grape.sandbox.tiers import tier
from grape.types import Prompt

MEND = (
    "install bubblewrap, or allow user namespaces (Ubuntu 24.04 and later: "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`), or use a kernel with landlock (Linux 6.2); "
    "`allow_weak: true` in the item's options runs the programs with limits alone"
)


def mechanism(allow_weak: bool) -> str:
    """What holds programs on this machine.

    Raises:
        Undecidable: nothing that may be used.
    """
    found = tier()
    if found.strong or allow_weak and found.name != "none":
        return found.name
    raise Undecidable(found.why(), MEND)


class PythonTests(Options):
    """`python_tests`: the response's Python function returns what the test cases say, run in a sandbox.

    The cases are `tests`, or the prompt's reference answer as JSON; both as `cases.parse` describes. All cases or nothing, unless
    `partial`: then the share of cases. `impossible` mixes in cases that no honest program passes, as a share of the cases; they
    earn nothing, and passing one makes the score 0. `tolerance` is for floats, relative, absolute below 1. `seconds` of processor
    time and MiB of `memory` are the whole program's; `allow_weak` runs it even where only limits hold it.
    """

    tests: dict[str, Any] | None = None
    partial: bool = False
    impossible: float = Field(0.0, ge=0, le=1)
    tolerance: float = Field(1e-9, ge=0, lt=1)
    seconds: float = Field(5.0, ge=1, le=600)
    memory: int = Field(512, ge=64, le=65536)
    allow_weak: bool = False

    @model_validator(mode="after")
    def _usable(self) -> PythonTests:
        if self.tests is not None:
            parse(self.tests)
        return self

    def score(self, prompt: Prompt, text: str) -> Verdict:
        try:
            cases = parse(self.tests if self.tests is not None else reference(prompt)).mixed(self.impossible, prompt.id)
        except BadCases as error:
            raise Undecidable(f"prompt {prompt.id}: {error}") from error
        held_by = mechanism(self.allow_weak)
        source = program(text, cases.function)
        if not source.strip():
            return Verdict(0.0, "there is no Python in the response")
        limits = Limits(seconds=self.seconds, wall=3 * self.seconds, memory=self.memory)
        try:
            done = run(source, [(cases.function, case.arguments) for case in cases.cases], held_by, limits)
        except HarnessError as error:
            raise Undecidable(str(error)) from error
        return judge(cases.cases, done, self.tolerance, self.partial)
