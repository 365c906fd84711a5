"""How verifiers read texts: responses leniently, references strictly."""

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

    Raises:
        Undecidable: it is not one number and nothing else.
    """
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
