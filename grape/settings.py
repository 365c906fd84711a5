"""`--set KEY=VALUE`: put a value into the text of params.yaml so that every YAML parser reads the very value that was given.

DVC and grape read YAML 1.2, most other programs 1.1, where `1e-6` is a word, `no` is false and `1:30` is ninety. What is
written here means the same to both.
"""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from grape import yamlfile
from grape.errors import GrapeError, nearest

# Text that is the same word to every parser needs no quotes.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
# Keys that were, and what stands in their place.
MOVED = {
    "rl.lora_rank": "it is model.lora.rank now, for every stage that trains: delete this line and set that",
    "prepare.heldout": "there are two now, prepare.validation to choose by and prepare.test to report: delete it, set them",
    "model.micro_batch_tokens": "each machine measures it now: delete this line; GRAPE_MICRO_BATCH_TOKENS overrides it",
}
_QUOTE = "quote it, or write it as YAML"


def apply(text: str, name: str, assignments: Sequence[str]) -> str:
    """The text of a YAML file with these values put in; comments, line ends and a byte-order mark are kept.

    Args:
        name: the file's, for messages.

    Raises:
        GrapeError: the text is not YAML, an assignment has no `=`, a key is unknown or a value cannot be written.
    """
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    ends = "\r\n" if "\r\n" in text else "\n"
    body = text.removeprefix(mark).replace("\r\n", "\n")
    wanted, tree = _apart(yamlfile.parse(body, name)), yamlfile.parse(body, name, typ="rt")
    for assignment in assignments:
        key, sign, given = assignment.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise GrapeError(f"cannot read {assignment!r}", where="--set", mend="write it as key=value, e.g. --set rl.steps=10")
        plain = value(given, assignment)
        _put(tree, parts, _written(plain))
        _put(wanted, parts, plain)
    buffer = io.StringIO()
    _yaml().dump(tree, buffer)
    if yamlfile.parse(buffer.getvalue(), name) != wanted:
        what = f"{', '.join(assignments)}: this would change other keys too, which share the value by an anchor (&name)"
        raise GrapeError(what, where=f"--set, {name}", mend="write the value out in the file where *name stands, then set it")
    return mark + buffer.getvalue().replace("\n", ends)


def _apart(plain: Any) -> Any:
    """A copy in which no two places share a value, as an anchor makes them do."""
    if isinstance(plain, dict):
        return {key: _apart(inner) for key, inner in plain.items()}
    return [_apart(inner) for inner in plain] if isinstance(plain, list) else plain


def value(text: str, assignment: str) -> Any:
    """The value that `text` stands for, as YAML 1.2; text that YAML would cut at a ` #` stands for itself."""
    try:
        text.encode("utf-8")
        yaml = YAML(typ="safe", pure=True)
        node = yaml.compose(text)
        rest = text[node.end_mark.index :].strip() if node is not None else text.strip()
        if rest and (node is None or isinstance(node, ScalarNode) and node.style is None):
            return text.strip()
        if rest:
            raise ValueError(f"what stands behind it, {rest!r}, would be a comment")
        found = YAML(typ="safe", pure=True).load(text)
        if isinstance(found, datetime.date):  # no key is a date, and a model's revision may look like one
            return text.strip()
        _refuse_odd(found)
    except YAMLError as error:
        why = str(getattr(error, "problem", None) or error)
        raise GrapeError(f"cannot read the value of {assignment!r}: {why}", where="--set", mend=_QUOTE) from error
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        shown = assignment.encode("utf-8", "backslashreplace").decode()
        raise GrapeError(f"cannot read the value of {shown!r}: {error}", where="--set", mend=_QUOTE) from error
    return found


def _refuse_odd(found: Any) -> None:
    if isinstance(found, dict):
        for key, inner in found.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text")
            _refuse_odd(inner)
    elif isinstance(found, list):
        for inner in found:
            _refuse_odd(inner)
    elif found is not None and not isinstance(found, (bool, int, float, str)):
        raise ValueError(f"{found!r} is a {type(found).__name__}, which no key takes")


def _written(plain: Any) -> Any:
    """The value in a style that every parser reads alike: mappings as blocks, lists on one line, text in quotes."""
    if isinstance(plain, dict):
        block = CommentedMap({_written(key): _written(inner) for key, inner in plain.items()})
        if block:
            block.fa.set_block_style()
        return block
    if isinstance(plain, list):
        line = CommentedSeq([_in_line(inner) for inner in plain])
        line.fa.set_flow_style()
        return line
    if isinstance(plain, str) and (not _PLAIN.fullmatch(plain) or plain.lower() in _WORDS):
        return DoubleQuotedScalarString(plain)
    return plain


def _in_line(plain: Any) -> Any:
    """The same inside a list, where a mapping has to stand on the line too."""
    if not isinstance(plain, dict):
        return _written(plain)
    line = CommentedMap({_written(key): _in_line(inner) for key, inner in plain.items()})
    line.fa.set_flow_style()
    return line


def _put(tree: Any, parts: list[str], plain: Any) -> None:
    node = tree
    for i, part in enumerate(parts[:-1]):
        if parts[0] == "algorithms" and isinstance(node, dict) and part not in node:
            node[part] = CommentedMap() if isinstance(node, CommentedMap) else {}
        node = _inside(node, part, parts[: i + 1])
        if node is None and parts[0] == "algorithms":
            break
    if parts[0] != "algorithms":
        _inside(node, parts[-1], parts)
    elif not isinstance(node, dict):
        raise GrapeError(f"{'.'.join(parts[:-1])} is not a mapping", where="--set", mend=f"set {'.'.join(parts[:-1])}={{}} first")
    node[parts[-1]] = plain


def _inside(node: Any, part: str, parts: list[str]) -> Any:
    if not isinstance(node, dict) or part not in node:
        known = [str(key) for key in node] if isinstance(node, dict) else []
        name = ".".join(parts)
        mend = MOVED.get(name) or nearest(part, known, "known here: %s")
        raise GrapeError(f"unknown key {name}", where="--set", mend=mend)
    return node[part]


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 1_000_000  # a line of the user's is not folded
    yaml.allow_unicode = True
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.representer.add_representer(float, lambda r, number: r.represent_scalar("tag:yaml.org,2002:float", _number(number)))
    return yaml


def _number(number: float) -> str:
    """1e-06 as 1.0e-06: without the point it is text to a parser of YAML 1.1."""
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(number), repr(number))
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
