"""What this machine can hold a program with, for the tests of the sandbox."""

from __future__ import annotations

import functools

import pytest

from grape.sandbox import tiers
from grape.sandbox.box import HarnessError
from grape.sandbox.places import Limits

ADD = '{"function": "add", "cases": [[[1, 2], 3]]}'
SHORT = Limits(seconds=1, wall=0.5)


@functools.cache
def why_not(mechanism: str) -> str:
    """Why the mechanism does not hold its canaries on this machine; "": it does."""
    try:
        held = tiers.canaries(mechanism)
    except HarnessError as error:
        return str(error)
    return "" if all(held.values()) else f"canaries: {held}"


@functools.cache
def _runs(mechanism: str) -> bool:
    try:
        tiers.canaries(mechanism)
    except HarnessError:
        return False
    return True


def weakest_that_runs() -> str:
    for mechanism in filter(_runs, reversed(tiers.MECHANISMS)):
        return mechanism
    pytest.skip("no child process with limits can be started here")


def strongest() -> str:
    return next((mechanism for mechanism in tiers.MECHANISMS if not why_not(mechanism)), None) or weakest_that_runs()
