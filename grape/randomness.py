"""Randomness is counted, not streamed: every draw is a function of what it is for, never of what was drawn before.

Sample i of a prompt is then the same whatever the batching, a retry or a resume, and no global generator decides anything.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: object) -> int:
    """A 128-bit key from the parts, e.g. key(seed, "rl", update, prompt_id, sample_index). Other parts have another text, whatever
    stands in them."""
    text = "\x1f".join(str(part).replace("\\", "\\\\").replace("\x1f", "\\x1f") for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*parts: object) -> np.random.Generator:
    """A counter-based generator (Philox) keyed by the parts."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def permutation(n: int, *parts: object) -> np.ndarray:
    """A random order of range(n)."""
    return generator(*parts).permutation(n)
