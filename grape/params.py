"""params.yaml as frozen values. What is unknown, of a wrong type or out of range is refused with file, line and nearest name."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from grape import slot
from grape.errors import GrapeError
from grape.schema import Optimisation, Params

__all__ = ["Optimisation", "Params", "load", "set_values"]


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 200
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


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
    """Names allowed beside the last part of `location`."""
    for part in location[:-1]:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _refuse(
    error: ValidationError, path: Path, tree: Any, model: type[BaseModel], prefix: tuple[Any, ...] = ()
) -> GrapeError:
    # An unknown key says more than the missing one it stands for.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = first["loc"]
    name = ".".join(str(p) for p in (*prefix, *location))
    where = f"{path.name}:{_line(tree, (*prefix, *location))}"
    if first["type"] == "extra_forbidden":
        known = _fields(model, location)
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        mend = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return GrapeError(f"unknown key {name}", where=where, mend=mend)
    if first["type"] == "missing":
        return GrapeError(
            f"{name} is missing",
            where=where,
            mend=f"add the key {location[-1]!r}; `grape init` writes a complete file to compare with",
        )
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, list)) or given is None else ""
    return GrapeError(
        f"{name}: {message}{shown}", where=where, mend="each key's comment in params.yaml gives its range"
    )


def _checked(text: str, path: Path, algorithms: Collection[str] | None = None) -> Params:
    try:
        # The round-trip tree carries line numbers; validation wants plain values, as the parser of all later readers sees them.
        tree, plain = _yaml().load(text), YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        raise GrapeError(
            f"not valid YAML: {error.problem}",
            where=f"{path.name}:{mark.line + 1 if mark else 1}",
            mend="mend that line",
        ) from error
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
        if name not in params.algorithms:
            raise GrapeError(
                f"rl.algorithms names {name!r}, but `algorithms` has no entry for it, so DVC could not track its knobs",
                where=f"{path.name}:{_line(tree, ('algorithms',))}",
                mend=f"add `{name}: {{}}` under `algorithms` for its defaults",
            )
    return params


def load(path: Path, algorithms: Collection[str] | None = None) -> Params:
    """Read and check params.yaml.

    Args:
        algorithms: those whose code is loaded and whose knobs are checked; None: all that are named.

    Raises:
        GrapeError: with file and line, the key, and the nearest known name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GrapeError(
            f"cannot be read: {error}", where=str(path), mend="restore it from git or from `grape init`"
        ) from error
    return _checked(text, path, algorithms)


def set_values(path: Path, assignments: Sequence[str]) -> Params:
    """Apply `a.b=value` assignments (YAML values) to params.yaml, comments kept. Nothing is written unless the result is valid.

    Raises: as `edited` does.
    """
    text, params = edited(path, assignments)
    if path.read_text(encoding="utf-8") != text:
        beside = path.with_name(path.name + ".partial")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    return params


def edited(path: Path, assignments: Sequence[str]) -> tuple[str, Params]:
    """What params.yaml would be with these assignments: its text and values. Writes nothing.

    Raises:
        GrapeError: an assignment without `=`, a key that does not exist, or a result that is not valid.
    """
    text = path.read_text(encoding="utf-8")
    tree = _yaml().load(text)
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise GrapeError(
                f"cannot read {assignment!r}", where="--set", mend="write it as key=value, e.g. --set rl.steps=10"
            )
        node = tree
        for i, part in enumerate(parts[:-1]):
            if part not in node and parts[0] == "algorithms":
                node[part] = {}
            node = _inside(node, part, parts[: i + 1])
        if parts[0] != "algorithms":
            _inside(node, parts[-1], parts)
        try:
            node[parts[-1]] = _readable(YAML(typ="rt").load(value))
        except MarkedYAMLError as error:
            raise GrapeError(
                f"cannot read the value of {assignment!r}: {error.problem}",
                where="--set",
                mend="quote it, or write it as YAML",
            ) from error
    buffer = io.StringIO()
    _yaml().dump(tree, buffer)
    return buffer.getvalue(), _checked(buffer.getvalue(), path)


def _readable(value: Any) -> Any:
    """A value in a style every YAML parser reads: mappings as blocks, and in lists no bare text with a colon."""
    if isinstance(value, CommentedMap) and value:
        value.fa.set_block_style()
        for key, inner in value.items():
            value[key] = _readable(inner)
    elif isinstance(value, CommentedSeq):
        value[:] = [DoubleQuotedScalarString(x) if isinstance(x, str) and ":" in x else x for x in value]
    return value


def _inside(node: Any, part: str, parts: list[str]) -> Any:
    if not isinstance(node, dict) or part not in node:
        known = list(node) if isinstance(node, dict) else []
        near = difflib.get_close_matches(part, known, 1)
        raise GrapeError(
            f"unknown key {'.'.join(parts)}",
            where="--set",
            mend=f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}",
        )
    return node[part]
