"""The slot: which algorithm a name in `rl.algorithms` stands for, and where its code is.

A name is one of grape's own, or an entry point of an installed package in the group `grape.algorithms`, or whatever
`algorithms.<name>.use: package.module:ALGORITHM` names in params.yaml. DVC sees each one's code as `algorithms/<name>.py` of the
project: a link to grape's own file, the user's file itself, or a card that says which package it comes from.

Nothing here imports torch before an algorithm is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from grape.errors import GrapeError

if TYPE_CHECKING:
    from grape.algorithms.base import Algorithm

GROUP = "grape.algorithms"
USE = "use"


def installed() -> dict[str, metadata.EntryPoint]:
    """Algorithms that installed packages bring, by name."""
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def find(name: str, use: str | None = None, root: Path | None = None) -> Algorithm:
    """The algorithm called `name`.

    Args:
        use: `package.module:ATTRIBUTE`, as params.yaml has it; modules are looked for in `root` first.

    Raises:
        GrapeError: no such name, nothing to import there, or what is there cannot be slotted in.
    """
    from grape.algorithms import ALGORITHMS

    if name in ALGORITHMS:
        if use is not None:
            raise GrapeError(f"{name!r} is one of grape's own algorithms", mend="give yours another name")
        return ALGORITHMS[name]
    if use is None:
        point = installed().get(name)
        if point is None:
            known = [*ALGORITHMS, *installed()]
            near = difflib.get_close_matches(name, known, 1)
            raise GrapeError(
                f"unknown algorithm {name!r}",
                mend=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}; yours needs `{USE}:`",
            )
        use = point.value
    return _imported(name, use, root)


def _imported(name: str, use: str, root: Path | None) -> Algorithm:
    from grape.algorithms.base import Algorithm, SlotParams

    module, colon, attribute = use.partition(":")
    if not (module and colon and attribute):
        raise GrapeError(f"{use!r} names no algorithm", mend="write it as package.module:ALGORITHM")
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise GrapeError(
            f"{use!r} cannot be imported: {type(error).__name__}: {error}",
            mend="check the name, and that the package is installed or its file lies in the project",
        ) from error
    if not isinstance(found, Algorithm):
        raise GrapeError(f"{use!r} is a {type(found).__name__}", mend="it must be a grape.algorithms.base.Algorithm")
    if found.data == "text" or not issubclass(found.params, SlotParams):
        raise GrapeError(
            f"{use!r} cannot be slotted into the rl stage",
            mend="it must learn from rollouts (params: OnlineParams) or pairs (params: SlotParams)",
        )
    return found


def card(name: str, use: str | None) -> str:
    """What stands in `algorithms/<name>.py` for an algorithm whose code is not in the project."""
    if use is None and name not in installed():
        if not (Path(__file__).parent / "algorithms" / f"{name}.py").is_file():
            raise GrapeError(f"unknown algorithm {name!r}")
        return f"# {name} is one of grape's own algorithms; grape.version stands for its code.\n"
    use = use or installed()[name].value
    spec = importlib.util.find_spec(use.partition(":")[0])
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    digest = hashlib.sha256(origin.read_bytes()).hexdigest() if origin is not None and origin.is_file() else "unknown"
    return f"# {name} is {use}, an installed package; the sha256 of its module is {digest}. grape keeps this true.\n"
