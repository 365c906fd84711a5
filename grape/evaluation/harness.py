"""Standard benchmarks by lm-evaluation-harness (extra `grape[eval]`), on a model that is loaded: its tasks, found and measured.

The harness is imported when there are tasks to run, and only then. Its tasks are read from a folder of the project; what is not
there is looked for among its own, whose data come from the hub.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grape.errors import GrapeError, nearest
from grape.models.forward import Dtype
from grape.models.protocols import LanguageModel, Tokenizer

if TYPE_CHECKING:
    from grape.schema import Benchmarks

WHERE = "params.yaml, evaluate.benchmarks"
Measured = dict[str, dict[str, dict[str, Any]]]  # task -> metric -> value, n, higher_is_better, documents


def refuse(knobs: Benchmarks, root: Path) -> None:
    """Find out before anything is trained whether the benchmarks can run: this loads them, and their data.

    Raises:
        GrapeError: the harness is not installed, a task is not known, its data cannot be had, or lie where a change of them would
            not be noticed.
    """
    if knobs.tasks:
        with _quiet():
            _load(knobs, root)


def measure(
    model: LanguageModel,
    tokenizer: Tokenizer,
    arguments: Mapping[str, Any],
    knobs: Benchmarks,
    root: Path,
    seed: int,
    dtype: Dtype = "float32",
) -> Measured:
    """Every task's metrics, as JSON values.

    Args:
        tokenizer: with the chat template, and `arguments` what it is told, to be used where `knobs.chat` says so.
        seed: of the harness's own draws (few-shot examples, tasks that sample).

    Returns:
        task -> metric -> `value`, `n` documents, `higher_is_better`, and `documents`, the metric of each, where `value` is their
        mean (else null: a perplexity or a corpus score is more than the sum of its parts).

    Raises:
        GrapeError: as `refuse`, or the harness fails at a task.
    """
    with _quiet():
        manager = _load(knobs, root)
        how = {"mixed_precision_dtype": "bfloat16" if dtype == "bfloat16" else None, "chat_template_args": dict(arguments)}
        seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            found = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=knobs.batch, **how),
                tasks=list(knobs.tasks),
                task_manager=manager,
                num_fewshot=knobs.fewshot,
                limit=knobs.limit,
                apply_chat_template=knobs.chat,
                bootstrap_iters=0,
                log_samples=True,
                **seeds,
            )
        except Exception as error:  # tasks are programs of others
            raise _failed("the benchmarks fail", error, "mend the task, or take it out of tasks") from error
    return {task: dict(_metrics(task, found)) for task in sorted(found["results"])}


def _metrics(task: str, found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metrics of a task, or of a group of tasks, which has no documents of its own. NAME,none is called NAME."""
    rows = found["samples"].get(task, [])
    for name, value in found["results"][task].items():
        metric, comma, pick = name.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float, np.number)):
            continue
        each = [row.get(metric) for row in sorted(rows, key=lambda row: row["doc_id"]) if row["filter"] == pick]
        each = [float(x) for x in each if isinstance(x, (bool, int, float, np.number))]
        count = len({row["doc_id"] for row in rows}) or int(found["results"][task].get("sample_len") or 0)
        whole = bool(each) and len(each) == count and abs(float(np.mean(each)) - float(value)) < 1e-9
        yield (
            (metric if pick == "none" else name),
            {
                "value": float(value),
                "n": count,
                "higher_is_better": found["higher_is_better"].get(task, {}).get(metric),
                "documents": each if whole else None,
            },
        )


def _load(knobs: Benchmarks, root: Path) -> Any:
    """The manager of the tasks, each of which has been loaded once, with its data."""
    folder = folder_of(knobs.folder, root)
    installed()
    try:
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=folder and str(folder), include_defaults=False)
        if set(knobs.tasks) - set(manager.all_tasks):  # reading the harness's own 10 000 files takes half a minute
            manager = TaskManager(include_path=folder and str(folder))
    except Exception as error:  # YAML files of others
        raise _failed("the tasks cannot be read", error, "mend the file") from error
    if unknown := sorted(set(knobs.tasks) - set(manager.all_tasks)):
        mend = nearest(unknown[0], manager.all_tasks, "`lm_eval ls tasks` lists the harness's own")
        raise GrapeError(f"there is no task {unknown[0]}", where=f"{WHERE}.tasks", mend=mend)
    for name, task in _tasks(manager, knobs.tasks).items():
        _refuse_elsewhere(name, task.config, folder)
    return manager


def installed() -> str:
    """The harness's version.

    Raises:
        GrapeError: there is none.
    """
    try:
        return version("lm-eval")
    except PackageNotFoundError as error:
        what, mend = "benchmarks are run by lm-evaluation-harness, which is not installed", "pip install 'grape[eval]'"
        raise GrapeError(what, where=WHERE, mend=f"{mend}, or leave tasks empty") from error


def folder_of(named: str | None, root: Path) -> Path | None:
    """What `evaluate.benchmarks.folder` names.

    Raises:
        GrapeError: no folder.
    """
    folder = None if named is None else root / Path(named).expanduser()
    if folder is not None and not folder.is_dir():
        raise GrapeError(f"no such folder: {folder}", where=f"{WHERE}.folder", mend="give the folder with your tasks, or null")
    return folder


def _tasks(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """Every task, its data loaded: from what is on this machine, else from the hub, which is asked once whether it is there."""
    try:
        try:
            with _hub(offline=True):
                return dict(manager.load(list(names))["tasks"])
        except (OSError, ValueError) as error:
            if not _asks_the_hub(error) or not _reachable():
                raise
            return dict(manager.load(list(names))["tasks"])
    except Exception as error:  # data and code of others
        away = " (the hub cannot be reached from here, and the data are not in its cache)" if _asks_the_hub(error) else ""
        mend = "mend the task or its data; tasks with data of your own stand in evaluate.benchmarks.folder"
        raise _failed(f"a benchmark cannot be loaded{away}", error, mend) from error


def _refuse_elsewhere(name: str, config: Any, folder: Path | None) -> None:
    """
    Raises:
        GrapeError: the task reads local files outside of the folder: only the folder is what DVC compares.
    """
    files: Any = (config.dataset_kwargs or {}).get("data_files") or []
    listed = list(files.values()) if isinstance(files, dict) else [files]
    for entry in (e for part in listed for e in (part if isinstance(part, list) else [part])):
        path = Path(str(entry))
        if path.exists() and (folder is None or not path.resolve().is_relative_to(folder.resolve())):
            what = f"{name} reads {entry}, outside of the folder, so that a change of it would not be noticed"
            raise GrapeError(what, where=f"{WHERE}.folder", mend="move the file into the folder")


@contextlib.contextmanager
def _hub(offline: bool) -> Iterator[None]:
    """Whether the hub's clients may ask it; without an answer they would try for half a minute, file by file."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline or before[0]
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _asks_the_hub(error: BaseException | None) -> bool:
    """Whether this came of not being allowed, or able, to ask the hub."""
    while error is not None:
        if "offline" in type(error).__name__.lower() or "on the Hub" in str(error) or isinstance(error, ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reachable() -> bool:
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5.0, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither the harness's remarks and bars, nor byte code beside the user's tasks: that would change what DVC compares."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    before, written = [logger.level for logger in loggers], sys.dont_write_bytecode
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    sys.dont_write_bytecode = True
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.dont_write_bytecode = written
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _failed(what: str, error: Exception, mend: str) -> GrapeError:
    said = (str(error).strip().splitlines() or [""])[0]
    return GrapeError(f"{what}: {type(error).__name__}: {said}", where=WHERE, mend=mend)
