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
# A minus is a sign where nothing stands before it that it could join: 5-8 is a range, (-8) is not.
_FOUND = re.compile(
    rf"((?<![\w.)\]%])-)?(?<![\d.])({_DIGITS}|\d+(?:[.,]\d+)+)(?:[eE]([-+]?\d+))?(?![\d])(?:/(\d+(?:\.\d+)?)(?![\d/]))?"
)
MOST_DIGITS, LARGEST_EXPONENT = 400, 400
_FENCE = re.compile(
    r"^(?P<before>[ \t]*(?:[-*+]|\d+[.)])?[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n"
    r"(?P<body>.*?)(?:^[ \t]*(?P=mark)[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)


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
    found = _FOUND.findall(text.translate(_DASHES))
    if not found:
        return None
    sign, digits, exponent, divisor = found[-1]
    if "," in digits and not re.fullmatch(_DIGITS, digits):  # 1,2,3 is a list, not a thousand
        sign, digits = "", digits.rpartition(",")[2]
    return _value(sign, digits, exponent, divisor or None)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, body) of the fenced blocks: of backticks or tildes, indented or in a list, also one that is never closed."""
    return [
        (found["language"].lower(), textwrap.dedent(found["body"])) for found in _FENCE.finditer(text.replace("\r\n", "\n"))
    ]


def boxed(text: str) -> list[str]:
    """What stands in every \\boxed{...}, braces within braces included."""
    found = []
    for start in re.finditer(r"\\boxed\s*\{", text):
        depth, i = 1, start.end()
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0) if text[i - 1] != "\\" else 0
            i += 1
        if not depth:
            found.append(text[start.end() : i - 1])
    return found
