"""Model folders that copy no weights: an adapter over another model, or a pointer that names the model it equals.

A folder under models/ holds one of

- weights: `config.json`, safetensors and a tokenizer, as transformers writes them;
- an adapter in PEFT's format: `adapter_config.json`, which names the model it stands on, `adapter_model.safetensors`, a tokenizer;
- a pointer: `same_as.json`, {"model": what it equals, "revision": of the hub or null}.

Names within are those of params.yaml: a path that counts from the project's folder, or a hub id. What a folder stands on may stand
on another; `chain` follows them to the weights. A generation config beside an adapter or pointer takes the place of that below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grape.errors import GrapeError
from grape.files import read_json, replacing, write_json

if TYPE_CHECKING:  # the orchestrator asks what a folder stands on, and does without torch
    from grape.models.protocols import LanguageModel

ADAPTER, ADAPTER_WEIGHTS, POINTER = "adapter_config.json", "adapter_model.safetensors", "same_as.json"
DEEPEST = 16  # folders on each other; more is a circle


@dataclass(frozen=True)
class Chain:
    """What a model comes to.

    Attributes:
        source: the weights: a directory, a GGUF file or a hub id; `revision` of the hub.
        folders: the pointers and adapters above it, the topmost first.
    """

    source: str
    revision: str | None
    folders: tuple[Path, ...] = ()

    @property
    def adapters(self) -> list[Path]:
        """To be merged into the weights in this order."""
        return [folder for folder in reversed(self.folders) if (folder / ADAPTER).is_file()]

    @property
    def tokenizer(self) -> tuple[str, str | None]:
        """Where the tokenizer is, and its revision: the topmost folder that has one."""
        own = next((folder for folder in self.folders if (folder / "tokenizer_config.json").is_file()), None)
        return (str(own), None) if own else (self.source, self.revision)

    @property
    def generation(self) -> Path | None:
        """The topmost folder with a generation config of its own."""
        return next((folder for folder in self.folders if (folder / "generation_config.json").is_file()), None)

    def size(self) -> int | None:
        """Bytes of all weights; None: they are the hub's."""
        place = Path(self.source)
        if not place.exists():
            return None
        files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in [*files, *(folder / ADAPTER_WEIGHTS for folder in self.adapters)])


def chain(base: str, revision: str | None = None) -> Chain:
    """
    Raises:
        GrapeError: a folder names no model, one that is not there, or itself.
    """
    folders: list[Path] = []
    while (below := _below(Path(base))) is not None:
        folders.append(Path(base))
        if len(folders) > DEEPEST:
            raise GrapeError("it stands on itself", where=base, mend="delete the folder and run the stage that makes it again")
        base, revision = below
    return Chain(base, revision, tuple(folders))


def holds_model(folder: Path) -> bool:
    """Whether a stage has left a model there."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER, POINTER))


def root_of(folder: Path) -> Path:
    """The project that a model folder, models/NAME or models/policy/NAME, lies in."""
    above = folder.absolute().parent
    return above.parent.parent if above.name == "policy" else above.parent


def point(folder: Path, model: str, revision: str | None = None, generation: LanguageModel | None = None) -> None:
    """Write a pointer: `folder` is the model of that name, and nothing is copied.

    Args:
        generation: whose generation config is another than the one there.
    """
    with replacing(folder) as beside:
        beside.mkdir()
        write_json(beside / POINTER, {"model": model, "revision": revision})
        if generation is not None:
            generation.generation_config.save_pretrained(beside)


def _below(folder: Path) -> tuple[str, str | None] | None:
    """What a pointer or adapter stands on, and the revision; None: a folder with weights, a file, a hub id."""
    pointer = (folder / POINTER).is_file()
    path, field = folder / (POINTER if pointer else ADAPTER), "model" if pointer else "base_model_name_or_path"
    if not path.is_file():
        return None
    mend = "delete the folder and run the stage that makes it again"
    told = read_json(path, mend)
    name, revision = (told.get(field), told.get("revision")) if isinstance(told, dict) else (None, None)
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise GrapeError(f"it does not say what model it stands on ({field})", where=str(path), mend=mend)
    return _place(name, folder), revision


def _place(name: str, folder: Path) -> str:
    try:
        written = Path(name).expanduser()
    except RuntimeError as error:
        raise GrapeError(f"{name}: {error}", where=str(folder), mend="write the path out") from error
    # An adapter of somebody else's may count from where it was made: PEFT looks in the working directory.
    for place in (root_of(folder) / written, written.absolute()):
        if place.exists():
            return str(place)
    if not name.startswith(("models/", ".", "/", "~")):
        return name
    stage = name.removeprefix("models/")
    mend = f"run the stage that makes it: grape run {stage}" if stage != name else "put it there, or set model.base anew"
    raise GrapeError(f"it stands on {name}, which is not there", where=str(folder), mend=mend)
