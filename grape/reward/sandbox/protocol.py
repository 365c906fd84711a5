"""What comes back from a sandbox is read as strict JSON and compared here, in grape's own process.

After `read` a value is made of exact built-in types, so no method of the model's can take part in the comparison.
"""

from __future__ import annotations

import json
import math
from typing import Any

DIGITS = 4300  # of one integer: more cost quadratic time to read, and Python refuses them by default


class NotJson(ValueError):
    """The text is no strict JSON; says why."""


def _no_constant(text: str) -> Any:
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise NotJson("a key stands twice in one object")
    return made


def read(text: str | bytes) -> Any:
    """One JSON value: finite numbers, distinct keys, integers of at most `DIGITS` digits, nesting that Python can hold.

    Raises:
        NotJson: anything else.
    """
    try:
        return json.loads(
            text, parse_constant=_no_constant, parse_int=_integer, parse_float=_float, object_pairs_hook=_object)
    except NotJson:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)[:120]) from error


def equal(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether two JSON values are the same; the types count, so true is not 1 and "1" is not 1.

    A set comes as `{"$set": [elements]}` and is equal to a set with these elements, and to a list that holds each of them once:
    test cases are JSON, where a list is all that a set can be written as. A list is not equal to a set.

    Numbers: where an integer is expected, exactly it (2.0 is the integer 2); where a float is expected, within `tolerance`,
    relative, and absolute below 1.
    """
    if type(expected) is int:
        return type(found) in (int, float) and bool(found == expected)
    if type(expected) is float:
        try:
            return type(found) in (int, float) and abs(found - expected) <= tolerance * max(1.0, abs(expected))
        except OverflowError:  # an integer beyond every float
            return False
    if type(found) is not type(expected) and not (_is_set(found) and isinstance(expected, list)):
        return False
    if _is_set(found) and (_is_set(expected) or isinstance(expected, list)):
        return _same_elements(found["$set"], expected["$set"] if isinstance(expected, dict) else expected, tolerance)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(equal(f, e, tolerance) for f, e in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[k], e, tolerance) for k, e in expected.items())
    return bool(found == expected)


MOST = 1000  # elements of a set that are compared: each with each


def _is_set(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"$set"} and isinstance(value["$set"], list)


def _same_elements(found: list[Any], expected: list[Any], tolerance: float) -> bool:
    """Whether each expected element stands once in `found`, in any order."""
    if len(found) != len(expected) or len(found) > MOST:
        return False
    left = list(found)
    for element in expected:
        place = next((i for i, other in enumerate(left) if equal(other, element, tolerance)), None)
        if place is None:
            return False
        left.pop(place)
    return True


def wrong(value: Any) -> Any:
    """What an impossible test case expects instead of `value`: nothing that an honest program would return, not even one that
    returns something else each time it is called."""
    if type(value) is int:
        return value + 1_000_003
    if type(value) is float:
        return 3.0 * value + 1_000_003.0
    if isinstance(value, str):
        return value + "~"
    if isinstance(value, list):
        return [*value[:-1], wrong(value[-1])] if value else ["~"]
    if isinstance(value, dict):
        return {**value, "~": None}
    return "~"
