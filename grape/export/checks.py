"""What is asked of an export, and what is refused before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grape import disk, dvc
from grape.errors import GrapeError
from grape.export.folder import Weights
from grape.export.lineage import Records
from grape.needed import made
from grape.project import Project

KINDS = ("base", "sft", "critic", "reward", "rl")


@dataclass(frozen=True)
class Order:
    """What is asked for. None: not said. `base`: the hub's name of the base model. `replay`: how many answers are compared."""

    dtype: Weights | None = None
    adapter: bool = False
    gguf: bool = False
    replay: int | None = None
    license: str = "unknown"
    base: str | None = None


def model_path(stage: str, kinds: tuple[str, ...] = KINDS) -> str:
    """Where the model of a stage lies, relative to the project.

    Raises:
        GrapeError: no such stage has a model.
    """
    kind, _, policy = stage.partition("@")
    if kind not in kinds or (kind == "rl") != bool(policy):
        names = [name if name != "rl" else "rl@ALGORITHM-SEED (e.g. rl@grape-0)" for name in kinds]
        raise GrapeError(f"no stage {stage!r} with a model", mend=f"one of: {', '.join(names)}")
    return f"models/policy/{policy}" if kind == "rl" else f"models/{kind}"


def recorded(project: Project, stage: str, path: str) -> str:
    """The md5 of the stage's model, which is on disk as dvc.lock has it.

    Raises:
        GrapeError: the stage has not run or was not needed, or its model is not there or not what it made.
    """
    records, run = Records(project), f"grape run {stage}"
    if path not in records.makers:
        raise GrapeError(f"{stage} has not run: dvc.lock has no {path}", where=path, mend=f"run it: {run}")
    md5 = records.makers[path][1]
    state = records.state(path, md5)
    if state == "missing":
        raise GrapeError(f"the model of {stage} is not on disk", where=path, mend=f"bring it back: {run}")
    if state == "changed":
        what = f"this is not what {stage} made: its bytes differ from those in dvc.lock"
        raise GrapeError(what, where=path, mend=f"move what is yours away, delete the folder, and bring it back: {run}")
    made(project.root / path)
    return md5


def refuse_place(project: Project, target: Path) -> None:
    """
    Raises:
        GrapeError: the folder holds something, or is one that the pipeline or git keeps.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise GrapeError("this is no folder", where=str(target), mend="name a new or an empty folder")
    if target.is_dir() and any(target.iterdir()):
        raise GrapeError("it is not an empty folder", where=str(target), mend="name a new or an empty one")
    _refuse_own(project, target)


def refuse_output(project: Project, out: Path, file: Path) -> None:
    """
    Args:
        out: a file to write. file: the one that is read.

    Raises:
        GrapeError: they are the same, or it is a folder or lies where the pipeline keeps its own.
    """
    if out.is_dir():
        raise GrapeError("this is a folder", where=str(out), mend="name a file, e.g. answers.jsonl")
    if out.resolve() == file.resolve():
        raise GrapeError("the answers would take the place of their prompts", where=str(out), mend="name another file")
    _refuse_own(project, out)


def _refuse_own(project: Project, target: Path) -> None:
    outs = {out.split("/")[0] for entry in dvc.stages(project).values() for out in dvc.outputs(entry)}
    for name in sorted({*outs, "data", "models", "reports", ".grape", ".dvc", ".git"}):
        inside = target.resolve().is_relative_to(project.root / name)
        if inside and not target.resolve().is_relative_to(project.state / "tmp"):
            what = f"{name}/ is the pipeline's own: what is put there would be lost, or taken for a result"
            raise GrapeError(what, where=str(target), mend="name a place elsewhere")


def refuse_settings(stage: str, order: Order) -> None:
    """Refuse what would have no effect, or cannot be."""
    if order.adapter:
        for name, given in (("--dtype", order.dtype), ("--gguf", order.gguf), ("--replay", order.replay)):
            if given:
                what = f"{name} is for merged weights; an adapter is copied as it was trained, and answers with its base alone"
                raise GrapeError(what, where="--adapter", mend=f"leave {name} or --adapter out")
    if stage == "reward" and (order.replay or order.gguf):
        name = "--replay" if order.replay else "--gguf"
        raise GrapeError("a reward model gives scores, not answers", where=name, mend=f"leave {name} out")
    if not re.fullmatch(r"[\w.+-]+", order.license):
        mend = "an identifier of the hub's list, e.g. apache-2.0"
        raise GrapeError(f"{order.license!r} is no identifier of a licence", where="--license", mend=mend)
    if order.base is not None and not is_hub_id(order.base):
        raise GrapeError(f"{order.base!r} is no name of the hub", where="--base", mend="write it like org/name")


def is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith(".gguf") and name != "scratch"


@contextmanager
def full_disk(root: Path) -> Iterator[None]:
    """A disk that runs full is one message, whatever library noticed."""
    try:
        yield
    except GrapeError:
        raise
    except Exception as error:  # safetensors and torch have kinds of their own for it
        if refusal := disk.refusal(error, root):
            raise refusal from error
        raise
