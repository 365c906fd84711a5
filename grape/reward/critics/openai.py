"""The server critic: a model behind an OpenAI-compatible server, which gives its reason first, then a score and how sure it is.

    score = the judge's,   confidence = the judge's, 0 a guess, 1 certain;
    evidence z = logit of 1/2 + confidence (score - 1/2), so that a judge that is not sure says nothing either way.

With a calibration, confidence is read from p = calibration(z) instead: the chance that people agree with the verdict score > 1/2,
or its margin over a coin. The score stays the judge's own: it may say "half right", which no yes or no does, unless
`verdict` asks for one: 1 if score > 1/2, else 0.

With K `repeats` a question is asked K times at the temperature (self-consistency, 2203.11171), each time with a seed of its own:

    score s = mean of s_k,   confidence = mean of c_k,   evidence z = logit of the mean of 1/2 + c_k (s_k - 1/2);
    `agreement`: confidence a = 1 - 2 std(s_1..s_K),     z = logit of 1/2 + a (s - 1/2).

What failed is left out; where half of the draws or more did, the score is missing.

Every judgement is one conversation of its own, so order and company change nothing. What was judged once is not asked again.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.randomness import key
from grape.reward.critics.agreement import LEAST_CONFIDENCE, agreement, evidence, least, mean_of
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.fence import EMPTY, NOTICE, SYSTEM, messages, new_mark
from grape.reward.critics.reply import Cache, Malformed, Opinion, digest, opinion, quotable, whole
from grape.reward.critics.transport import Endpoint, Exchange, Failure
from grape.reward.verdict import Certainty, Question, Scoring, Verdicts

logger = logging.getLogger("grape.reward")

ENDING = """Judge the answer by that question alone. Reply with one JSON object and nothing behind it:
{{"reason": "...", "score": ..., "confidence": ..., "key": "{mark}"}}
reason: at most three sentences, written before you decide. score: from 0, a clear no, to 1, a clear yes. confidence: how sure you \
are of the score, from 0, a guess, to 1, certain. key: as it stands above."""
REPAIR = "Your last reply could not be read: {why}. Reply with the JSON object alone."
WORDS = digest({"words": [SYSTEM, NOTICE, EMPTY, ENDING, REPAIR]})  # what was asked in other words is asked anew


def endpoint(url: str, key: str) -> Endpoint:
    """With what the machine says: GRAPE_CRITIC_CONCURRENCY, GRAPE_CRITIC_TIMEOUT (seconds), GRAPE_CRITIC_ATTEMPTS."""
    concurrency, timeout = _number("GRAPE_CRITIC_CONCURRENCY", 8), _number("GRAPE_CRITIC_TIMEOUT", 60)
    return Endpoint(url, key, timeout, int(_number("GRAPE_CRITIC_ATTEMPTS", 5)), int(concurrency))


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    with suppress(ValueError):
        value = float(text) if text else default
        if math.isfinite(value) and (value >= 1 or (value > 0 and name.endswith("TIMEOUT"))):
            return value
    raise GrapeError(f"{name} is {text!r}", where="environment", mend="a number of at least 1")


class ServerCritic:
    """A judge behind an OpenAI-compatible server.

    Args:
        model: the server's name for it. cache: a folder, or None for no cache.
        extra: more fields of the request, e.g. {"response_format": {"type": "json_object"}}; they win over grape's own.
        repeats: how often a question is asked; more than once needs a temperature above 0.
        repairs: how often a reply that cannot be read is asked for again.
        sleep: how to wait between attempts; default: really.

    Raises GrapeError: no address, or no key for an https server.
    """

    explains = True  # its reasons say why, so they can be given back to the policy

    def __init__(
        self, endpoint: Endpoint, model: str, calibration: Calibration | None = None, cache: Path | None = None,
        temperature: float = 0.0, max_tokens: int | None = 512, certainty: Certainty = "margin",
        extra: Mapping[str, object] | None = None, repairs: int = 1, sleep: Callable[[float], object] | None = None,
        repeats: int = 1, scoring: Scoring = "graded",
    ) -> None:  # fmt: skip
        if not endpoint.secret() and endpoint.url.startswith("https"):
            mend = f"set {endpoint.key} to the server's key"
            raise GrapeError(f"there is no key for {endpoint.url}", where="environment", mend=mend)
        self.endpoint, self.model, self.certainty = endpoint, model, certainty
        self.calibration, self.cache = calibration or Calibration({}), Cache(cache) if cache else None
        self.options = {"temperature": temperature, **({"max_tokens": max_tokens} if max_tokens else {}), **(extra or {})}
        self.repairs, self.sleep, self.repeats = repairs, sleep, repeats
        self.scoring: Scoring = scoring
        self.counts: Counter[str] = Counter()  # requests, retries, cached, missing, tokens: since the critic was made

    def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
        """Answers to questions; missing, with the reason, where none could be had after all attempts."""
        asked = list(zip(names, questions, strict=True))
        unique = {one: i for i, one in enumerate(dict.fromkeys(asked))}
        given = self._opinions([(name, question, draw) for name, question in unique for draw in range(self.repeats)])
        draws = [given[i : i + self.repeats] for i in range(0, len(given), self.repeats)]
        index = [unique[one] for one in asked]
        scores, stated = (
            torch.tensor([[getattr(o, name) for o in row] for row in draws]).reshape(-1, self.repeats)[index]
            for name in ("score", "confidence")
        )
        score, sure = mean_of(scores), mean_of(stated)
        z = evidence(mean_of(0.5 + stated.clamp(min=LEAST_CONFIDENCE) * (scores - 0.5)))
        if self.certainty == "agreement":
            sure = torch.where(score.isfinite(), agreement(scores), torch.nan)
            z = evidence(score, sure)
        self.counts.update(["missing"] * int(score.isnan().sum()))
        reasons = [_reason(row) for row in draws]
        sure = self._confidence(names, score, sure, z)
        return Verdicts(score, sure, tuple(reasons[i] for i in index), z).scored(self.scoring)

    def _confidence(self, names: Sequence[str], score: Tensor, stated: Tensor, z: Tensor) -> Tensor:
        p = self.calibration.apply(names, z)
        right = torch.where(score > 0.5, p, 1 - p)
        known = self.calibration.known(names)
        return torch.where(known, right if self.certainty == "right" else (2 * right - 1).clamp(min=0), stated)

    def _opinions(self, asked: Sequence[tuple[str, Question, int]]) -> list[Opinion]:
        """An opinion per item, question and draw: NaN, with why there is none, where it could not be had."""
        found: dict[int, Opinion] = {}
        keys = [digest(self._identity(*one)) for one in asked]
        if self.cache:
            found |= {i: known for i, key in enumerate(keys) if (known := self.cache.get(key)) is not None}
        self.counts.update(["cached"] * len(found))
        rest = [i for i in range(len(asked)) if i not in found]
        if rest:
            with Exchange(self.endpoint, self.sleep) as exchange:
                pool = ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="critic")
                try:
                    found |= zip(rest, pool.map(lambda i: self._ask(exchange, asked[i], keys[i]), rest), strict=True)
                finally:
                    exchange.over.set()  # wakes who waits for another attempt
                    pool.shutdown(cancel_futures=True)
                    self.counts += exchange.counts
        return [found[i] for i in range(len(asked))]

    def _identity(self, name: str, question: Question, draw: int) -> dict[str, object]:
        """All that decides an answer; the mark does not, and the key of the server is none of it. Draw 0 is who asks once, too."""
        return {
            "server": self.endpoint.url.rstrip("/"), "model": self.model, "options": self.options, "words": WORDS,
            "item": name, **vars(question), **({"draw": draw} if draw else {}),
        }  # fmt: skip

    def _ask(self, exchange: Exchange, asked: tuple[str, Question, int], digest: str) -> Opinion:
        """One judgement: a request, and one more for each reply that cannot be read."""
        name, question, _ = asked
        why, seed = "", {"seed": key("draw", digest) % 2**31} if self.repeats > 1 else {}
        for turn in range(self.repairs + 1):
            mark = new_mark(question, name, turn)
            ending = ENDING.format(mark=mark) + (f"\n{REPAIR.format(why=why)}" if why else "")
            body = {"model": self.model, "messages": messages(question, mark, ending), **seed, **self.options}
            try:
                reply = self._reply(exchange, exchange.post("/chat/completions", body, digest, turn))
                found = opinion(reply, mark, quotable(question))
            except Failure as failure:
                return Opinion(math.nan, math.nan, f"the critic's server: {failure.reason}")
            except Malformed as error:
                why = str(error)
                exchange.count("malformed")
                continue
            self._keep(digest, found, name, reply)
            return found
        return Opinion(math.nan, math.nan, f"the critic's reply could not be read: {why}")

    def _reply(self, exchange: Exchange, answer: Mapping[str, Any]) -> str:
        """The text of a chat completion.
        Raises Malformed: it has none, or not all of it. Failure: it was cut at max_tokens, as it would be again."""
        usage = answer.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("total_tokens"), int):
            exchange.count("tokens", usage["total_tokens"])
        try:
            choice = answer["choices"][0]
            content = choice["message"]["content"]
            if isinstance(content, list):
                content = "".join(part["text"] for part in content if part.get("type") == "text")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Malformed("no chat completion") from None
        if choice.get("finish_reason") == "length":
            raise Failure("the reply was cut at max_tokens", again=False)
        if not isinstance(content, str) or not content.strip():
            raise Malformed("no text")
        return whole(content)

    def _keep(self, key: str, found: Opinion, name: str, reply: str) -> None:
        if self.cache:
            try:
                self.cache.put(key, found, item=name, model=self.model, reply=reply)
            except OSError as error:  # the judgement is there all the same; the next run asks once more
                logger.warning("a judgement could not be kept in %s: %s", self.cache.folder, error)


def _reason(draws: Sequence[Opinion]) -> str:
    """Why a judge's draws say what they say: the reason of the one nearest to their mean; or why there are too few."""
    there = [one for one in draws if not math.isnan(one.score)]
    failed = [one.reason for one in draws if math.isnan(one.score)]
    if len(there) < least(len(draws)):
        few = f"{len(there)} of {len(draws)} draws could be had, fewer than {least(len(draws))}; the last that failed: "
        return (few if len(draws) > 1 else "") + failed[-1]
    mean = math.fsum(one.score for one in there) / len(there)
    return min(there, key=lambda one: abs(one.score - mean)).reason
