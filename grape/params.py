"""params.yaml as frozen values. What is unknown, of a wrong type or out of range is refused with file, line and nearest name."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from grape import settings, slot, yamlfile
from grape.errors import GrapeError, nearest
from grape.files import replacing
from grape.schema import Params

RESERVED = frozenset({"sft", "base"})  # no algorithm has the name of a side in the tables


def _line(tree: Any, location: tuple[Any, ...]) -> int:
    """1-based line of the key at `location`, of its nearest parent that has one."""
    line = 1
    for part in location:
        try:
            place = tree.lc.key(part) if isinstance(part, str) else tree.lc.item(part)
            line, tree = place[0] + 1, tree[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _fields(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names allowed beside the last part of `location`, which may go through a mapping of names to models."""
    kind: Any = model
    for part in location[:-1]:
        field = kind.model_fields.get(part) if _is_model(kind) else None
        kind = field.annotation if field else get_args(kind)[0 if get_origin(kind) is list else -1] if get_args(kind) else None
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return list(kind.model_fields) if _is_model(kind) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _refuse(error: ValidationError, path: Path, tree: Any, model: type[BaseModel], prefix: tuple[Any, ...] = ()) -> GrapeError:
    # An unknown key says more than the missing one it stands for.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = first["loc"]
    name = ".".join(str(p) for p in (*prefix, *location))
    where = f"{path.name}:{_line(tree, (*prefix, *location))}"
    if first["type"] == "extra_forbidden":
        mend = settings.MOVED.get(name) or nearest(location[-1], _fields(model, location), "known here: %s")
        return GrapeError(f"unknown key {name}", where=where, mend=mend)
    if first["type"] == "missing":
        mend = f"add the key {location[-1]!r}; `grape init` writes a complete file to compare with"
        return GrapeError(f"{name} is missing", where=where, mend=mend)
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, list)) or given is None else ""
    return GrapeError(f"{name}: {message}{shown}", where=where, mend="each key's comment in params.yaml gives its range")


def _checked(text: str, path: Path, algorithms: Collection[str] | None = None) -> Params:
    # The round-trip tree carries line numbers; validation wants plain values, as the parser of all later readers sees them.
    plain, tree = yamlfile.parse(text, path.name), yamlfile.parse(text, path.name, typ="rt")
    if not isinstance(plain, dict):
        raise GrapeError("is not a mapping of keys to values", where=path.name, mend="start again from `grape init`")
    try:
        params = Params.model_validate(plain)
    except ValidationError as error:
        raise _refuse(error, path, tree, Params) from error
    for section, names in (("algorithms", list(params.algorithms)), ("rl.algorithms", params.rl.algorithms)):
        for name in (n for n in names if algorithms is None or n in algorithms):
            given = dict(params.algorithms.get(name) or {})
            use = given.pop(slot.USE, None)
            try:
                model = slot.find(name, use, path.parent.resolve()).params
            except GrapeError as error:
                location = (*section.split("."), name) if section == "algorithms" else ("rl", "algorithms")
                where = f"{path.name}:{_line(tree, location)}"
                raise GrapeError(f"{section}: {error.what}", where=where, mend=error.mend) from error
            try:
                model.model_validate(given)
            except ValidationError as error:
                raise _refuse(error, path, tree, model, ("algorithms", name)) from error
    for name in params.rl.algorithms:
        if name.lower() in RESERVED:
            what = f"rl.algorithms names {name!r}, as every report calls the model that all algorithms are compared with"
            where = f"{path.name}:{_line(tree, ('rl', 'algorithms'))}"
            raise GrapeError(what, where=where, mend=f"call it otherwise, in rl.algorithms and under algorithms: my-{name}, say")
        if name not in params.algorithms:
            what = f"rl.algorithms names {name!r}, but `algorithms` has no entry for it, so DVC could not track its knobs"
            where, mend = f"{path.name}:{_line(tree, ('algorithms',))}", f"add `{name}: {{}}` under `algorithms` for its defaults"
            raise GrapeError(what, where=where, mend=mend)
    return params


def load(path: Path, algorithms: Collection[str] | None = None) -> Params:
    """Read and check params.yaml.

    Args:
        algorithms: those whose code is loaded and whose knobs are checked; None: all that are named.

    Raises:
        GrapeError: with file and line, the key, and the nearest known name.
    """
    return _checked(yamlfile.text_of(path), path, algorithms)


def set_values(path: Path, assignments: Sequence[str]) -> Params:
    """Apply `a.b=value` assignments (YAML values) to params.yaml: comments, line ends and a link are kept.

    Nothing is written unless the result is valid.

    Raises: as `edited` does.
    """
    text, params = edited(path, assignments)
    data, place = text.encode(), path.resolve()
    if place.read_bytes() != data:
        with replacing(place) as beside:
            beside.write_bytes(data)
            shutil.copymode(place, beside)
    return params


def edited(path: Path, assignments: Sequence[str]) -> tuple[str, Params]:
    """What params.yaml would be with these assignments: its text and values. Writes nothing.

    Raises:
        GrapeError: an assignment without `=`, a key that does not exist, a value that cannot be written as it was given, or a
            result that is not valid.
    """
    text = settings.apply(yamlfile.text_of(path), path.name, assignments)
    return text, _checked(text, path)
