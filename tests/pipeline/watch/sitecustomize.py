"""Imported by every Python that has this folder in PYTHONPATH: notes what a stage's process opens, and which keys it reads."""

import atexit
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

OPENED: set[str] = set()
GRANTS: list[Any] = []


def note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if os.path.isfile(path):  # read, then, or written over
            OPENED.add(path)
        if f"{os.sep}receipts{os.sep}" in path and not GRANTS:  # the end of a stage, which still holds what it may read
            GRANTS.extend(found for found in gc.get_objects() if type(found).__name__ == "Grant" and hasattr(found, "read"))


def write(folder: str) -> None:
    for grant in GRANTS:
        found = {"opened": sorted(OPENED), "read": sorted(grant.read), "declared": sorted(grant.keys)}
        Path(folder, f"{grant.stage}.json").write_text(json.dumps(found))


if "grape.stages" in sys.orig_argv:
    sys.addaudithook(note)
    atexit.register(write, os.environ["GRAPE_TEST_WATCH"])
