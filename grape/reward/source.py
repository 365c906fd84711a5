"""The rubric as a reward source: every item of a prompt's rubric goes to the judge of its kind, all asked and answering alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, get_args

import torch

from grape.errors import GrapeError
from grape.reward.critics.ahead import Ahead, waiting
from grape.reward.rubric import Item, Kind, Rubric
from grape.reward.verdict import Critic, Question, Undecidable, Verdict, Verdicts
from grape.reward.verifiers import Verify, build
from grape.types import Prompt, Response, Scores, added

RewardSource = Callable[[Sequence[Response]], Scores]
MET = 0.5  # a score from here on meets a gate or a parent item
QUOTED = 300  # characters of a judge's reason that go into a critique


@dataclass(frozen=True)
class Asked:
    """One item asked of one response. name: `category/item`."""

    name: str
    item: Item
    rubric: Rubric
    response: Response


class ItemJudge(Protocol):
    """explains: its reasons say more than its scores, so they can be given back to the policy."""

    explains: bool

    def judge(self, asked: Sequence[Asked], /) -> Verdicts:
        """Verdicts in order; missing, with the reason, where there can be none."""


@dataclass(frozen=True)
class VerifyJudge:
    """`verify`: the item's verifier, by the item's name. It is always sure."""

    checks: Mapping[str, Verify]
    explains = True

    def judge(self, asked: Sequence[Asked], /) -> Verdicts:
        given = []
        for one in asked:
            try:
                given.append(self.verdict(one.name, one.response.prompt, one.response.text))
            except Undecidable as error:
                given.append(Verdict(torch.nan, str(error)))
        impossible, passed = (sum(v.metrics.get(name, 0.0) for v in given) for name in ("impossible", "impossible_passed"))
        # Tests that no honest program passes: the share that was passed all the same.
        metrics = {"hack_rate": (float(passed), float(impossible))} if impossible else {}
        return _sure(torch.tensor([float(v) for v in given]), tuple(v.reason for v in given), metrics)

    def verdict(self, name: str, prompt: Prompt, text: str) -> Verdict:
        """Raises Undecidable: the verifier could not decide, or failed."""
        try:
            score = self.checks[name](prompt, text)
        except Undecidable:
            raise
        except Exception as error:  # libraries and patterns of other people, on a text that nobody chose
            raise Undecidable(f"the verifier raised {type(error).__name__}: {error}", "mend the item's options") from error
        return score if isinstance(score, Verdict) else Verdict(score)


class CriticJudge:
    """`critic`: the item's question, put to the critic."""

    def __init__(self, critic: Critic) -> None:
        self.critic, self.explains, self.servers = critic, critic.explains, waiting(critic)

    def judge(self, asked: Sequence[Asked], /) -> Verdicts:
        return self.critic.judge(*self.questions(asked))

    @staticmethod
    def questions(asked: Sequence[Asked]) -> tuple[list[str], list[Question]]:
        questions = [one.rubric.ask(one.item, one.response.prompt.conversation, one.response.text) for one in asked]
        return [one.name for one in asked], questions


@dataclass(frozen=True)
class RewardModelJudge:
    """`reward_model`: the reward model's score, squashed by a sigmoid into [0, 1]; as sure as the reward model is."""

    reward_model: RewardSource
    explains = False

    def judge(self, asked: Sequence[Asked], /) -> Verdicts:
        given = self.reward_model([one.response for one in asked])
        # One by one: a long vector is computed in another way than a short one, and company must not change a score.
        score = torch.stack([torch.sigmoid(one) for one in given.score[:, 0]])
        reasons = tuple(row[0] for row in given.reasons) or ("",) * len(asked)
        sure = _sure(torch.where(given.valid[:, 0], score, torch.nan), reasons)
        return replace(sure, confidence=given.confidence[:, 0].to(score))


def _sure(score: torch.Tensor, reasons: tuple[str, ...], metrics: Mapping[str, tuple[float, float]] | None = None) -> Verdicts:
    """Verdicts of a judge that knows no doubt."""
    return Verdicts(score, torch.ones_like(score), reasons, torch.full_like(score, torch.nan), metrics or {})


def _unmet(item: Item, reason: str) -> str:
    """`Is the result right? No, its last number is 7, which is not the answer.`"""
    question = item.question.strip()
    return f"{question}{' No' if question.endswith('?') else ': not met'}{f', {reason[:QUOTED]}' if reason else ''}."


class RubricReward:
    """Responses -> Scores over the items of all rubrics; an item that is not in the prompt's rubric has weight 0.

    Args:
        rubrics: by category. critic: for critic items. reward_model: for reward_model items.
        kinds: the kinds of items to use, default all.
    """

    def __init__(
        self, rubrics: Mapping[str, Rubric], critic: Critic | None = None, reward_model: RewardSource | None = None,
        kinds: frozenset[str] = frozenset(get_args(Kind)),
    ) -> None:  # fmt: skip
        self.rubrics = rubrics
        self.columns = [(c, item) for c, r in rubrics.items() for item in r.items if item.kind in kinds]
        self.names = tuple(f"{category}/{item.id}" for category, item in self.columns)
        checks = {f"{c}/{i.id}": build(i.verifier, i.options) for c, i in self.columns if i.verifier is not None}
        self.verify = VerifyJudge(checks)
        self.judges: dict[str, ItemJudge] = {"verify": self.verify}
        if critic is not None:
            self.judges["critic"] = CriticJudge(critic)
        if reward_model is not None:
            self.judges["reward_model"] = RewardModelJudge(reward_model)
        for kind in get_args(Kind):
            if kind not in self.judges and any(item.kind == kind for _, item in self.columns):
                what = f"the rubrics have {kind} items, but there is no {kind.replace('_', ' ')} to score them"
                raise GrapeError(what, where="rubrics/", mend=f"run the stage that makes it, or remove the {kind} items")

    def check(
        self, prompts: Iterable[Prompt], place: str | Callable[[Prompt], str] | None = None, usable: Collection[str] | None = None
    ) -> None:
        """Refuse prompts that could not be scored, before any training.

        Args:
            place: the file whose lines the prompts are, or what says where each stands; for messages.
            usable: categories that have something to be scored by; None: those with an item here.

        Raises GrapeError: a category without a rubric or without usable items, a verify item that needs an answer the prompt lacks,
        or whose verifier raises.
        """
        usable = {category for category, _ in self.columns} if usable is None else usable
        for number, prompt in enumerate(prompts, 1):
            at = f"{place}:{number}" if place else "data/prompts"
            where = place(prompt) if callable(place) else f"{at}, {prompt.id}"
            if prompt.category not in usable:
                mend = f"write rubrics/{prompt.category}.yaml"
                raise GrapeError(f"no rubric for the category {prompt.category!r}", where=where, mend=mend)
            rubric = self.rubrics[prompt.category]
            for item in rubric.items:
                name = f"{prompt.category}/{item.id}"
                try:
                    if name in self.verify.checks:
                        self.verify.verdict(name, prompt, "")
                except Undecidable as error:
                    mend = error.mend or "add the answer to the prompt or remove the item"
                    raise GrapeError(f"item {name}: {error}", where=f"{where}; {rubric.place(item.id)}", mend=mend) from error

    def __call__(self, responses: Sequence[Response]) -> Scores:
        shape = len(responses), len(self.columns)
        score, confidence, weight = torch.zeros(shape), torch.ones(shape), torch.zeros(shape)
        valid, reasons = torch.zeros(shape, dtype=torch.bool), [[""] * len(self.columns) for _ in responses]
        metrics: Mapping[str, tuple[float, float]] = {}
        for kind, judge in self.judges.items():
            asked = self._asked(kind, responses)
            if not asked:
                continue
            verdicts, at = judge.judge(list(asked.values())), tuple(torch.tensor(list(asked)).T)
            weight[at] = torch.tensor([one.item.weight for one in asked.values()])
            valid[at] = verdicts.valid.cpu()
            score[at] = torch.where(verdicts.valid, verdicts.score, 0.0).to(score)
            confidence[at] = torch.nan_to_num(verdicts.confidence, nan=0.0).to(confidence)
            for (b, k), reason in zip(asked, verdicts.reasons, strict=True):
                reasons[b][k] = reason
            metrics = added(metrics, verdicts.metrics)
        return self._held_back(Scores(self.names, score, confidence, valid, weight, tuple(map(tuple, reasons)), metrics))

    def _asked(self, kind: str, responses: Sequence[Response]) -> dict[tuple[int, int], Asked]:
        """(response, column) -> what the judge of `kind` is asked."""
        return {
            (b, k): Asked(self.names[k], item, self.rubrics[category], response)
            for b, response in enumerate(responses)
            for k, (category, item) in enumerate(self.columns)
            if category == response.prompt.category and item.kind == kind
        }

    def ahead(self) -> AbstractContextManager[Callable[[Response], None] | None]:
        """Within it, what it gives may be called with every response that is finished, before the rest of its round is: its judges
        that wait for a server are asked at once. None: there are none."""
        critic = self.judges.get("critic")
        if not isinstance(critic, CriticJudge) or not critic.servers:
            return nullcontext()
        return Ahead(critic.servers, lambda responses: critic.questions(list(self._asked("critic", responses).values())))

    def critique(self, responses: Sequence[Response], scores: Scores) -> list[str]:
        """Per response, the turn that asks the policy to mend it: the items it does not meet, each with the reason where its judge
        gave one. "" where there is nothing to mend, or nobody could say."""
        turns = []
        for b, response in enumerate(responses):
            category = response.prompt.category
            unmet = (scores.valid[b] & (scores.weight[b] > 0) & (scores.score[b] < MET)).nonzero().squeeze(1).tolist()
            asked = [(self.columns[k][1], scores.reasons[b][k]) for k in unmet]
            lines = [_unmet(item, reason if self.judges[item.kind].explains else "") for item, reason in asked]
            turns.append(self.rubrics[category].revise_prompt.replace("{critique}", "\n".join(lines)) if lines else "")
        return turns

    def _held_back(self, scores: Scores) -> Scores:
        """Without what a failed parent or gate takes away. Where the parent or gate itself is missing, so is what hangs on it."""
        score, valid, reasons = scores.score.clone(), scores.valid.clone(), [list(row) for row in scores.reasons]
        for k in range(len(self.columns)):
            asked = scores.weight[:, k] > 0
            for j in self._above(k):
                failed = asked & valid[:, j] & (score[:, j] < MET)
                for b in (failed & (score[:, k] > 0)).nonzero().squeeze(1).tolist():
                    reasons[b][k] = f"0, since {self.columns[j][1].id} is not met"
                score[failed, k] = 0.0
                valid[:, k] &= valid[:, j] | ~asked
        return replace(scores, score=score, valid=valid, reasons=tuple(map(tuple, reasons)))

    def _above(self, k: int) -> list[int]:
        """The columns of item k's parent, and of its rubric's gates."""
        category, item = self.columns[k]
        mates = [(j, other) for j, (c, other) in enumerate(self.columns) if c == category and other is not item]
        return [j for j, other in mates if other.id == item.parent] + [j for j, other in mates if other.gate]
