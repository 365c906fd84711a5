"""The logit critic: a causal language model, asked for a yes or no and read from the probabilities of its verdict tokens.

    z = log p(yes) - log p(no) at the first token that tells them apart,   p = calibration(z),
    score = p, or the verdict, 1 if p > 1/2 and else 0,
    confidence = max(p, 1 - p), the calibrated chance that the verdict is right, or its margin |2p - 1|.

Nothing is generated, so there is no reply that the policy's text could forge. With K `repeats` the verdict is drawn K times, at a
temperature T, from sigma(z / T): score = share of yes among them, or what a calibration makes of its log-odds; `agreement` of the
draws may be the confidence. Draws estimate what z says exactly: they show what a judge whose logits cannot be read would lose.

How a question is put to the model is a prompt builder's. `TrainedPrompts`: to the critic stage's model, in the very words it was
trained on; a raw language model is overconfident, so that stage fits the calibration on held-out judgements. `FencedPrompts`: to
any causal language model, about what stands behind a fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.models.chat import Chat
from grape.models.encode import collate
from grape.models.forward import Dtype, Weights, micro_batches, response_logits
from grape.models.load import device, load_language_model, positions
from grape.models.template import Template, is_plain
from grape.randomness import generator
from grape.reward.critics.agreement import agreement, evidence
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.fence import messages, new_mark, special_tokens
from grape.reward.verdict import Certainty, Question, Scoring, Verdicts

YES, NO = "yes", "no"
# Where a template knows reasoning, the verdict is to come first and not a chain of thought. Others ignore the argument.
AT_ONCE = Template(arguments={"enable_thinking": False})
ENDING = "Reply with one word alone, {} or {}."
DIGITS = 6  # of the fence's mark. It stands in a question eight times, a token a digit: with 16 it was two fifths of a short one


class Fork(NamedTuple):
    """Token ids up to where the verdicts part, and the first token of yes and of no behind them."""

    ids: list[int]
    yes: int
    no: int


class Prompts(Protocol):
    """How questions are put to a language model. pad: id for padding."""

    pad: int

    def text(self, question: Question) -> str:
        """What the model reads of the question; of two with the same text one is asked."""

    def fork(self, text: str) -> Fork:
        """That text in tokens."""


class LogitCritic:
    """A language model as a judge. max_tokens: of one forward pass."""

    explains = False

    def __init__(
        self, model: Any, prompts: Prompts, calibration: Calibration, certainty: Certainty, max_tokens: int = 16384,
        dtype: Dtype = "float32", repeats: int = 1, temperature: float = 0.0, scoring: Scoring = "graded",
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.calibration, self.certainty = model, prompts, calibration, certainty
        self.max_tokens, self.dtype, self.repeats, self.temperature = max_tokens, dtype, repeats, temperature
        self.scoring: Scoring = scoring

    def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
        """Answers to questions; missing where the text is too long to judge, or the logits are not finite."""
        texts = [self.prompts.text(question) for question in questions]
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        forks = [self.prompts.fork(text) for text in place]
        fitting = [i for i, fork in enumerate(forks) if len(fork.ids) < positions(self.model)]  # else no place for a verdict
        z = self._log_odds(forks, fitting)[[place[text] for text in texts]]
        drawn = drawn_verdicts(texts, z, self.repeats, self.temperature) if self.repeats > 1 else None
        if drawn is not None:
            z = evidence(drawn.mean(1), agreement(drawn) if self.certainty == "agreement" else None)
        score, fits = self.calibration.apply(names, z), set(fitting)
        sure = certainty(score, self.certainty)
        if drawn is not None:
            known = self.calibration.known(names)
            score = torch.where(known, score, drawn.mean(1))
            sure = torch.where(known, sure, agreement(drawn) if self.certainty == "agreement" else certainty(score, self.certainty))
        reasons = tuple(
            "the text is longer than the critic's positions" if place[text] not in fits
            else f"critic says yes with probability {p:.2f}" if p == p else "the critic's logits are not finite"
            for text, p in zip(texts, score.tolist(), strict=True)
        )  # fmt: skip
        return Verdicts(score, sure, reasons, z).scored(self.scoring)

    @torch.no_grad()
    def _log_odds(self, forks: Sequence[Fork], fitting: Sequence[int]) -> Tensor:
        """(n,) z = log p(yes) - log p(no) on the CPU: probabilities normalised over the two, of the model's own distribution.

        NaN where a fork is not among `fitting`, or where the logits are not finite.
        """
        z = torch.full((len(forks),), torch.nan)
        if not fitting:
            return z
        verdicts = torch.tensor([forks[i][1:] for i in fitting], device=self.model.device)
        batch = collate([(forks[i].ids, [forks[i].yes]) for i in fitting], self.prompts.pad).to(self.model.device)
        for index in micro_batches(batch, self.max_tokens):
            logits = response_logits(self.model, batch.select(index), self.dtype)[:, 0].float()
            pair = logits.gather(1, verdicts[index])
            z[[fitting[i] for i in index.tolist()]] = (pair[:, 0] - pair[:, 1]).cpu()
        return torch.where(z.isfinite(), z, torch.nan)


def drawn_verdicts(texts: Sequence[str], z: Tensor, repeats: int, temperature: float) -> Tensor:
    """(n, K) verdicts, 1 for yes, drawn from sigma(z / T) with uniforms that depend on the text alone; NaN where z (n,) is. More
    repeats begin with the same draws."""
    uniform = np.stack([generator("verdicts", text).random(repeats) for text in texts] or [np.empty(repeats)])[: len(texts)]
    yes = (torch.from_numpy(uniform) < torch.sigmoid(z.double() / temperature).unsqueeze(1)).float()
    return torch.where(z.isfinite().unsqueeze(1), yes, torch.nan)


def certainty(p: Tensor, kind: Certainty) -> Tensor:
    """How sure a probability of yes is of its verdict: "right": max(p, 1 - p), the chance that it is right; "margin": |2p - 1|.
    The latter stands for "agreement" too, once a calibration has made a probability of it."""
    return torch.maximum(p, 1 - p) if kind == "right" else (2 * p - 1).abs()


def part(yes: Sequence[int], no: Sequence[int]) -> Fork:
    """Where the tokens of a text with yes behind it and those with no behind it part.
    Raises GrapeError: one begins with the whole other, so that no token tells them apart."""
    for i, (a, b) in enumerate(zip(yes, no, strict=False)):
        if a != b:
            return Fork(list(yes[:i]), a, b)
    what = "the critic's verdicts begin alike in this tokenizer, so that no token tells them apart"
    raise GrapeError(what, where="critic", mend="use a model that knows the letters of yes and no, or other verdict words")


class TrainedPrompts:
    """Questions as the critic stage taught them. Control tokens in the policy's text are read as text: it cannot end its turn."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.pad = chat, chat.pad
        self.verdicts = verdict_tokens(chat)

    def text(self, question: Question) -> str:
        return question.text

    def fork(self, text: str) -> Fork:
        asked = self.chat.prompt([{"role": "user", "content": text}], "critic")
        return self.verdicts._replace(ids=asked + self.verdicts.ids)


def trained_critic(
    model: Any, chat: Chat, calibration: Calibration, max_tokens: int = 16384, dtype: Dtype = "float32",
    certainty: Certainty = "right", scoring: Scoring = "graded",
) -> LogitCritic:  # fmt: skip
    """Its confidence is the calibrated probability that its verdict is right, unless `certainty` says otherwise."""
    return LogitCritic(model, TrainedPrompts(chat), calibration, certainty, max_tokens, dtype, scoring=scoring)


def verdict_tokens(chat: Chat) -> Fork:
    """What both verdicts begin with in this tokenizer, and the first token at which they differ."""
    asked = {"role": "user", "content": "?"}
    return part(*(chat.conversation([asked, {"role": "assistant", "content": v}], "critic").row.response for v in (YES, NO)))


class FencedPrompts:
    """Questions with the policy's text fenced. chat: ask through this chat template; None: as plain text that ends in "Answer:".
    verdicts: the words for yes and no."""

    def __init__(self, tokenizer: Any, chat: Chat | None, verdicts: tuple[str, str] = (YES, NO)) -> None:
        self.tokenizer, self.chat, self.verdicts = tokenizer, chat, verdicts
        self.pad, self.special = int(tokenizer.pad_token_id), special_tokens(tokenizer)
        self.takes_system = chat is not None and _takes_system(chat)

    def text(self, question: Question) -> str:
        turns = messages(question, new_mark(question, digits=DIGITS), ENDING.format(*self.verdicts), self.special)
        joined = "\n\n".join(turn["content"] for turn in turns)
        if self.chat is None:
            return f"{joined}\n\nAnswer:"
        return self.chat.text(turns if self.takes_system else [{"role": "user", "content": joined}], True, "critic")

    def fork(self, text: str) -> Fork:
        """With either verdict behind it the text is tokenised as a whole, because a tokenizer may join the two."""
        if self.chat is None:
            return part(*(self.tokenizer(f"{text} {word}")["input_ids"] for word in self.verdicts))
        return part(*(self.chat.tokens(text + word) for word in self.verdicts))


def local_critic(
    base: str, calibration: Calibration, revision: str | None = None, dtype: Dtype = "float32", max_tokens: int = 16384,
    certainty: Certainty = "margin", repeats: int = 1, temperature: float = 0.0, weights: Weights = "float32",
    scoring: Scoring = "graded",
) -> LogitCritic:  # fmt: skip
    """From a directory, a GGUF file or a hub id."""
    model, tokenizer = load_language_model(base, revision, weights)
    # Loading gives a tokenizer without a template ours, which a model that grape trained has on disk.
    templated = not is_plain(tokenizer) or (Path(base) / "chat_template.jinja").is_file()
    chat = Chat(tokenizer, AT_ONCE, model) if templated else None
    prompts = FencedPrompts(tokenizer, chat)
    return LogitCritic(model.to(device()), prompts, calibration, certainty, max_tokens, dtype, repeats, temperature, scoring)


def _takes_system(chat: Chat) -> bool:
    """Whether the chat template has a place for a system message: some refuse it, some leave it out without a word."""
    turns = [{"role": "system", "content": "of the system"}, {"role": "user", "content": "of the user"}]
    try:
        chat.text(turns, True)
    except GrapeError:
        return False
    return True
