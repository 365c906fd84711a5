"""The rubric as a reward source: every item of a prompt's rubric is checked, asked of the critic, or scored by the reward model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from grape.errors import GrapeError
from grape.reward.critics.question import Critic
from grape.reward.rubric import Item, Rubric
from grape.reward.verdict import Undecidable
from grape.reward.verifiers import Verify, build
from grape.types import Prompt, Response, Scores

# A score from here on meets a gate or a parent item.
MET = 0.5
LONGEST_REASON = 300  # characters of a judge's reason that go into a critique

RewardSource = Callable[[Sequence[Response]], Scores]


def _unmet(item: Item, reason: str) -> str:
    """`Is the result right? No, its last number is 7, which is not the answer.`"""
    question = item.question.strip()
    return f"{question}{' No' if question.endswith('?') else ': not met'}{f', {reason[:LONGEST_REASON]}' if reason else ''}."


class RubricReward:
    """Responses -> Scores over the items of all rubrics; an item that is not in the prompt's rubric has weight 0.

    Args:
        rubrics: by category. critic: for critic items. reward_model: for reward_model items, squashed by a sigmoid into [0, 1].
        kinds: the kinds of items to use, default all.
    """

    def __init__(
        self,
        rubrics: Mapping[str, Rubric],
        critic: Critic | None = None,
        reward_model: RewardSource | None = None,
        kinds: frozenset[str] = frozenset({"verify", "critic", "reward_model"}),
    ) -> None:
        self.rubrics, self.critic, self.reward_model = rubrics, critic, reward_model
        self.columns = [(c, item) for c, r in rubrics.items() for item in r.items if item.kind in kinds]
        self.names = tuple(f"{category}/{item.id}" for category, item in self.columns)
        self.verify: dict[str, Verify] = {
            f"{c}/{i.id}": build(i.verifier, i.options) for c, i in self.columns if i.verifier is not None
        }
        for kind, there in (("critic", critic), ("reward_model", reward_model)):
            if there is None and any(item.kind == kind for _, item in self.columns):
                raise GrapeError(
                    f"the rubrics have {kind} items, but there is no {kind.replace('_', ' ')} to score them",
                    where="rubrics/",
                    mend=f"run the stage that makes it, or remove the {kind} items",
                )

    def check(
        self, prompts: Sequence[Prompt], place: str | Callable[[Prompt], str] | None = None, usable: Collection[str] | None = None
    ) -> None:
        """Refuse prompts that could not be scored, before any training.

        Args:
            place: the file whose lines the prompts are, or what says where each stands; for messages.
            usable: categories that have something to be scored by; None: those with an item here.

        Raises:
            GrapeError: a category without a rubric or without usable items, a verify item that needs an answer the prompt lacks,
                or whose verifier raises.
        """
        usable = {category for category, _ in self.columns} if usable is None else usable
        for number, prompt in enumerate(prompts, 1):
            if callable(place):
                where = place(prompt)
            else:
                where = f"{place}:{number}, {prompt.id}" if place else f"data/prompts, {prompt.id}"
            if prompt.category not in usable:
                raise GrapeError(
                    f"no rubric for the category {prompt.category!r}",
                    where=where,
                    mend=f"write rubrics/{prompt.category}.yaml",
                )
            rubric = self.rubrics[prompt.category]
            for item in rubric.items:
                if f"{prompt.category}/{item.id}" in self.verify:
                    try:
                        self._verified(f"{prompt.category}/{item.id}", prompt, "")
                    except Undecidable as error:
                        raise GrapeError(
                            f"item {prompt.category}/{item.id}: {error}",
                            where=f"{where}; {rubric.place(item.id)}",
                            mend=error.mend or "add the answer to the prompt or remove the item",
                        ) from error

    def _verified(self, name: str, prompt: Prompt, text: str) -> float:
        """
        Raises:
            Undecidable: the verifier could not decide, or failed.
        """
        try:
            return self.verify[name](prompt, text)
        except Undecidable:
            raise
        except Exception as error:  # libraries and patterns of other people, on a text that nobody chose
            raise Undecidable(f"the verifier raised {type(error).__name__}: {error}", "mend the item's options") from error

    def __call__(self, responses: Sequence[Response]) -> Scores:
        rows, items = len(responses), len(self.columns)
        score, confidence = torch.zeros(rows, items), torch.ones(rows, items)
        valid, weight = torch.zeros(rows, items, dtype=torch.bool), torch.zeros(rows, items)
        reasons = [[""] * items for _ in responses]
        counts: dict[str, float] = {}
        asked: list[tuple[int, int]] = []
        learned: list[tuple[int, int]] = []
        for b, response in enumerate(responses):
            for k, (category, item) in enumerate(self.columns):
                if category != response.prompt.category:
                    continue
                weight[b, k] = item.weight
                if item.kind == "verify":
                    try:
                        verdict = self._verified(self.names[k], response.prompt, response.text)
                        score[b, k], valid[b, k] = verdict, True
                        reasons[b][k] = getattr(verdict, "reason", "")
                        for name, count in getattr(verdict, "metrics", {}).items():
                            counts[name] = counts.get(name, 0.0) + float(count)
                    except Undecidable as error:
                        reasons[b][k] = str(error)
                else:
                    (asked if item.kind == "critic" else learned).append((b, k))
        if asked:
            self._ask_critic(responses, asked, score, confidence, valid, reasons)
        if learned:
            assert self.reward_model is not None
            given = self.reward_model([responses[b] for b, _ in learned])
            for n, (b, k) in enumerate(learned):
                score[b, k], valid[b, k] = torch.sigmoid(given.score[n, 0]), given.valid[n, 0]
                reasons[b][k] = given.reasons[n][0] if given.reasons else ""
        self._hold_back(score, valid, weight, reasons)
        metrics = {}
        if counts.get("impossible"):  # tests that no honest program passes: the share that was passed all the same
            metrics["hack_rate"] = (counts.get("impossible_passed", 0.0), counts["impossible"])
        return Scores(self.names, score, confidence, valid, weight, tuple(tuple(r) for r in reasons), metrics)

    def critique(self, responses: Sequence[Response], scores: Scores) -> list[str]:
        """Per response, the turn that asks the policy to mend it: the items it does not meet, each with the reason where its judge
        gave one. "" where there is nothing to mend, or nobody could say."""
        turns = []
        for b, response in enumerate(responses):
            category = response.prompt.category
            unmet = (scores.valid[b] & (scores.weight[b] > 0) & (scores.score[b] < MET)).nonzero().squeeze(1).tolist()
            lines = [_unmet(self.columns[k][1], scores.reasons[b][k] if self._explains(k) else "") for k in unmet]
            turns.append(self.rubrics[category].revise_prompt.replace("{critique}", "\n".join(lines)) if lines else "")
        return turns

    def _explains(self, k: int) -> bool:
        """Whether the reasons of item k say more than its score: a probability in words is no critique."""
        kind = self.columns[k][1].kind
        return kind == "verify" or (kind == "critic" and getattr(self.critic, "explains", False))

    def _hold_back(
        self, score: torch.Tensor, valid: torch.Tensor, weight: torch.Tensor, reasons: list[list[str]]
    ) -> None:
        """What a failed parent or gate takes away. Where the parent or gate itself is missing, so is what hangs on it."""
        place = {name: k for k, name in enumerate(self.names)}
        for k, (category, item) in enumerate(self.columns):
            above = [place.get(f"{category}/{item.parent}")] if item.parent is not None else []
            above += [place[f"{category}/{o.id}"] for c, o in self.columns if c == category and o.gate and o is not item]
            for j in (j for j in above if j is not None):
                asked = weight[:, k] > 0
                failed = asked & valid[:, j] & (score[:, j] < MET)
                for b in (failed & (score[:, k] > 0)).nonzero().squeeze(1).tolist():
                    reasons[b][k] = f"0, since {self.columns[j][1].id} is not met"
                score[failed, k] = 0.0
                valid[:, k] &= valid[:, j] | ~asked

    def _ask_critic(
        self,
        responses: Sequence[Response],
        asked: Sequence[tuple[int, int]],
        score: torch.Tensor,
        confidence: torch.Tensor,
        valid: torch.Tensor,
        reasons: list[list[str]],
    ) -> None:
        assert self.critic is not None
        questions = [
            self.rubrics[self.columns[k][0]].ask(self.columns[k][1], responses[b].prompt.conversation, responses[b].text)
            for b, k in asked
        ]
        verdicts = self.critic.judge([self.names[k] for _, k in asked], questions)
        for n, (b, k) in enumerate(asked):
            valid[b, k] = verdicts.valid[n]
            reasons[b][k] = verdicts.reasons[n]
            if valid[b, k]:
                score[b, k], confidence[b, k] = verdicts.score[n], verdicts.confidence[n]
            else:
                confidence[b, k] = 0.0
