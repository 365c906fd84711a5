"""What a round is sampled from: prompts, groups drawn again, and revisions of what was just answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from grape.algorithms.base import OnlineParams
from grape.maths.advantage import constant_groups
from grape.models.chat import Chat
from grape.models.encode import collate
from grape.models.forward import Dtype
from grape.randomness import permutation
from grape.sampling import RolloutEngine, answers, response_rows
from grape.training.revision import choose, gain, groups
from grape.training.sums import Sums
from grape.types import Prompt, Response, Rollouts, Scores

Score = Callable[[Sequence[Response]], Scores]
Critique = Callable[[Sequence[Response], Scores], Sequence[str]]
Ahead = Callable[[], AbstractContextManager[Callable[[Response], None] | None]]


def draw(n: int, size: int, update: int, keys: Sequence[object]) -> list[int]:
    """Indices of update t: `size` consecutive places of an endless row of counted permutations of range(n), an epoch each."""
    places = range(update * size, (update + 1) * size)
    orders = {epoch: permutation(n, *keys, "epoch", epoch) for epoch in {p // n for p in places}}
    return [int(orders[p // n][p % n]) for p in places]


@dataclass(frozen=True)
class Sampling:
    """How rounds are sampled: P prompts a round, G samples each, at `temperature`, within `positions` tokens."""

    prompts: int
    samples: int
    temperature: float
    max_new_tokens: int
    positions: int
    micro_batch_tokens: int
    max_missing: float
    kl_every: int = 0
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class Drawn:
    """One round, group by group: answers to plain prompts first, then revisions.

    Attributes:
        responses: as they are learned from. scores: of each as an answer to the question itself.
        revises: per response the row it revises, -1: none; None in a round without revisions.
        plain: how many rows answer plain prompts.
        thrown: answers of groups that were drawn again, and their tokens: they were paid for.
    """

    responses: list[Response]
    scores: Scores
    plain: int
    revises: list[int] | None = None
    metrics: Sums = field(default_factory=dict)
    thrown: tuple[int, int] = (0, 0)

    def rollouts(self, chat: Chat, sampling: Sampling) -> Rollouts:
        tokens = collate(response_rows(chat, self.responses), chat.pad)
        group = torch.arange(sampling.prompts).repeat_interleave(sampling.samples)
        finished = torch.tensor([response.finished for response in self.responses])
        revises = None if self.revises is None else torch.tensor(self.revises)
        said = [torch.tensor(r.logp or [torch.nan] * len(r.ids)) for r in self.responses]
        return Rollouts.of(
            tokens, group=group, finished=finished, revises=revises, limit=sampling.max_new_tokens,
            logp_sampler=pad_sequence(said, batch_first=True),
        )  # fmt: skip


@dataclass(frozen=True)
class Sampler:
    """Draws rounds.

    Attributes:
        critique: the turn that asks the policy to mend an answer, "" where there is nothing to mend.
        ahead: what it gives is told of each answer to a plain prompt once that is finished, so that judges who wait can be asked.
    """

    engine: RolloutEngine
    chat: Chat
    prompts: Sequence[Prompt]
    score: Score
    params: OnlineParams
    sampling: Sampling
    keys: Sequence[object]
    critique: Critique | None = None
    ahead: Ahead = nullcontext

    def round(self, update: int) -> Drawn:
        self.engine.follow()
        revisions = groups(self.params, self.sampling.prompts)
        responses, scores, metrics, thrown = self._plain(update, self.sampling.prompts - revisions)
        if not revisions:
            return Drawn(responses, scores, len(responses), None, metrics, thrown)
        return replace(self._revised(update, revisions, responses, scores, metrics), thrown=thrown)

    def _prompts(self, count: int, update: int, *what: object) -> list[Prompt]:
        return [self.prompts[i] for i in draw(len(self.prompts), count, update, (*self.keys, *what))]

    def _answers(
        self, chosen: Sequence[Prompt], update: int, *wave: object, told: Callable[[Response], None] | None = None
    ) -> list[Response]:
        how = self.sampling
        return answers(
            self.engine,
            self.chat,
            chosen,
            how.samples,
            temperature=how.temperature,
            max_new_tokens=how.max_new_tokens,
            positions=how.positions,
            keys=(*self.keys, "rollout", update, *wave),
            told=told,
        )

    def _answered(self, chosen: Sequence[Prompt], update: int, *wave: object) -> list[Response]:
        """Answers to plain prompts, which are judged as they are."""
        with self.ahead() as told:
            return self._answers(chosen, update, *wave, told=told)

    def _plain(self, update: int, count: int) -> tuple[list[Response], Scores, Sums, tuple[int, int]]:
        """Answers to `count` prompts, and `Drawn.thrown`. A group whose rewards are all equal is drawn again, as often as
        `resample` says."""
        samples = self.sampling.samples
        responses, again = self._answered(self._prompts(count, update, "prompts"), update), 0.0
        scores, thrown = self.score(responses), list[Response]()
        for attempt in range(1, self.params.resample + 1):
            flat = _flat_groups(scores, samples)
            if not flat:
                break
            fresh = self._answered(self._prompts(len(flat), update, "prompts again", attempt), update, attempt)
            rows = [group * samples + g for group in flat for g in range(samples)]
            thrown += (responses[row] for row in rows)
            for row, response in zip(rows, fresh, strict=True):
                responses[row] = response
            scores = scores.replaced(rows, self.score(fresh))
            again += len(flat)
        tokens = sum(len(row.prompt) + len(row.response) for row in response_rows(self.chat, thrown))
        metrics: Sums = {"groups_drawn_again": (again, 1.0)} if self.params.resample else {}
        return responses, scores, metrics, (len(thrown), tokens)

    def _revised(self, update: int, count: int, responses: list[Response], scores: Scores, metrics: Sums) -> Drawn:
        """`count` more groups: revisions, and answers to other plain prompts where there was too little to mend."""
        if self.critique is None:
            raise ValueError("revisions need a critique")
        samples, first = self.sampling.samples, len(responses)
        found = choose(responses, self.critique(responses, scores), count, self._fits, (*self.keys, "revise", update))
        others = self._prompts(count - len(found), update, "prompts instead")
        fresh = self._answers([*others, *(prompt for _, prompt in found)], update, "revision")
        plain = first + len(others) * samples
        revises = [-1] * plain + [row for row, _ in found for _ in range(samples)]
        # Judged as answers to the question itself; the judge never sees the critique. It was after the critique, not after the
        # question, that the sampler found them so likely.
        plainly = [
            r if of < 0 else replace(r, prompt=responses[of].prompt, logp=None)
            for r, of in zip(fresh, revises[first:], strict=True)
        ]
        scores = scores.join(self.score(plainly))
        metrics |= {"revision/share": (len(found) / self.sampling.prompts, 1.0), **gain(scores, revises, samples)}
        return Drawn(responses + (plainly if self.params.distils else fresh), scores, plain, revises, metrics)

    def _fits(self, prompt: Prompt) -> bool:
        return len(self.chat.prompt(prompt.messages, prompt.id)) + self.sampling.max_new_tokens <= self.sampling.positions


def _flat_groups(scores: Scores, samples: int) -> list[int]:
    """The groups whose rewards are all equal."""
    group = torch.arange(scores.score.shape[0] // samples).repeat_interleave(samples)
    reward, known = scores.reward(group)
    flat: list[int] = group[constant_groups(reward, known, group)].unique().tolist()
    return flat
