"""Who judges an item of a rubric: a judge for each kind of item, all asked and answering alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from grape.reward.critics.question import Critic
from grape.reward.rubric import Item, Rubric
from grape.reward.verdict import Undecidable, Verdict, Verdicts
from grape.reward.verifiers import Verify
from grape.types import Prompt, Response, Scores

RewardSource = Callable[[Sequence[Response]], Scores]


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


class VerifyJudge:
    """`verify`: the item's verifier, by the item's name. It is always sure."""

    explains = True

    def __init__(self, checks: Mapping[str, Verify]) -> None:
        self.checks = dict(checks)

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
        """
        Raises:
            Undecidable: the verifier could not decide, or failed.
        """
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
        self.critic, self.explains = critic, critic.explains

    def judge(self, asked: Sequence[Asked], /) -> Verdicts:
        questions = [one.rubric.ask(one.item, one.response.prompt.conversation, one.response.text) for one in asked]
        return self.critic.judge([one.name for one in asked], questions)


class RewardModelJudge:
    """`reward_model`: the reward model's score, squashed by a sigmoid into [0, 1]."""

    explains = False

    def __init__(self, reward_model: RewardSource) -> None:
        self.reward_model = reward_model

    def judge(self, asked: Sequence[Asked], /) -> Verdicts:
        given = self.reward_model([one.response for one in asked])
        # One by one: a long vector is computed in another way than a short one, and company must not change a score.
        score = torch.stack([torch.sigmoid(one) for one in given.score[:, 0]])
        reasons = tuple(row[0] for row in given.reasons) or ("",) * len(asked)
        return _sure(torch.where(given.valid[:, 0], score, torch.nan), reasons)


def _sure(score: torch.Tensor, reasons: tuple[str, ...], metrics: Mapping[str, tuple[float, float]] | None = None) -> Verdicts:
    """Verdicts of a judge that knows no doubt."""
    return Verdicts(score, torch.ones_like(score), reasons, torch.full_like(score, torch.nan), metrics or {})
