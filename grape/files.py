"""Files and folders that are whole or not there, and JSON lines: one writer, one reader.

A line of JSON lines ends at a line feed and nowhere else: U+2028, U+0085 and the like may stand in a text, and a sampled answer
may hold one.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, NoReturn

from grape.errors import GrapeError

Row = dict[str, Any]
ONE_A_LINE = "write one JSON object a line, as UTF-8 text"
# How files begin that are something else than text, whatever their name says.
MAGIC = {
    b"\xff\xfe": "UTF-16 or UTF-32 text",
    b"\xfe\xff": "UTF-16 text",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "a ZIP archive",
    b"(\xb5/\xfd": "compressed with zstd",
    b"ARROW1": "an Arrow file",
}
BOM = b"\xef\xbb\xbf"
IN_MEMORY = 32 * 2**20  # bytes of a `Spilled` that do not go to the disk


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder at, which then takes the place of what `path` was.

    What was written is flushed to the disk before it is renamed, and the folder's entry after it: `path` is whole, the old one or
    the new one, whatever power cut or kill comes. Where the writing fails nothing is left beside.

    Args:
        shared: threads and processes may write it at the same time, so each has a place of its own; the last one stays.
    """
    own = f".{os.getpid()}.{threading.get_ident()}" if shared else ""
    beside = path.with_name(f"{path.name}{own}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(beside)
    try:
        yield beside
        for written in (*beside.rglob("*"), beside) if beside.is_dir() else (beside,):
            _flush(written)
        if beside.is_dir():  # nothing can be renamed over a folder that holds something
            _remove(path)
        os.replace(beside, path)
    except BaseException:
        _remove(beside)
        raise
    _flush(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """As UTF-8; line ends stay as they are."""
    with replacing(path, shared) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_sorted(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with sorted names, so that equal values give equal bytes whatever order they came in. NaN may stand in it."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines. NaN and infinity, which JSON has no word for, are refused (ValueError): say null where there is no number."""
    write_whole(path, map(as_line, rows))


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON lines."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """A file of these parts, one after the other; they need not fit into memory together."""
    with replacing(path) as beside, beside.open("wb") as file:
        file.writelines(parts)


def read_lines(path: Path, mend: str | None = None) -> Iterator[tuple[int, Row]]:
    """(line of the file, object) for every line that is not blank. A byte-order mark is read over.

    Raises:
        GrapeError: with file and line: it cannot be read, is no UTF-8 text, or a line is no JSON object. Strict: no NaN, no name
            twice in an object, no half of a surrogate pair (which no file could hold again).
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = _text_begins(path, raw)
                text = _decoded(path, number, raw, mend)
                if text.strip():
                    yield number, _object(path, number, text, mend)
    except OSError as error:
        raise GrapeError(f"cannot be read: {error.strerror or error}", where=str(path), mend=mend) from error


def text_lines(path: Path, mend: str | None = None) -> Iterator[str]:
    """The lines of a text file, one after the other, with their ends as they are.

    Raises:
        GrapeError: with file and line: it cannot be read, or is no UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield _decoded(path, number, _text_begins(path, raw, "text") if number == 1 else raw, mend)
    except OSError as error:
        raise GrapeError(f"cannot be read: {error.strerror or error}", where=str(path), mend=mend) from error


def read_json(path: Path, mend: str = "mend that file") -> Any:
    """The value of a JSON file, as strictly as `read_lines` has it.

    Raises:
        GrapeError: with file and line.
    """
    return _value(path, None, "".join(text_lines(path, mend)), mend)


def _text_begins(path: Path, first: bytes, wanted: str = "JSON lines") -> bytes:
    for magic, what in MAGIC.items():
        if first.startswith(magic):
            raise GrapeError(f"this is {what}, not {wanted}", where=str(path), mend=ONE_A_LINE)
    return first.removeprefix(BOM)


def _decoded(path: Path, number: int, raw: bytes, mend: str | None) -> str:
    if b"\0" in raw:
        raise GrapeError("NUL bytes: this is no text, or UTF-16", where=f"{path}:{number}", mend=mend or ONE_A_LINE)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{raw[error.start]:02x} at place {error.start + 1} of the line)"
        mend = f"save it as UTF-8, e.g. `iconv -f latin1 -t utf-8 {path.name}`"
        raise GrapeError(what, where=f"{path}:{number}", mend=mend) from error


def _object(path: Path, number: int, text: str, mend: str | None) -> Row:
    value = _value(path, number, text, mend or ONE_A_LINE)
    if not isinstance(value, dict):
        what = f"not a JSON object: a {type(value).__name__}, not an object {{...}}"
        raise GrapeError(what, where=f"{path}:{number}", mend=mend or ONE_A_LINE)
    return value


def _value(path: Path, number: int | None, text: str, mend: str) -> Any:
    """A JSON value. number: the line of the file that it stands in; None: it is the whole file."""
    where, kind = f"{path}:{number or 1}", "a JSON object" if number else "JSON"
    try:
        value = json.loads(text, object_pairs_hook=_unrepeated, parse_constant=_no_number, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise GrapeError("nested too deeply", where=where, mend=mend) from None
    except UnicodeEncodeError:
        what = "half of a surrogate pair (\\ud800 to \\udfff on its own) is no character"
        raise GrapeError(what, where=where, mend="write the whole character, or leave it out") from None
    except json.JSONDecodeError as error:
        where = where if number else f"{path}:{error.lineno}"
        raise GrapeError(f"not {kind}: {error.msg} at place {error.colno}", where=where, mend=mend) from error
    except ValueError as error:
        raise GrapeError(f"not {kind}: {error}", where=where, mend=mend) from error
    return value


def _unrepeated(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


class Spilled:
    """A list of byte strings that may be larger than memory: beyond 32 MB it lies in a file without a name in the folder for
    temporary files, so that whatever ends the program leaves nothing behind. Of an entry 8 bytes stay in memory."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(IN_MEMORY)
        self._ends = array("q", [0])
        self._adding = True

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, entry: bytes) -> None:
        if not self._adding:
            self._file.seek(self._ends[-1])
            self._adding = True
        self._file.write(entry)
        self._ends.append(self._ends[-1] + len(entry))

    def __getitem__(self, place: int) -> bytes:
        """The entry at a place from 0."""
        self._adding = False
        begin, end = self._ends[place], self._ends[place + 1]
        self._file.seek(begin)
        return self._file.read(end - begin)

    def __iter__(self) -> Iterator[bytes]:
        return (self[place] for place in range(len(self)))

    def __del__(self) -> None:
        self._file.close()
