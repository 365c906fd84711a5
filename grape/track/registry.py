"""Models in MLflow: small ones with their weights, large ones by reference to DVC, policies in the registry.

Weights live in DVC's cache already; a copy in MLflow is worth it only where it is small. Versions of the registered
model carry DVC's md5 of the policy (tag grape.digest), so that a policy is found again whichever run logged it.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from grape.errors import GrapeError
from grape.models.folder import ADAPTER, ADAPTER_WEIGHTS, Chain, chain
from grape.project import Project
from grape.track import digest
from grape.track.spool import Event
from grape.track.store import Store

logger = logging.getLogger("grape.track")
POLICY = "grape-policy"
CHAMPION = "champion"
LARGEST = 200 * 1024 * 1024  # bytes of weights MLflow gets a copy of
SMALL = 16 * 1024 * 1024  # bytes of a tokenizer or config file that goes with a reference
ADAPTED = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification"}
TASKS = {"ForCausalLM": "text-generation", "LMHeadModel": "text-generation", "ForSequenceClassification": "text-classification"}


@dataclass(frozen=True)
class Candidate:
    """A policy for the alias: `low` and `mean` are of its score minus SFT's (gold if there is one, else proxy)."""

    name: str  # "grpo-0"
    mean: float
    low: float


def best(candidates: Iterable[Candidate]) -> Candidate | None:
    """The best policy whose interval lies above 0; on equal means the name decides, so that order does not."""
    return max((c for c in candidates if c.low > 0), key=lambda c: (c.mean, c.low, c.name), default=None)


def model_event(project: Project, path: str, name: str, register: str | None) -> dict[str, Any]:
    """What the spool keeps of a model: not its bytes, but which bytes they were."""
    place = project.root / path
    found = chain(str(place))
    size = found.size() if found.folders else digest.size(place)
    event = {"path": path, "name": name, "register": register, "digest": digest.computed(place), "bytes": size}
    return event | ({"below": _below(project, found)} if found.folders and _is_small(event) else {})


def _is_small(event: Event) -> bool:
    return event["bytes"] is not None and event["bytes"] <= LARGEST


def _below(project: Project, found: Chain) -> dict[str, str]:
    """The md5 of what a pointer or an adapter stands on; a hub id has none."""
    places = [*found.folders[1:], *([Path(found.source)] if found.folders else [])]
    return {os.path.relpath(place, project.root): digest.computed(place) for place in places if place.exists()}


def log_model(store: Store, project: Project, run_id: str, event: Event) -> int | None:
    """Log a model to a run, once; the registered version, if it was to be registered.

    A model that is large, that transformers cannot load, or that has changed on disk since is logged by reference.
    """
    version = find_version(store, event["register"], event["digest"], run_id) if event["register"] else None
    if version is not None:
        return version
    tags = {"grape.path": event["path"], "grape.digest": event["digest"]}
    with store.ambient():
        model_id = _logged(store, run_id, event["name"]) or _log(store, project, run_id, event, tags)
        return _register(store, event, run_id, model_id, tags) if event["register"] else None


def _log(store: Store, project: Project, run_id: str, event: Event, tags: dict[str, str]) -> str:
    """Log the model; its id."""
    path = project.root / event["path"]
    same = path.is_dir() and digest.computed(path) == event["digest"]
    task = _task(path) if same and _is_small(event) and _stands(project, path, event) else None
    if task:
        return _weights(store, path, event, run_id, task, tags)
    return _reference(store, path if same else None, event, run_id, tags)


def _stands(project: Project, path: Path, event: Event) -> bool:
    """Whether what the model stands on is what it was."""
    try:
        return _below(project, chain(str(path))) == event.get("below", {})
    except GrapeError:
        return False


def _logged(store: Store, run_id: str, name: str) -> str | None:
    """The model this run already has under this name, complete."""
    run = store.client.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        model = store.client.get_logged_model(output.model_id)
        if model.name == name and model.status == "READY":
            return str(model.model_id)
    return None


def _task(path: Path) -> str | None:
    """The pipeline task of a saved transformers model, by the class its config names, or of its adapter; None: not one we can
    load."""
    found = chain(str(path))
    try:
        if (path / ADAPTER).is_file():
            return ADAPTED.get(json.loads((path / ADAPTER).read_text(encoding="utf-8"))["task_type"])
        architecture = json.loads((Path(found.source) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    import transformers

    if not hasattr(transformers, architecture):
        return None
    return next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)


def _weights(store: Store, path: Path, event: Event, run_id: str, task: str, tags: dict[str, str]) -> str:
    import mlflow.transformers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = _loaded(path, task)
    # MLflow asks the hub for the card and licence of a model whose name could be a hub id; this one could not.
    model.name_or_path = f"./{event['path']}/"
    pins = [f"{name}=={metadata.version(name)}" for name in ("torch", "transformers")]
    # log_model alone would file the model under whatever experiment this process calls active
    logged = store.client.create_logged_model(store.experiment_id, event["name"], source_run_id=run_id, tags=tags)
    how = {"name": event["name"], "task": task, "pip_requirements": pins, "run_id": run_id, "model_id": logged.model_id}
    mlflow.transformers.log_model({"model": model, "tokenizer": tokenizer}, **how)
    return str(logged.model_id)


def _loaded(path: Path, task: str) -> tuple[Any, Any]:
    """The model and its tokenizer. Adapters are merged: who loads it from MLflow needs neither PEFT nor what it stands on."""
    import transformers

    if chain(str(path)).folders:
        from grape.models.load import load_language_model, load_scalar_model

        return load_language_model(str(path)) if task == "text-generation" else load_scalar_model(str(path))
    auto = transformers.AutoModelForCausalLM if task == "text-generation" else transformers.AutoModelForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    return auto.from_pretrained(path, local_files_only=True), tokenizer


def _reference(store: Store, path: Path | None, event: Event, run_id: str, tags: dict[str, str]) -> str:
    import mlflow
    from mlflow.entities import LoggedModelOutput

    model = mlflow.create_external_model(event["name"], source_run_id=run_id, tags=tags, experiment_id=store.experiment_id)
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    if path is not None:  # tokenizer and config, without the weights; of an adapter all
        with tempfile.TemporaryDirectory() as folder:
            for file in path.iterdir():
                weights, size = file.suffix in (".safetensors", ".bin", ".pt"), file.stat().st_size
                if file.is_file() and (size <= LARGEST if file.name == ADAPTER_WEIGHTS else not weights and size <= SMALL):
                    (Path(folder) / file.name).write_bytes(file.read_bytes())
            store.client.log_model_artifacts(model.model_id, folder)
    return str(model.model_id)


def _register(store: Store, event: Event, run_id: str, model_id: str, tags: dict[str, str]) -> int:
    from mlflow.exceptions import MlflowException

    client, name = store.client, event["register"]
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="Policies trained by grape; see the tag grape.path.")
    what = {"source": f"models:/{model_id}", "run_id": run_id, "tags": tags, "model_id": model_id}
    return int(client.create_model_version(name, await_creation_for=30, **what).version)


def find_version(store: Store, name: str, md5: str, run_id: str | None = None) -> int | None:
    """The newest version of a registered model with these bytes, of one run or of any."""
    versions = store.client.search_model_versions(f"name = '{name}'", max_results=1000)
    found = [int(v.version) for v in versions if v.tags.get("grape.digest") == md5 and (run_id is None or v.run_id == run_id)]
    return max(found, default=None)


def find_model(store: Store, md5: str) -> str | None:
    """The newest logged model of these bytes, whichever run logged it; None: the store never saw it."""
    newest, wanted = [{"field_name": "creation_timestamp", "ascending": False}], f"tags.`grape.digest` = '{md5}'"
    found = store.client.search_logged_models([store.experiment_id], wanted, max_results=1, order_by=newest)
    return str(found[0].model_id) if found else None


def champion_event(project: Project, candidates: Iterable[Candidate]) -> dict[str, Any] | None:
    """Which policy is to become champion, and its bytes; None when none beats SFT."""
    winner = best(candidates)
    if winner is None:
        return None
    path = f"models/policy/{winner.name}"
    return {"candidate": asdict(winner), "path": path, "digest": digest.tracked(project, path)}


def move_champion(store: Store, project: Project, run_id: str, event: Event) -> int | None:
    """Point `champion` at the version with these bytes; log and register it first if the store never saw it."""
    version = find_version(store, POLICY, event["digest"])
    if version is None and (project.root / event["path"]).is_dir():
        name = event["candidate"]["name"]
        version = log_model(store, project, run_id, model_event(project, event["path"], name, POLICY))
    if version is None:
        logger.warning("champion not moved: %s is neither in MLflow's registry nor on disk", event["path"])
        return None
    store.client.set_registered_model_alias(POLICY, CHAMPION, str(version))
    store.client.set_tag(run_id, "grape.champion", f"{event['candidate']['name']} (version {version})")
    return version
