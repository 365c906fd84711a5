"""YAML files of the user and of DVC, as plain values. What cannot be read is refused with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from grape.errors import GrapeError


def text_of(path: Path) -> str:
    """The file's text, line ends as they are.

    Raises:
        GrapeError: it is not there, not a file, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        what = f"cannot be read: not UTF-8 text (byte {error.start + 1} is 0x{error.object[error.start]:02x})"
    raise GrapeError(what, where=path.name, mend=f"restore {path} from git or from `grape init`")


def parse(text: str, name: str, typ: str = "safe") -> Any:
    """The value of a YAML text; `name` is the file's.

    Raises:
        GrapeError: it is not one YAML document.
    """
    try:
        yaml = YAML(typ=typ)
        yaml.preserve_quotes = True
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what, line = str(error.problem or error.context), mark.line + 1 if mark else 1
    except YAMLError as error:  # a character that may not stand in YAML, such as NUL: known by its place only
        place = getattr(error, "position", None)
        line = text.count("\n", 0, place) + 1 if isinstance(place, int) else 1
        what = getattr(error, "reason", None) or (str(error).strip().splitlines() or ["unreadable"])[0]
    except (ValueError, OverflowError, TypeError, RecursionError) as error:  # 2024-13-45 looks like a date, and is none
        what, line = str(error) or type(error).__name__, 1
    raise GrapeError(f"not valid YAML: {what}", where=f"{name}:{line}", mend="mend that line")


def at(tree: Any, key: str, default: Any = None) -> Any:
    """What stands at `a.b.c` of a tree that nobody has checked yet; the default where nothing does."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return default
        tree = tree[part]
    return tree


def read(path: Path) -> Any:
    """The file's value; raises as `text_of` and `parse` do."""
    return parse(text_of(path), path.name)
