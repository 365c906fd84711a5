"""A judge's reply as a score, a confidence and a reason: read tolerantly in form, and never in doubt; kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from grape.files import write_text
from grape.reward.verdict import Question
from grape.sandbox.protocol import distinct

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*(%?)", re.ASCII)
_START = re.compile(r'\{\s*"')
LONGEST_REPLY = 131072  # characters, from the end: the verdict stands last
LONGEST_OBJECT = 16384
LONGEST_REASON = 1000


class Malformed(Exception):
    """No verdict can be read from the reply. The message says why and quotes nothing of it."""


@dataclass(frozen=True)
class Opinion:
    """What a judge said: score and confidence in [0, 1], NaN where it said none, and why."""

    score: float
    confidence: float
    reason: str


def quotable(question: Question) -> bool:
    """Whether the judged text holds something that, quoted by the judge, could be taken for its verdict."""
    text = unicodedata.normalize("NFKC", question.prompt + question.response)
    return "{" in text


def opinion(reply: str, mark: str, strict: bool) -> Opinion:
    """The verdict of a reply: the last JSON object with a score that carries the mark, whatever stands around it.

    Args:
        strict: no object without the mark counts. Judges forget it now and then; where the judged text has no brace, an object
            in the reply cannot be quoted from there, and the last one counts without it.

    Raises:
        Malformed: there is none, or `checked` refuses it.
    """
    text = reply[-LONGEST_REPLY:]
    marked = list(_objects(text, lambda given: "score" in given and str(given.get("key")).strip().lower() == mark))
    found = marked or list(_objects(text, lambda given: "score" in given))
    if not marked and (strict or not found):
        raise Malformed("no JSON object with the right key" if found else "no JSON object with a score")
    return checked(found[-1])


def checked(given: Mapping[str, object]) -> Opinion:
    """A JSON object as an opinion. Raises Malformed: a number is missing, none, not finite or out of [0, 1]. Nothing is clamped."""
    reason = given.get("reason")
    text = whole("" if reason is None else str(reason))[:LONGEST_REASON]
    return Opinion(_fraction(given, "score"), _fraction(given, "confidence"), text)


def whole(text: str) -> str:
    """The text without halves of characters, which JSON can hold and no file can."""
    return text.encode("utf-8", "replace").decode()


def _objects(text: str, wanted: Callable[[Mapping[str, object]], bool]) -> Iterator[dict[str, object]]:
    """The wanted JSON objects from left to right. Only of a wanted one the inside is passed over: whatever a quotation opens
    or closes around the verdict, the verdict is found. Raises Malformed: brackets inside of brackets inside of brackets."""
    decoder = json.JSONDecoder(object_pairs_hook=distinct)
    found = _START.search(text)
    while found:
        start, end = found.start(), found.start() + 1
        try:
            # A piece of bounded length: the decoder's errors count the lines of all it was given.
            given, length = decoder.raw_decode(text[start : start + LONGEST_OBJECT])
            if wanted(given):
                yield given
                end = start + length
        except ValueError:  # also a number of too many digits
            pass
        except RecursionError:
            raise Malformed("the reply is nested too deeply") from None
        found = _START.search(text, end)


def _fraction(given: Mapping[str, object], name: str) -> float:
    """A number in [0, 1]: 0.8, "0.8", "80 %". 80 without a percent sign is out of range."""
    value = given.get(name)
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) if abs(value) <= 1 else math.inf
    elif isinstance(value, str) and (form := _NUMBER.fullmatch(value.strip())):
        number = float(value.strip().removesuffix("%")) / (100 if form[1] else 1)
    if math.isnan(number):
        raise Malformed(f"the {name} is {'no number' if name in given else 'missing'}")
    if not 0 <= number <= 1:
        raise Malformed(f"the {name} is not between 0 and 1")
    return abs(number)  # -0.0


def digest(asked: Mapping[str, object]) -> str:
    """SHA-256 of what was asked, as JSON with sorted names."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of judgements, which threads and processes may share: an entry is whole or not there. Errors are never kept.

    Each is a file of its own, named by the hash of everything that was asked.
    """

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.json"

    def get(self, name: str) -> Opinion | None:
        """The judgement, or None: not there, or damaged, in which case it is asked for again."""
        try:
            return checked(json.loads(self.path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, Malformed):
            return None

    def put(self, name: str, opinion: Opinion, **more: str) -> None:
        """Keep a judgement; `more` is for people who look into the file."""
        entry = {"score": opinion.score, "confidence": opinion.confidence, "reason": opinion.reason, **more}
        write_text(self.path(name), json.dumps(entry, ensure_ascii=False, indent=1) + "\n", shared=True)
