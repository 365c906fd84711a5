"""Rubrics: what a good answer is, category by category, as YAML files written by people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from grape import yamlfile
from grape.errors import GrapeError, first_problem
from grape.reward.verdict import Question
from grape.reward.verifiers import VERIFIERS, build

Kind = Literal["verify", "critic", "reward_model"]
Location = tuple[str | int, ...]  # in a rubric's file
Problem = tuple[Location, str, str]  # where, what, how to mend it


class Item(BaseModel):
    """One criterion. `question` is what the critic is asked and what people read; a verify item names its verifier.

    `system` is the critic's system prompt for this item, for critics that take one (local, openai); "" is the critic's own.

    A `gate` that is not met (score below 1/2) takes all other items of the response to 0: what must not happen is not averaged.
    An item with a `parent` scores 0 where the parent is not met: no credit for what hangs on something that failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    question: str = Field(min_length=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    kind: Kind
    verifier: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    system: str = ""
    gate: bool = False
    parent: str | None = None


class Rubric(BaseModel):
    """The criteria of one category.

    `critic_prompt` has the places {question}, {prompt} and {response}. `revise_prompt` is the turn that asks the policy to mend
    its answer; its place {critique} is where the items that were not met are listed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    version: int = Field(ge=1)
    category: str = Field(min_length=1)
    critic_prompt: str = "{question}\nQuestion: {prompt}\nAnswer: {response}"
    revise_prompt: str = "{critique}\nAnswer again."
    items: tuple[Item, ...] = Field(min_length=1)

    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    def place(self, item: str) -> str:
        """`rubrics/sums.yaml:4`, where the item stands; the category for a rubric that was not read from a file."""
        return self._places.get(item, f"the rubric of {self.category}")

    def ask(self, item: Item, prompt: str, response: str) -> Question:
        """The item's question about a response, in parts."""
        return Question(item.question, prompt, response, self.critic_prompt, item.system, self.version)


def _line(node: Any, location: Location) -> int:
    """1-based line of the value at `location` in a ruamel round-trip tree (the nearest parent that has one)."""
    line = int(getattr(getattr(node, "lc", None), "line", 0)) + 1
    for part in location:
        try:
            place = node.lc.key(part) if isinstance(part, str) else node.lc.item(part)
            line, node = place[0] + 1, node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _problems(rubric: Rubric) -> Iterator[Problem]:
    """What the schema alone cannot see."""
    above: set[str] = set()
    for i, item in enumerate(rubric.items):
        at, named = ("items", i), f"item {item.id!r}"
        if item.id in above:
            yield (*at, "id"), f"the id {item.id!r} stands twice", "give every item of a rubric its own id"
        if item.parent is not None and item.parent not in above:
            what = f"{named}: its parent {item.parent!r} is not one of the items above it"
            yield (*at, "parent"), what, "name the id of an earlier item"
        above.add(item.id)
        if (item.kind == "verify") != (item.verifier is not None):
            yield at, f"{named}: a verify item names a verifier, and no other kind does", "set or remove `verifier`"
        elif item.verifier is not None:
            yield from _misfits(item.verifier, item.options, named, at)
    for place in ("{question}", "{response}") if any(item.kind == "critic" for item in rubric.items) else ():
        if place not in rubric.critic_prompt:
            yield ("critic_prompt",), f"the place {place} is missing: the critic would not see it", f"put {place} where it belongs"
    if "{critique}" not in rubric.revise_prompt:
        yield ("revise_prompt",), "the place {critique} is missing", "put {critique} where the unmet items are to be listed"
    if sum(item.weight for item in rubric.items) <= 0:
        yield ("items",), "the weights sum to zero, so every response would be worth the same", "give an item a positive weight"


def _misfits(verifier: str, options: Mapping[str, object], named: str, at: Location) -> Iterator[Problem]:
    """Why the verifier cannot be built."""
    if verifier not in VERIFIERS:
        yield (*at, "verifier"), f"unknown verifier {verifier!r}", f"one of: {', '.join(VERIFIERS)}"
        return
    try:
        build(verifier, options)
    except ValidationError as error:
        option, what = first_problem(error)
        yield (*at, "options"), f"{named}: option {option}: {what}", "mend the verifier's options"
    except GrapeError as error:
        yield (*at, "verifier"), f"{named}: {error.what}", error.mend or "mend the item"
    except re.error as error:
        yield (*at, "options"), f"{named}: not a regular expression: {error}", "mend the pattern"


def load_rubric(path: Path) -> Rubric:
    """One rubric file.
    Raises GrapeError: with file and line: not YAML, unknown key, wrong type, unknown verifier, duplicate id, zero total weight."""
    tree = yamlfile.parse(yamlfile.text_of(path), str(path), typ="rt")
    try:
        rubric = Rubric.model_validate(tree)
    except ValidationError as error:
        location, what = first_problem(error)
        where = f"{path}:{_line(tree, error.errors()[0]['loc'])}"
        raise GrapeError(f"{location or 'the file'}: {what}", where=where, mend="see rubrics/ for examples") from error
    for place, what, mend in _problems(rubric):
        raise GrapeError(what, where=f"{path}:{_line(tree, place)}", mend=mend)
    rubric._places.update({item.id: f"{path}:{_line(tree, ('items', i, 'id'))}" for i, item in enumerate(rubric.items)})
    return rubric


def load_rubrics(folder: Path) -> dict[str, Rubric]:
    """Every `*.yaml` of the folder by category.
    Raises GrapeError: none is there, one is wrong (file and line), two are of one category, or a name would be passed over."""
    rubrics: dict[str, Rubric] = {}
    for other in (*folder.glob("*.yml"), *folder.glob("*.YAML")):
        raise GrapeError("only *.yaml is read here", where=str(other), mend=f"rename it to {other.stem}.yaml")
    for path in sorted(folder.glob("*.yaml")):
        rubric = load_rubric(path)
        if rubric.category in rubrics:
            what = f"the category {rubric.category!r} has two rubrics"
            raise GrapeError(what, where=str(path), mend="merge them or rename one category")
        rubrics[rubric.category] = rubric
    if not rubrics:
        raise GrapeError("no rubric found", where=str(folder), mend="write one YAML file per category; see the README")
    return rubrics
