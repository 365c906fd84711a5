"""GGUF, the format of llama.cpp and what is built on it, by llama.cpp's own converter. grape has none: every architecture is a case
of its own there, and it is kept up by those who read the format."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from grape.errors import GrapeError
from grape.net import scrub

NAMES = ("convert_hf_to_gguf.py", "llama-convert-hf-to-gguf", "convert_hf_to_gguf", "convert-hf-to-gguf")
TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
MAGIC = b"GGUF"


def converter() -> list[str]:
    """The command that starts the converter: the file LLAMA_CPP_CONVERTER names, or what is on the PATH.

    Raises:
        GrapeError: there is none.
    """
    named = os.environ.get("LLAMA_CPP_CONVERTER")
    if named and not Path(named).is_file():
        raise GrapeError("no such file", where=f"LLAMA_CPP_CONVERTER={named}", mend="the path of convert_hf_to_gguf.py")
    places = [Path(folder) / name for folder in os.get_exec_path() for name in NAMES]
    found = Path(named) if named else next((place for place in places if place.is_file()), None)
    if found is None:
        raise GrapeError(
            "no converter to GGUF is here: none of " + ", ".join(NAMES) + " is on the PATH",
            where="--gguf",
            mend="install llama.cpp with its convert_hf_to_gguf.py, or name that file in LLAMA_CPP_CONVERTER; the package gguf "
            "has none",
        )
    # One that is executable knows the Python that has what it needs.
    return [str(found)] if os.access(found, os.X_OK) else [sys.executable, str(found)]


def convert(command: Sequence[str], folder: Path, name: str, dtype: str) -> Path:
    """The model of an exported folder as NAME-DTYPE.gguf beside its weights.

    Raises:
        GrapeError: the converter does not know this architecture, or fails otherwise; with its last words.
    """
    made = folder / f"{name}-{TYPES[dtype]}.gguf"
    words = [*command, str(folder), "--outfile", str(made), "--outtype", TYPES[dtype]]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise GrapeError(f"cannot be started: {error.strerror}", where=command[-1], mend="make it executable") from error
    if done.returncode or not made.is_file():
        last = ((done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}, without a word"])[-1]
        mend = "see what it says; without --gguf the folder is written"
        raise GrapeError(f"the converter failed: {scrub(last)}", where=command[-1], mend=mend)
    with made.open("rb") as file:
        if file.read(4) != MAGIC:
            raise GrapeError("the converter wrote something that is no GGUF", where=command[-1], mend="try it by hand")
    return made
