"""The rows of a table: of the file called after it, or of the sources that `prepare.files` names, each with its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grape.data.converted import Told, converted
from grape.data.shapes import SHAPES, Placed, names
from grape.data.tables import Source, find, from_hub, read
from grape.errors import GrapeError
from grape.randomness import permutation

if TYPE_CHECKING:
    from grape.schema import Prepare

Say = Callable[[str], None]
Read = Callable[[Say, "Counter[str]"], Iterator[Placed]]  # rows, anew with every call


@dataclass(frozen=True)
class Part:
    """A source of the table `name`. path: of its file; None: a data set of the hub. shape: the table in SHAPES. seed: of what is
    chosen."""

    name: str
    source: Source
    path: Path | None
    shape: str
    told: Told
    seed: int

    def rows(self, say: Say, left_out: Counter[str]) -> Iterator[Placed]:
        """As often as the weight says."""
        source, keys = self.source, (self.seed, "prepare", self.name, self.source.dataset)
        if source.rows is None and source.weight == int(source.weight):
            return (row for row in self._all(say, left_out) for _ in range(int(source.weight)))
        times = _times(_count(self._all), source.rows, source.weight, *keys)
        if not times.any():
            where, mend = f"params.yaml, prepare.files.{self.name}", "raise its weight, or leave it out"
            raise GrapeError(f"no row of {source.dataset} is left by its weight {source.weight:g}", where=where, mend=mend)
        return (row for row, n in zip(self._all(say, left_out), times, strict=True) for _ in range(n))

    def _all(self, say: Say, left_out: Counter[str]) -> Iterator[Placed]:
        rows = from_hub(self.source) if self.path is None else read(self.path)
        return converted(rows, self.shape, str(self.path or self.source.hub), self.told, say, left_out)


def _count(rows: Read) -> int:
    return sum(1 for _ in rows(lambda _: None, Counter()))


def _times(count: int, limit: int | None, weight: float, *keys: object) -> np.ndarray:
    """(count,) how often each row is taken: of `limit` rows chosen by the keys floor(weight) times, a share of them once more."""
    chosen = np.arange(count) if limit is None else permutation(count, *keys)[:limit]
    whole = int(weight)
    times = np.zeros(count, np.int64)
    times[chosen] = whole
    more = permutation(len(chosen), *keys, "weight")[: round((weight - whole) * len(chosen))]
    times[chosen[more]] += 1
    return times


def rows_of(
    name: str, folder: Path, params: Prepare, seed: int, fields: Collection[str], say: Say, left_out: Counter[str]
) -> Iterator[Placed] | None:
    """The rows of a table in grape's columns, at most as many as `prepare.rows` says; None where there is no such table.

    Args:
        folder: prepare.source. fields: the table's columns. left_out: counts rows that become nothing, by reason.

    Raises:
        GrapeError: a file that is not there or cannot be read, a column that is not known, a row of no shape.
    """
    shape = name if name in SHAPES else "prompts"
    parts = _parts(name, shape, folder, params, seed, names(shape) | set(fields))
    if not parts:
        return None

    def mixed(say: Say, left_out: Counter[str]) -> Iterator[Placed]:
        for part in parts:
            yield from part.rows(say, left_out)

    limit = params.rows.get(name)  # type: ignore[call-overload]
    if limit is None:
        return mixed(say, left_out)
    times = _times(_count(mixed), limit, 1.0, seed, "prepare", name)
    return (row for row, chosen in zip(mixed(say, left_out), times, strict=True) if chosen)


def _parts(name: str, shape: str, folder: Path, params: Prepare, seed: int, known: Collection[str]) -> list[Part]:
    sources: list[Source] = params.files.get(name) or []  # type: ignore[call-overload]
    found = find(folder, name) if not sources else None
    if found is not None:
        sources = [Source.model_validate(found.name)]
    parts = []
    for place, source in enumerate(sources):
        own = source.columns is not None
        columns = source.columns if source.columns is not None else params.columns.get(name, {})  # type: ignore[call-overload]
        if strangers := sorted(columns.keys() - known):
            where = f"params.yaml, prepare.{f'files.{name}.{place}.columns' if own else f'columns.{name}'}"
            raise GrapeError(f"{name} has no column {strangers[0]}", where=where, mend=f"one of {', '.join(sorted(known))}")
        dataset = source.dataset if len(sources) > 1 or source.name else ""
        told = Told(columns, source.category or params.category, source.item, dataset if name != "corpus" else "")
        path = None if source.hub else found or _named(folder, source.file, name)
        parts.append(Part(name, source, path, shape, told, seed))
    return parts


def _named(folder: Path, file: str, name: str) -> Path:
    """A file of `prepare.files`; it lies in the folder, which is what DVC compares."""
    path, where = folder / file, f"params.yaml, prepare.files.{name}"
    if not path.resolve().is_relative_to(folder.resolve()):
        what = f"{file} lies outside of prepare.source, so that a change of it would not be noticed"
        raise GrapeError(what, where=where, mend="move it there, or set prepare.source to a folder that holds all files")
    if not path.exists():
        raise GrapeError(f"no such file: {path}", where=where, mend="it is looked for in prepare.source")
    return path
