"""Rows of a source, whatever their shape, in the columns of the table they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from grape.data.shapes import SHAPES, Placed, Shape, recognised
from grape.data.unpaired import Pairing
from grape.errors import GrapeError


def _each(rows: Iterable[Placed], columns: Mapping[str, str], source: str) -> Iterator[Placed]:
    """Rows with our names in place of theirs, `columns`; of one with several instances, each."""
    unseen = set(columns.values())
    for where, given in rows:
        unseen -= given.keys()
        kept = {name: value for name, value in given.items() if name not in columns.values()}
        row = kept | {ours: given[theirs] for ours, theirs in columns.items() if theirs in given}
        instances = row.get("instances")
        if "instruction" not in row or not isinstance(instances, list) or not all(isinstance(i, Mapping) for i in instances):
            yield where, row
            continue
        if not instances:
            raise GrapeError("its list of instances is empty", where=where, mend="mend the row, or leave it out")
        del row["instances"]
        for number, instance in enumerate(instances, 1):
            own = {"id": f"{row['id']}-{number}"} if "id" in row and len(instances) > 1 else {}
            yield where, {**row, **own, **instance}
    if unseen:
        what = f"no row has the column {min(unseen)}"
        raise GrapeError(what, where=source, mend="mend prepare.columns in params.yaml")


@dataclass(frozen=True)
class Told:
    """What params.yaml says of a source's rows.

    Attributes:
        columns: the table's names -> those of the rows. category, item: of rows that have none.
        dataset: the source's name, where rows are to know it; their ids then begin with it, since another source may have the same.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    category: str | None = None
    item: str | None = None
    dataset: str = ""

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with what is told of it."""
        for name in ("category", "item"):
            told = getattr(self, name)
            if told is not None and row.get(name) is None:
                row[name] = told
        if "dataset" not in self.columns:
            row.pop("dataset", None)
        if self.dataset:
            row = {"dataset": self.dataset, **row}
            if isinstance(row.get("id"), str | int) and not isinstance(row["id"], bool) and row["id"] != "":
                row["id"] = f"{self.dataset}/{row['id']}"
        return row


def converted(
    rows: Iterable[Placed], table: str, source: str, told: Told, say: Callable[[str], None], left_out: Counter[str]
) -> Iterator[Placed]:
    """Rows of one source with the columns of their table. The first row says which shape all have.

    Args:
        source: what the rows are from, for messages. left_out: counts rows that become nothing, by reason.

    Raises:
        GrapeError: no shape is known of these columns, or a row is of another shape.
    """
    shape: Shape | None = None
    pairing = Pairing()
    for where, row in _each(rows, told.columns, source):
        if shape is None:
            shape = recognised(table, row)
            if shape is None:
                known = "; or ".join(one.name for one in SHAPES[table])
                what = f"no shape of rows is known with the columns {', '.join(row)}"
                raise GrapeError(what, where=where, mend=f"name them in prepare.columns.{table}: {known}")
            say(f"{source}: rows of {shape.name}" + ", answer" * ("answer" in row and "answer" not in shape.columns))
        if missing := [name for name in shape.columns if name not in row]:
            what = f"column {missing[0]} is missing, which the rows before have"
            raise GrapeError(what, where=where, mend="give all rows of a file the same columns")
        try:
            made = told.of({**row, **shape.convert(row)})
        except (ValueError, KeyError, TypeError) as error:
            raise GrapeError(f"rows of {shape.name}: {error}", where=where, mend="mend the row") from error
        if not shape.unpaired:
            yield where, made
        elif pair := pairing.add(where, made):
            yield pair
    left_out["unpaired"] += pairing.waiting
