"""Verifiers that let a library read the response, apart from grape's process: the library may hang on it, or evaluate it.

`math` uses math-verify, whose answers may be expressions that take for ever (9^9^9^9). `reasoning_gym` uses the scorers of
reasoning-gym, some of which call `eval` on the response. Both are optional extras.

Other than in `python_tests` the reference answer is in there with the response, as the library wants both. So `reasoning_gym`
refuses responses that look like Python which would reach for it; the sandbox holds what they could do beyond.
"""

from __future__ import annotations

import json
import re

from pydantic import Field, field_validator

from grape.reward.verdict import Options, Undecidable, Verdict, reference
from grape.reward.verifiers.python_tests import mechanism
from grape.sandbox.box import Answer, HarnessError
from grape.sandbox.run import Library
from grape.sandbox.tiers import tier
from grape.types import Prompt

MATH = """
from math_verify import parse, verify
def grade(gold, text, digits):
    # Without its delimiters an expression would be read by the first number in it.
    bare = not any(mark in gold for mark in ("$", "\\\\boxed", "\\\\(", "\\\\["))
    read = parse("$" + gold + "$" if bare else gold, parsing_timeout=None)
    return bool(verify(read, parse(text, parsing_timeout=None), float_rounding=digits, timeout_seconds=None)) if read else None
"""
GYM = """
from reasoning_gym.factory import DATASETS, get_score_answer_fn
def grade(name, text, entry):
    if name not in DATASETS:
        return None
    score = get_score_answer_fn(name)
    try:
        return float(score(text, entry))
    except Exception:
        try:
            score(entry["answer"], entry)
        except Exception:
            return None  # not even the right answer can be scored: the entry is at fault
        raise
"""
# What an answer needs to get at the interpreter, were it evaluated; no honest answer to a puzzle holds it.
CODE = re.compile(
    r"__\w|\b(?:exec|eval|compile|open|input|exit|quit|breakpoint|globals|locals|vars|dir|type|getattr|setattr|"
    r"delattr|lambdify|sympify|parse_expr)\s*\(|\blambda\b|\bimport\s"
)
TAGGED = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)

MATH_VERIFY = Library("math_verify", MATH, "math")
REASONING_GYM = Library("reasoning_gym", GYM, "gym")


def _graded(library: Library, undecided: str, held_by: str, *arguments: object) -> Answer:
    """What the library says; an error is the response's.
    Raises Undecidable: it could make nothing of the reference, or could not be asked."""
    try:
        answer = library.grade(held_by, *arguments)
    except HarnessError as error:
        raise Undecidable(str(error)) from error
    if answer.error is None and answer.value is None:
        raise Undecidable(undecided)
    return answer


class Maths(Options):
    """`math`: an expression of the response, LaTeX or plain, equals the reference answer (math-verify, extra `math`).

    `digits`: decimals to which numbers are rounded before they are compared.
    """

    digits: int = Field(6, ge=0, le=15)

    def model_post_init(self, context: object) -> None:
        MATH_VERIFY.require()

    def score(self, prompt: Prompt, text: str) -> Verdict:
        gold, found = reference(prompt), tier()
        if found.name == "none":  # the library executes nothing, so limits on time and memory are enough to hold it
            raise Undecidable(found.why())
        undecided = f"math-verify cannot read the reference answer {gold!r}"
        answer = _graded(MATH_VERIFY, undecided, found.name, gold, text, self.digits)
        return Verdict(float(answer.value is True), answer.error or ("equal" if answer.value is True else "not equal"))


class ReasoningGym(Options):
    """`reasoning_gym`: the scorer of reasoning-gym's dataset `dataset` (extra `gym`).

    The prompt's reference answer is the dataset's entry as JSON (question, answer, metadata), or the bare answer for datasets whose
    scorer needs no more. What stands in the response's last <answer></answer> is scored, or all of it.
    """

    dataset: str = Field(min_length=1)
    allow_weak: bool = False

    @field_validator("dataset")
    @classmethod
    def _known(cls, name: str) -> str:
        REASONING_GYM.require()
        return name

    def score(self, prompt: Prompt, text: str) -> Verdict:
        gold = reference(prompt)
        try:
            entry = json.loads(gold)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or "answer" not in entry:
            entry = {"question": prompt.text, "answer": gold, "metadata": {}}
        tagged = TAGGED.findall(text)
        said = tagged[-1] if tagged else text.strip()
        held_by = mechanism(self.allow_weak)
        if CODE.search(said):
            return Verdict(0.0, "the answer looks like Python code, which some scorers would execute")
        undecided = f"reasoning-gym has no dataset {self.dataset!r}, or cannot score this entry"
        answer = _graded(REASONING_GYM, undecided, held_by, self.dataset, said, entry)
        if answer.error is not None or not isinstance(answer.value, float | int) or not 0 <= answer.value <= 1:
            return Verdict(0.0, answer.error or "the scorer gave no score")
        return Verdict(float(answer.value), f"scored by reasoning-gym's {self.dataset}")
