"""Tables of checked rows that may be larger than memory: the rows lie on the disk, a few numbers of each in memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import numpy as np

from grape.artifacts import AnyRecord, Identified, Turn, as_row, one_checked, repeated
from grape.errors import GrapeError
from grape.files import Spilled, as_line, read_lines

Placed = tuple[str, Mapping[str, Any]]  # where a row stands, and what it says


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class Ids:
    """The ids of rows and where each stands, on the disk where they are many; 24 bytes of memory a row."""

    def __init__(self) -> None:
        self._said, self._ids, self._rows = Spilled(), array("Q"), array("Q")

    def add(self, name: str, where: str, line: bytes) -> None:
        """line: all that the row says."""
        said = name.encode("utf-8", "surrogatepass")
        self._said.append(json.dumps([name, where]).encode())
        self._ids.append(_digest(said))
        self._rows.append(_digest(line))

    def entry(self, place: int) -> tuple[str, str]:
        """(id, where it stands) of the row at a place from 0."""
        name, where = json.loads(self._said[place])
        return name, where

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(self._ids)
        order = np.argsort(ids, kind="stable")
        return ids[order], order

    def where(self, name: str) -> str | None:
        """Where the last row of this id stands; to be asked when all are added."""
        ids, order = self._sorted
        place = int(np.searchsorted(ids, _digest(name.encode("utf-8", "surrogatepass")), "right")) - 1
        found = self.entry(int(order[place])) if place >= 0 else ("", "")
        return found[1] if found[0] == name else None

    def refuse_repeats(self) -> None:
        """
        Raises:
            GrapeError: two rows of one id are not the same row; the first such place.
        """
        ids, rows = np.array(self._ids), np.array(self._rows)
        order = np.argsort(ids, kind="stable")
        before, after = order[:-1], order[1:]
        for place in np.sort(after[(ids[before] == ids[after]) & (rows[before] != rows[after])]).tolist():
            first = int(order[np.searchsorted(ids[order], ids[place])])
            (name, where), (other, earlier) = self.entry(place), self.entry(first)
            if name == other:  # and not two names of one digest
                raise repeated(name, earlier, where)


def _checked(rows: Iterable[Placed], kind: type[AnyRecord], ids: Ids, mend: str = "") -> Iterator[tuple[AnyRecord, bytes]]:
    """Rows as records and as lines, one after the other. What is wrong first is said first, though that two rows share an id turns
    out late.

    Raises: as `grape.artifacts.checked`; and for what no line of JSON can say.
    """
    try:
        for where, row in rows:
            try:
                record = one_checked(where, row, kind, mend)
                line = as_line(as_row(record))
            except ValueError as error:  # NaN, or half of a character, which rows of a program or of a table can hold
                raise GrapeError(f"cannot be written: {error}", where=where, mend="mend the row") from error
            if isinstance(record, Identified):
                ids.add(record.id, where, line)
            yield record, line
    except GrapeError:
        ids.refuse_repeats()
        raise
    ids.refuse_repeats()


def _placed(path: Path, mend: str) -> Iterator[Placed]:
    return ((f"{path}:{number}", row) for number, row in read_lines(path, mend or None))


def each_row(path: Path, kind: type[AnyRecord], mend: str = "") -> Iterator[AnyRecord]:
    """The records of a JSON-lines file, one after the other.

    Raises: as `grape.artifacts.read_rows`.
    """
    return (record for record, _ in _checked(_placed(path, mend), kind, Ids(), mend))


def read_table(path: Path, kind: type[AnyRecord], mend: str = "") -> Table[AnyRecord]:
    """The records of a JSON-lines file, on the disk.

    Raises: as `grape.artifacts.read_rows`.
    """
    return Table(kind, _placed(path, mend), mend)


class Table(Sequence[AnyRecord], Generic[AnyRecord]):
    """Checked records on the disk, or some of them; read when they are asked for.

    Args:
        rows: each with the place it stands at, for messages.

    Raises: as `grape.artifacts.checked`.
    """

    def __init__(self, kind: type[AnyRecord], rows: Iterable[Placed] = (), mend: str = "") -> None:
        self.kind, self._ids, self._lines = kind, Ids(), Spilled()
        for _, line in _checked(rows, kind, self._ids, mend):
            self._lines.append(line)
        self._places: Sequence[int] | np.ndarray = range(len(self._lines))

    def select(self, places: Sequence[int] | np.ndarray) -> Table[AnyRecord]:
        """The rows at these places, in their order."""
        chosen: Table[AnyRecord] = object.__new__(Table)
        chosen.kind, chosen._ids, chosen._lines = self.kind, self._ids, self._lines
        chosen._places = np.asarray(self._places, np.int64)[np.asarray(places, np.int64)]
        return chosen

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[AnyRecord]:
        return (_read(line, self.kind) for line in self.lines())

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        return _read(self._lines[int(self._places[place])], self.kind)

    def lines(self) -> Iterator[bytes]:
        """As they are written."""
        return (self._lines[int(place)] for place in self._places)

    def where(self, row: Any) -> str:
        """Where a record, or what was made of one, stands; by its id."""
        return self._ids.where(row.id) or row.id


def _read(line: bytes, kind: type[AnyRecord]) -> AnyRecord:
    """A record of a line that was made of one."""
    row = json.loads(line)
    return kind.model_construct(**{name: _turns(value) for name, value in row.items()})


def _turns(value: Any) -> Any:
    return [Turn.model_construct(**turn) for turn in value] if isinstance(value, list) else value
