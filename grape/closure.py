"""Which files a Python file imports, read from its text: nothing is run. Imports inside functions count, those for type checkers
alone do not. A name that is made up while the program runs cannot be seen here."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from grape.errors import GrapeError

# Of grape's own files, those whose code cannot change a result, so that no stage need depend on them; what they import cannot
# either. `/` ends a folder.
INERT = {
    "grape/__init__.py": "holds the reading order and the version",
    "grape/closure.py": "finds dependencies, and refuses",
    "grape/disk.py": "words what the file system refuses",
    "grape/dvc.py": "asks DVC, and reads dvc.lock for receipts and checkpoints",
    "grape/errors.py": "words refusals",
    "grape/memory.py": "asks how much memory is free, and words that there is too little",
    "grape/named.py": "writes down which bytes a name of params.yaml stands for",
    "grape/needed.py": "says which stages anybody needs, on cards that DVC compares",
    "grape/net.py": "says which addresses are asked directly",
    "grape/progress.py": "shows steps on the screen",
    "grape/project.py": "says where the files of a project lie",
    "grape/receipt.py": "writes down what a stage did",
    "grape/slot.py": "finds an algorithm, whose code DVC sees as algorithms/NAME.py",
    "grape/stages/__init__.py": "says what stages are",
    "grape/stages/declared.py": "hands out knobs that DVC compares, or refuses",
    "grape/stages/inputs.py": "reads dvc.yaml; names the state that a checkpoint belongs to",
    "grape/stages/unneeded.py": "writes down that a stage was not needed, as its card says",
    "grape/stages/watched.py": "compares imports with dvc.yaml, and refuses",
    "grape/yamlfile.py": "reads YAML as its library does, or refuses",
    "grape/algorithms/__init__.py": "maps names to files",
    "grape/track/": "tells MLflow what a stage did; nothing comes back",
}


def inert(path: str) -> bool:
    """Whether the code of a file, relative to the project, can change no result."""
    return path in INERT or any(folder.endswith("/") and path.startswith(folder) for folder in INERT)


def parsed(path: Path) -> ast.Module:
    """The file's syntax tree; GrapeError where it cannot be read or is not Python."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise GrapeError(f"cannot be read as Python: {error}", where=f"{path}{line}", mend="mend that file") from error


def named(node: ast.AST) -> Iterator[tuple[int, tuple[str, ...]]]:
    """What the code below `node` imports: (leading dots, parts of the name); `from a import b` is a and a.b."""
    if isinstance(node, ast.Import):
        yield from ((0, tuple(alias.name.split("."))) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = tuple(node.module.split(".")) if node.module else ()
        yield from ((node.level, parts + more) for more in ((), *((alias.name,) for alias in node.names)))
    elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__") and node.args:
        if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            yield 0, tuple(node.args[0].value.split("."))
    below: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and _called(node.test) == "TYPE_CHECKING":
        below = node.orelse
    for child in below:
        yield from named(child)


def _called(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def files(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The files that run when the module `parts` below `folder` is imported: its packages' __init__.py, and its own."""
    for part in parts:
        for path in (folder / part / "__init__.py", folder / f"{part}.py"):
            if path.is_file():
                yield path
                break
        folder = folder / part


def closure(
    starts: Iterable[Path], search: Callable[[str], Iterable[Path]], follow: Callable[[Path], bool] = lambda _: True
) -> dict[Path, Path]:
    """Every file that `starts` import, directly or not, with the file that imports it; a start stands for itself.

    Args:
        search: the folders in which a top-level name is looked for.
        follow: whether a file belongs in the closure.
    """
    found = {path: path for path in starts}
    todo = list(found)
    while todo:
        path = todo.pop()
        for level, parts in named(parsed(path)):
            folders = [path.parents[level - 1]] if level else search(parts[0])
            for file in (file for folder in folders for file in files(folder, parts)):
                if file not in found and follow(file):
                    found[file] = path
                    todo.append(file)
    return found
