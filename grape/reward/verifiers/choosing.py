"""Which letter a text chooses, as the verifier `choice` reads it."""

from __future__ import annotations

import re
from functools import lru_cache

from grape.reward.verifiers.reading import boxed

# What may stand around a letter; at most so many, since texts of models are degenerate at times.
_OPEN, _CLOSE = r"[(\[*_\"'$]{0,6}", r"[)\]*_\"']{0,6}"
_ALONE = r"(?![A-Za-z0-9'])"
# What looks like a letter to choose, and is a word: "A cat", "I think".
_WORD = r"(?!A (?!or\b|and\b)[a-z]|I [a-z]|I')"
_IS = r"(?: is| would be| must be| should be)?(?: option| choice)?"
_NO = r"(?:incorrect|wrong|not|too|false|out|invalid|impossible)\b"
_LACKS = r"(?:lacks?|fails?|cannot|can't|does not|doesn't|do not|don't|contradicts?|ignores?)\b"
_DENIES = r"(?i:rul(?:e|es|ed|ing) out|(?:eliminat|exclud)(?:e|es|ed|ing)|(?:discard|reject)(?:s|ed|ing)?)"
_MARK_UP = re.compile(r"\\(?:text|math)\w*|\\[()\[\]]|[{}$]|</?answer>")


def chosen(text: str, letters: str) -> str | None:
    """The letter, from the plainest statement there is: a box, "the answer is B", a line that is or begins with a letter, the only
    letter that stands alone. What is said of an option that is not chosen does not count; two letters are no choice."""
    for inside in boxed(text)[-1:]:
        plain = re.sub(r"\\(?:text|math)\w*|[\\{}()$*.,]", " ", inside)
        alone = {letter.upper() for letter in re.findall(r"(?<![A-Za-z0-9])[A-Za-z](?![A-Za-z0-9])", plain)}
        return alone.pop() if len(alone) == 1 and alone <= set(letters) else None
    patterns, ruled_out, hedge, begins = _patterns(letters)
    text = "\n".join(" ".join(line.split()) for line in _MARK_UP.sub(" ", text).splitlines() if line.strip())
    text = ruled_out.sub("; ", text)
    lone = text.strip().strip("().:[]* ").upper()
    if len(lone) == 1:
        return lone if lone in letters else None
    for last_counts, pattern in patterns:
        if found := list(pattern.finditer(text)):
            distinct = {match[1].upper() for match in (found[-1:] if last_counts else found)}
            hedged = hedge.match(text, found[-1].end())
            return distinct.pop() if len(distinct) == 1 and not (hedged and hedged[1] != found[-1][1].upper()) else None
    begun = begins.findall(text)
    return str(begun[0]).upper() if len(begun) == 1 else None


@lru_cache(maxsize=8)
def _patterns(letters: str) -> tuple[list[tuple[bool, re.Pattern[str]]], re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """(whether the last hit decides, statement) from the plainest on; options ruled out; a second letter behind the first; a line
    that begins with a letter of either case."""
    one = rf"{_OPEN}{_WORD}([{letters}]){_ALONE}"
    bare = rf"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?{_OPEN}[{letters}]{_ALONE}{_CLOSE}"
    either = rf"{_OPEN}(?i:([{letters}])){_CLOSE}\.?{_CLOSE}$"
    some = rf"{bare}(?: (?:and|or) {bare}){{0,9}}"
    named = r"(?i:\b(?:answer|choice|option)\b)"
    statements = [
        (True, rf"(?m){named}(?: is\b ?[:=]?| ?[:=]) ?{either}"),
        (True, rf"(?i:\banswer\b){_IS} ?[:=]? ?{one}"),
        (True, rf"{named}{_IS} ?[:=] ?{one}"),
        (True, rf"(?i:\b(?:choice|option)\b) (?:is|must be) ?{one}"),
        (False, rf"(?i:\b(?:choice|option)\b) ?{one}"),
        (False, rf"(?m)^{one}[)\]*_]{{0,6}}(?:[.:)\]]|$)"),
        (False, rf"(?<![A-Za-z0-9']){_WORD}([{letters}]){_ALONE}"),
    ]
    ruled_out = (
        rf"{some} (?:is|are|was|were|seems?|looks?) (?:\w{{1,20}}ly |also )?{_NO}|{some} {_LACKS}"
        rf"|\b(?:[Nn]ot|n't|cannot be|[Nn]either|nor|{_DENIES}) {bare}"
    )
    return (
        [(last, re.compile(pattern)) for last, pattern in statements],
        re.compile(ruled_out),
        re.compile(rf"{_CLOSE} ?(?:,|/|or|and) ?{_OPEN}([{letters}]){_ALONE}"),
        re.compile(rf"(?im)^{_OPEN}([{letters}])[)\]:]"),
    )
