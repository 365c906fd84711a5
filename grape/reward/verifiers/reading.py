"""How verifiers read texts, for numbers, fenced blocks, boxes and chosen letters: responses leniently, references strictly."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from fractions import Fraction
from functools import lru_cache

from grape.reward.verdict import Undecidable

# What people and models write for a minus: hyphens, the minus sign, the en dash. An em dash is punctuation.
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
_ONE = re.compile(rf"(-?)({_DIGITS})(?:[eE]([-+]?\d+))?(?:/(\d+(?:\.\d+)?))?")
# A minus is a sign where nothing stands before it that it could join: 5-8 is a range, (-8) is not, and -- is a dash.
_FOUND = re.compile(
    rf"((?<![0-9A-Za-z_.)\]%-])-)?(?<![\d.^])({_DIGITS}|\d+(?:[.,]\d+)+)(?:[eE]([-+]?\d+))?(?!\d|[.,]\d)(?:/(\d+(?:\.\d+)?)(?![\d/]))?"
    r"(\s*\^)?"
)
# How else numbers are written, as the forms above.
_SPELLINGS = (
    (re.compile(r"\.{2,}(?=\d)"), " "),  # is...8
    (re.compile(r"(?<=\d)(?:(?:\{,\}|\\[,!]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))| (?=000(?!\d)))"), ","),  # 10{,}000, 10 000
    (re.compile(r"-\s*\\?[$€£]\s*(?=[\d.])"), "-"),  # -$8
    (
        re.compile(r"(\d)?\\[dt]?frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}"),
        lambda found: f"{found[1] + ' ' if found[1] else ''}{found[2]}/{found[3]}",
    ),
    (re.compile(r"(\d)\s*(?:×|·|\*|\\times|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?"), r"\1e\2"),  # 1.5 x 10^3
    (re.compile(r"(?<![\w.])10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?"), r"1e\1"),
    (re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"(?<![\d/])(\d+)/(\d+)/(\d+)(?![\d/])"), r"\1 \2 \3"),  # a date
    (
        re.compile(r"(?<![\d/.,])(\d{1,9})\s+(\d{1,9})/(\d{1,9})(?![\d/.])"),  # 2 1/2
        lambda found: f"{int(found[1]) * int(found[3]) + int(found[2])}/{found[3]}" if int(found[2]) < int(found[3]) else found[0],
    ),
)
MOST_DIGITS, LARGEST_EXPONENT = 400, 400
# A fence opens behind an indent, a list's or a quotation's mark, or a few words ("Sure: ```python").
_MARKS = r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]*)?(?:>[ \t]?)*"
_OPENS = re.compile(rf"(?P<before>{_MARKS})(?P<mark>`{{3,}}|~{{3,}})[ \t]*(?P<language>[\w+#.-]*)(?P<rest>[^`]*)")
_OPENS_BEHIND = re.compile(r"(?P<before>[^`~]+)(?P<mark>`{3,})(?P<language>[\w+#.-]*)(?P<rest>[ \t]*)")
_CLOSES = re.compile(r"(?P<before>[ \t>]*)(?P<mark>`{3,}|~{3,})[ \t]*")
# What may stand around a letter; at most so many, since texts of models are degenerate at times.
_BEFORE, _BEHIND = r"[(\[*_\"'$]{0,6}", r"[)\]*_\"']{0,6}"
_ALONE = r"(?![A-Za-z0-9'])"
# What looks like a letter to choose, and is a word: "A cat", "I think".
_WORD = r"(?!A (?!or\b|and\b)[a-z]|I [a-z]|I')"
_IS = r"(?: is| would be| must be| should be)?(?: option| choice)?"
_NO = r"(?:incorrect|wrong|not|too|false|out|invalid|impossible)\b"
_LACKS = r"(?:lacks?|fails?|cannot|can't|does not|doesn't|do not|don't|contradicts?|ignores?)\b"
_DENIES = r"(?i:rul(?:e|es|ed|ing) out|(?:eliminat|exclud)(?:e|es|ed|ing)|(?:discard|reject)(?:s|ed|ing)?)"
_MARK_UP = re.compile(r"\\(?:text|math)\w*|\\[()\[\]]|[{}$]|</?answer>")


def text_of(text: str) -> str:
    """As texts are compared: é is one letter however it is composed, a line ends in a line feed."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n"))


def _value(sign: str, digits: str, exponent: str | None, divisor: str | None) -> Fraction | None:
    power = int(exponent or 0) if len(exponent or "") <= 5 else LARGEST_EXPONENT + 1
    if len(digits) > MOST_DIGITS or abs(power) > LARGEST_EXPONENT or (divisor is not None and not Fraction(divisor)):
        return None
    try:
        value = Fraction(digits.replace(",", "")) * Fraction(10) ** power / Fraction(divisor or 1)
    except ValueError:  # 1.2.3
        return None
    return -value if sign else value


@lru_cache(maxsize=4096)
def one_number(text: str) -> Fraction:
    """The number that a reference answer is, exactly: 72, -3, 1,000, .5, 1/2, 1e-3.
    Raises Undecidable: it is not one number and nothing else."""
    found = _ONE.fullmatch(text.strip().translate(_DASHES))
    value = _value(*found.groups()) if found else None
    if value is None:
        raise Undecidable(f"the reference answer {text!r} is not one number", "write the number alone, e.g. 72, -0.5, 1,000 or 1/2")
    return value


def last_number(text: str) -> Fraction | None:
    """The last number in a response; None if there is none that can be read."""
    text = text.translate(_DASHES)
    for spelling, plain in _SPELLINGS:
        text = spelling.sub(plain, text)
    found = _FOUND.findall(text)
    if not found or found[-1][4]:  # x^3 is no 3, and 2^3 no 2
        return None
    sign, digits, exponent, divisor, _ = found[-1]
    if re.fullmatch(r"\d+,\d+", digits) and not re.fullmatch(_DIGITS, digits):
        return None  # 2,5 may be two and a half, or two numbers
    if "," in digits and not re.fullmatch(_DIGITS, digits):  # 1,2,3 is a list, not a thousand
        sign, digits = "", digits.rpartition(",")[2]
    return _value(sign, digits, exponent, divisor or None)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, body) of the fenced blocks: of backticks or tildes, indented, in a list or a quotation, also one that is never
    closed. A fence that is indented further than the one that opened the block belongs to its text."""
    found: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    body: list[str] = []

    def end() -> None:
        assert opened is not None
        quoted = ">" in opened["before"]
        lines = [re.sub(r"^[ \t]*>[ \t]?", "", line) for line in body] if quoted else body
        found.append((opened["language"].lower(), textwrap.dedent("\n".join([*lines, ""]))))

    for line in text.replace("\r\n", "\n").split("\n"):
        if opened is None:
            opened, body = _OPENS.fullmatch(line) or _OPENS_BEHIND.fullmatch(line), []
            continue
        closed = _CLOSES.fullmatch(line)
        indent = len(opened["before"]) if re.fullmatch(_MARKS, opened["before"]) else 0
        if closed and closed["mark"].startswith(opened["mark"]) and len(closed["before"].expandtabs(4)) <= indent + 3:
            end()
            opened = None
        else:
            body.append(line)
    if opened is not None:
        while body and not body[-1].strip():
            body.pop()
        if body and body[-1].rstrip().endswith(opened["mark"]):  # closed behind its last line
            body[-1] = body[-1].rstrip()[: -len(opened["mark"])]
        end()
    return found


def boxed(text: str) -> list[str]:
    """What stands in every \\boxed{...}, braces within braces included, in the order in which they begin."""
    found: dict[int, str] = {}
    open_at: list[int] = []  # of every brace that is open; negative: not of a box
    begins = {match.end() - 1 for match in re.finditer(r"\\boxed\s*\{", text)}
    i = 0
    while i < len(text):
        if text[i] == "\\":
            i += 2  # what is escaped is no brace
            continue
        if text[i] == "{":
            open_at.append(i if i in begins else -1)
        elif text[i] == "}" and open_at:
            start = open_at.pop()
            if start >= 0:
                found[start] = text[start + 1 : i]
        i += 1
    return [found[start] for start in sorted(found)]


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
    one = rf"{_BEFORE}{_WORD}([{letters}]){_ALONE}"
    bare = rf"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?{_BEFORE}[{letters}]{_ALONE}{_BEHIND}"
    either = rf"{_BEFORE}(?i:([{letters}])){_BEHIND}\.?{_BEHIND}$"
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
        re.compile(rf"{_BEHIND} ?(?:,|/|or|and) ?{_BEFORE}([{letters}]){_ALONE}"),
        re.compile(rf"(?im)^{_BEFORE}([{letters}])[)\]:]"),
    )
