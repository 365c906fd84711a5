"""Python files of the project that stages run: worlds and gold judges, loaded by their path."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from grape.errors import GrapeError


def load_module(path: Path) -> ModuleType:
    """A Python file as a module, by its path: worlds and gold judges are files of the project, not parts of grape.

    Raises:
        GrapeError: there is none, or it cannot be loaded.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise GrapeError(
            f"no such Python file: {path}", where="params.yaml, prepare.source", mend="give the path of an existing file"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is somebody's program
        line = error.lineno if isinstance(error, SyntaxError) else None
        raise GrapeError(
            f"it cannot be loaded: {type(error).__name__}: {error}",
            where=f"{path}:{line}" if line else str(path),
            mend="mend that file",
        ) from error
    return module
