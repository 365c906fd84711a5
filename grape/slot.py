"""The slot: which algorithm a name in `rl.algorithms` stands for, and where its code is.

A name is one of grape's own, or an entry point of an installed package in the group `grape.algorithms`, or whatever
`algorithms.<name>.use: package.module:ALGORITHM` names in params.yaml. DVC sees each one's code as `algorithms/<name>.py` of the
project: a link to grape's own file, the user's file itself, or a card that says which package it comes from.

Nothing here imports torch before an algorithm is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from grape.closure import closure, files
from grape.errors import GrapeError, nearest

if TYPE_CHECKING:
    from grape.algorithms.base import Algorithm

GROUP = "grape.algorithms"
USE = "use"
SFT = "sft"  # never the name of an algorithm here: it is the stage that all of them start from
OWN = Path(__file__).parent / "algorithms"
STANDARD = Path(sysconfig.get_path("stdlib"))


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
        if point is None and name == SFT:
            mend = "leave it out: the others start from its model and are compared with it; `grape tune` alone takes it"
            raise GrapeError("sft stands in no slot, it is a stage of its own", mend=mend)
        if point is None:
            mend = nearest(name, [*ALGORITHMS, *installed()], f"known: %s; yours needs `{USE}:`")
            raise GrapeError(f"unknown algorithm {name!r}", mend=mend)
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
        mend = "check the name, and that the package is installed or its file lies in the project"
        raise GrapeError(f"{use!r} cannot be imported: {type(error).__name__}: {error}", mend=mend) from error
    if not isinstance(found, Algorithm):
        raise GrapeError(f"{use!r} is a {type(found).__name__}", mend="it must be a grape.algorithms.base.Algorithm")
    if found.data == "text" or not issubclass(found.params, SlotParams):
        mend = "it must learn from rollouts (params: OnlineParams) or pairs (params: SlotParams)"
        raise GrapeError(f"{use!r} cannot be slotted into the rl stage", mend=mend)
    return found


def card(name: str, use: str | None, root: Path) -> str:
    """What stands in `algorithms/<name>.py` for an algorithm whose code is elsewhere: DVC compares it in that code's place.

    Raises:
        GrapeError: no such algorithm, or its code cannot be read.
    """
    if use is None and name not in installed():
        if not (OWN / f"{name}.py").is_file():
            raise GrapeError(f"unknown algorithm {name!r}")
        return f"# {name} is one of grape's own algorithms; grape.version stands for its code.\n"
    found = code(name, use, root)
    lines = sorted(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in found)
    value = hashlib.sha256("\n".join(lines).encode()).hexdigest() if found else "unknown"
    use = use or installed()[name].value
    return f"# {name} is {use}; the sha256 of its code, {len(found)} files, is {value}. grape keeps this true.\n"


def is_card(name: str, text: str) -> bool:
    return text.startswith(f"# {name} is ")


def code(name: str, use: str | None, root: Path) -> list[Path]:
    """The files of an algorithm whose code is not `algorithms/<name>.py`: its module and what that imports, of a package from
    outside the project every file of the package.

    What other installed packages hold (torch, say) is not among them, nor the rest of grape, which the stage depends on; of
    one of grape's own algorithms there is nothing.
    """
    if use is None and name not in installed():
        return []
    module = (use or installed()[name].value).partition(":")[0].split(".")
    starts = [path for folder in _folders(module[0], root) for path in files(folder, module)]
    if module[0] != "grape" and not any(path.is_relative_to(root) and not library(path) for path in starts):
        # A package may import its parts by names made up as it runs.
        starts += [path for folder in _folders(module[0], root) for path in (folder / module[0]).rglob("*.py")]

    def search(top: str) -> list[Path]:
        return [folder for folder in _folders(top, root) if top == module[0] or not library(folder)]

    def follow(path: Path) -> bool:
        return OWN.parent not in path.parents or path.parent == OWN

    return list(closure(filter(follow, starts), search, follow))


def _folders(top: str, root: Path) -> list[Path]:
    """The folders from which the top-level name `top` would be imported; [] when it is not there or no file. Imports nothing."""
    spec = PathFinder.find_spec(top, [str(root), *sys.path])
    for finder in () if spec else sys.meta_path:  # editable installs bring finders of their own
        spec = spec or finder.find_spec(top, None)
    if spec is None:
        return []
    places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    return [Path(place).parent for place in places if Path(place).is_absolute()]


def library(path: Path) -> bool:
    """Whether a file or folder belongs to Python or to an installed package."""
    return {"site-packages", "dist-packages"} & set(path.parts) != set() or path.is_relative_to(STANDARD)
