"""Files of rows, whatever their format: JSON Lines, JSON, CSV, Parquet, a folder that `datasets` saved, a data set of the hub."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from grape.data.shapes import Placed
from grape.errors import GrapeError
from grape.files import read_json, read_lines, text_lines

ONE = "keep one of them"
HUB_SECONDS = 10


class Source(BaseModel):
    """Where rows are: a file, which may be written without its key, or a data set of the Hugging Face hub; and what is told of
    them.

    Attributes:
        name: what its rows are told by where a table has several sources.
        weight: how often each row is seen; of a fraction that share of the rows, chosen by the seed.
        columns, category, rows: as in `prepare`, for this source alone. item: of judgements, the rubric item they are about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    file: str = ""
    hub: str = ""
    config: str | None = None
    split: str = "train"
    revision: str | None = Field(None, pattern="^[0-9a-f]{40}$")  # a branch could change without being noticed
    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    weight: float = Field(1.0, gt=0, le=100, allow_inf_nan=False)
    columns: dict[str, str] | None = None
    category: str | None = Field(None, min_length=1)
    rows: int | None = Field(None, ge=1)
    item: str | None = Field(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _file(cls, given: object) -> object:
        return {"file": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if bool(self.file) == bool(self.hub):
            raise ValueError("name a file of prepare.source, or hub: ID")
        if self.hub and self.revision is None:
            raise ValueError("a data set of the hub needs its revision, a commit of 40 digits: it is the same data for ever")
        if self.file and self.model_fields_set & {"config", "split", "revision"}:
            raise ValueError("config, split and revision are those of a data set of the hub")
        return self

    @property
    def dataset(self) -> str:
        """Its name, or that of its file or data set."""
        return self.name or re.sub(r"[^\w.-]+", "-", self.hub.rpartition("/")[2] if self.hub else Path(self.file).stem)


# Tables in which a row stands once, and why.
ONCE = dict.fromkeys(("prompts", "validation", "test"), "every prompt stands once") | dict.fromkeys(
    ("preferences", "judgements"), "copies of a row would be learned from and measured on"
)


def refuse_mixes(files: Mapping[Any, Sequence[Source]], columns: Mapping[Any, object]) -> None:
    """
    Raises:
        ValueError: sources of a table that cannot be told apart; what one says would have no effect there, or do harm.
    """
    for table, sources in files.items():
        names = [source.dataset for source in sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"files.{table}: two sources are called {twice}; give one of them another `name`")
        for source in sources:
            if source.weight > 1 and table in ONCE:
                what = f"files.{table}: the weight {source.weight:g} of {source.dataset} is above 1, but {ONCE[table]}"
                raise ValueError(f"{what}; lower the weights of the others")
            if source.item is not None and table != "judgements":
                raise ValueError(f"files.{table}: an item is what judgements are about")
        if table in columns and all(source.columns is not None for source in sources):
            raise ValueError(f"columns.{table} has no effect: every source of {table} has columns of its own")


def find(folder: Path, stem: str) -> Path | None:
    """The file of a table in a folder, by its name without the suffix; None: there is none.

    Raises:
        GrapeError: there are two.
    """
    found = [path for suffix in READERS if (path := folder / f"{stem}{suffix}").is_file()]
    found += [folder / stem] if (folder / stem).is_dir() else []
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise GrapeError(f"two files of one table: {names}", where=str(folder), mend=ONE)
    return found[0] if found else None


def read(path: Path) -> Iterator[Placed]:
    """(place, row) of every row.

    Raises:
        GrapeError: it cannot be read, or is none of the formats.
    """
    reader = _saved if path.is_dir() else READERS.get(path.suffix.lower())
    if reader is None:
        formats = ", ".join(READERS)
        raise GrapeError(f"no such format: {path.name}", where=str(path), mend=f"one of {formats}, or a folder that datasets saved")
    return reader(path)


def _lines(path: Path) -> Iterator[Placed]:
    return ((f"{path}:{number}", row) for number, row in read_lines(path))


def _json(path: Path) -> Iterator[Placed]:
    """A list of objects, as it stands or as the only list of an object."""
    value = read_json(path)
    if isinstance(value, dict) and [list] == [type(v) for v in value.values()]:
        value = next(iter(value.values()))
    if not isinstance(value, list):
        raise GrapeError(f"a {type(value).__name__}, not a list of rows", where=str(path), mend="write [{...}, {...}]")
    yield from _numbered(path, value)


def _csv(path: Path) -> Iterator[Placed]:
    """Every cell is text, as it stands; an empty one is no value."""
    rows = csv.DictReader((piece for text in text_lines(path) for piece in io.StringIO(text, newline="")), strict=True)
    try:
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if None in row or None in row.values():
                raise GrapeError(
                    "the row has not as many cells as the first one has names", where=where, mend="quote cells with commas"
                )
            yield where, {name: cell for name, cell in row.items() if cell != ""}
    except csv.Error as error:
        raise GrapeError(
            f"not CSV: {error}", where=f"{path}:{rows.line_num}", mend="close quotes; double those within a cell"
        ) from error


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", _plain(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise GrapeError(f"cannot be read as Parquet: {_first(error)}", where=str(path), mend="write the file anew") from error


def _saved(path: Path) -> Iterator[Placed]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises its own kinds for what it did not save
        raise GrapeError(f"datasets did not save this: {_first(error)}", where=str(path), mend="use save_to_disk") from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            raise GrapeError(f"it has the splits {', '.join(found)}", where=str(path), mend="save the one that is meant")
        found = next(iter(found.values()))
    yield from _numbered(path, found)


def from_hub(source: Source) -> Iterator[Placed]:
    """The rows of a split. What was downloaded once is there without the hub too.

    Raises:
        GrapeError: the hub does not have it, or cannot be reached; a folder here is called like it, and would be read in its place.
    """
    where = f"params.yaml, prepare.files, {source.hub}"
    if Path(source.hub).exists():
        mend = "name files of prepare.source with `file`, or move the folder away"
        raise GrapeError("this is a path here, and would be read in place of the hub's data set", where=where, mend=mend)
    with _offline() if unreachable(source) else nullcontext():
        yield from loaded(source.hub, source, where)


def unreachable(source: Source) -> bool:
    """Whether the hub does not answer within HUB_SECONDS. Asked once: `datasets` asks five times, for half a minute."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        huggingface_hub.HfApi().dataset_info(source.hub, revision=source.revision, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        return False  # it answers; what it says is said by `datasets`
    except Exception:  # each way to have no connection has a kind of its own
        return True
    return False


@contextmanager
def _offline() -> Iterator[None]:
    """As HF_HUB_OFFLINE, which libraries read once: what was downloaded is read, nothing else is waited for."""
    import datasets
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def loaded(path: str, source: Source, where: str) -> Iterator[Placed]:
    """The rows of a data set's split. path: its id on the hub, or a folder laid out like its repository."""
    import datasets

    try:
        found = datasets.load_dataset(path, source.config, split=source.split, revision=source.revision)
    except Exception as error:  # datasets, its readers and the hub's client each raise their own kinds
        raise GrapeError(
            f"the data set cannot be had: {type(error).__name__}: {_first(error)}",
            where=where,
            mend="check its name, config, split and revision, and the way to the hub",
        ) from error
    yield from _numbered(source.hub, found)


def _numbered(path: object, rows: Any) -> Iterator[Placed]:
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        if not isinstance(row, Mapping):
            raise GrapeError(f"a {type(row).__name__}, not a row of columns", where=where, mend="write objects {...}")
        yield where, _plain(row)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls: tables write them where a row has no such column, and in turns where a key is another turn's."""
    return {key: _without_nulls(value) for key, value in row.items() if value is not None}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _plain(value)
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {".jsonl": _lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
