"""Rows that say nearly the same, to show to people; nothing is taken out for it.

    similarity(a, b) = |A & B| / |A | B|     of the sets of word trigrams (Jaccard), found by MinHash and then measured
    overlap(question, row) = |Q & R| / |Q|   how much of a held-out question stands in a row, wherever in it

MinHash (Broder, 1997): the share of hash functions whose smallest value over A and over B is the same estimates the similarity.
Rows are compared where 4 functions agree in one of 16 bands: of pairs with similarity 0.7 that finds 99 in 100.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from grape.randomness import generator

WORDS = 3
SIMILAR = 0.7  # least similarity of two rows that are shown
OVERLAP = 0.7  # least overlap of a row with a held-out question
BANDS, DEEP = 16, 4


def trigrams(text: str) -> set[int]:
    """32-bit hashes of the word trigrams of a text, in small letters; of a shorter one the hash of the whole."""
    words = text.lower().split()
    return {zlib.crc32(" ".join(words[i : i + WORDS]).encode("utf-8", "replace")) for i in range(max(len(words) - WORDS, 0) + 1)}


class Near:
    """Which of the texts before are likely to be similar to a text; of each only its bands are kept."""

    def __init__(self) -> None:
        draw = generator("near")
        self._a, self._b = draw.integers(0, 2**64, (2, BANDS * DEEP, 1), np.uint64)
        self._a |= np.uint64(1)
        self._buckets: dict[bytes, int] = {}

    def candidates(self, grams: set[int], place: int) -> list[int]:
        """Places of earlier texts, one for each band that agrees; this text is then known as `place`."""
        hashed = (self._a * np.fromiter(grams, np.uint64, len(grams)) + self._b) >> np.uint64(32)
        smallest = hashed.min(1).astype(np.uint32).reshape(BANDS, DEEP)
        found = [self._buckets.setdefault(bytes([i]) + band.tobytes(), place) for i, band in enumerate(smallest)]
        return sorted({other for other in found if other != place})


def similar(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """(place, place of an earlier text, similarity) of texts at least SIMILAR, each with the most similar one; equal texts are not
    looked at twice."""
    near, seen = Near(), set[int]()
    for place, text in enumerate(texts):
        if (key := hash(text)) in seen:
            continue
        seen.add(key)
        grams = trigrams(text)
        others = [
            (len(grams & other) / len(grams | other), i) for i in near.candidates(grams, place) for other in (trigrams(texts[i]),)
        ]
        best, other_place = max(others, key=lambda pair: (pair[0], -pair[1]), default=(0.0, 0))
        if best >= SIMILAR:
            yield place, other_place, best


def repeats(texts: Iterable[str]) -> dict[int, int]:
    """Place of a text that stood before -> place of the first such."""
    first: dict[int, int] = {}
    found = {}
    for place, text in enumerate(texts):
        if (earlier := first.setdefault(hash(text), place)) != place:
            found[place] = earlier
    return found


def overlapping(questions: Sequence[str], texts: Iterable[str]) -> Iterator[tuple[int, int, float]]:
    """(place of a text, place of the question it overlaps most with, overlap) of texts with at least OVERLAP."""
    sizes, places = [], defaultdict(list)
    for number, question in enumerate(questions):
        grams = trigrams(question)
        sizes.append(len(grams))
        for gram in grams:
            places[gram].append(number)
    for place, text in enumerate(texts):
        shared = Counter(number for gram in trigrams(text) for number in places.get(gram, ()))
        best, number = max(((count / sizes[n], -n) for n, count in shared.items()), default=(0.0, 0))
        if best >= OVERLAP:
            yield place, -number, best
