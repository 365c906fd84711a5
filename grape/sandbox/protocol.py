"""What comes back from a sandbox is read as strict JSON, in grape's own process.

After `read` a value is made of exact built-in types, so no method of the model's can take part in comparing it.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

DIGITS = 4300  # of one integer: more cost quadratic time to read, and Python refuses them by default


class NotJson(ValueError):
    """The text is no strict JSON; says why."""


def _no_constant(text: str) -> NoReturn:
    raise NotJson(f"{text} is no JSON number")


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise NotJson(f"an integer of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"the number {text[:20]} is not finite")
    return value


def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON whose keys differ."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise NotJson("a key stands twice in one object")
    return made


def read(text: str | bytes) -> Any:
    """One JSON value: finite numbers, distinct keys, integers of at most `DIGITS` digits, nesting that Python can hold.
    Raises NotJson: anything else."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=_integer, parse_float=_float, object_pairs_hook=distinct)
    except NotJson:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)[:120]) from error
