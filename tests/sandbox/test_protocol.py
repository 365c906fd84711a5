"""What comes out of the sandbox is strict JSON, or nothing."""

from __future__ import annotations

import pytest

from grape.sandbox.protocol import NotJson, read


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        '{"a": 1, "a": 2}',
        "9" * 5000,
        "[" * 100_000,
        "",
        "nan",
        "1 2",
        "{'a': 1}",
        "[1,]",
    ],
)
def test_what_is_no_strict_json_is_refused(text: str) -> None:
    with pytest.raises(NotJson):
        read(text)
