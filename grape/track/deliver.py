"""From a spool to MLflow: make the run, apply the events in order, remember how far we came.

Applying an event twice changes nothing: metrics carry the time they were made and MLflow keys them by it, datasets are
keyed by name and digest, artifacts by name, models are looked up first. So a kill between applying and acknowledging
costs nothing on replay.
"""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from grape.errors import GrapeError
from grape.net import public, scrub
from grape.project import Project
from grape.track import registry
from grape.track.identity import flatten, metric_key
from grape.track.spool import Delivered, Event, Spool
from grape.track.store import Store, Unreachable, answers, connect

logger = logging.getLogger("grape.track")
BATCH = 1000  # MLflow's limit of metrics per request
PARAMS = 100  # and of parameters


class Delivery:
    """Delivers one spool. Not thread-safe: one owner at a time."""

    def __init__(self, project: Project, spool: Spool) -> None:
        self.project, self.spool = project, spool
        self._store: Store | None = None
        self._state = spool.delivered
        self._refused: list[str] = []

    @property
    def run_id(self) -> str | None:
        return self._state.run_id if self._state else None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = connect(self.project)
        return self._store

    def pump(self) -> None:
        """Deliver whatever the spool holds by now.

        Raises:
            Unreachable: the store does not answer, or the spool's disk is full; what it has not got stays in the spool.
        """
        try:
            self._pump()
        except Unreachable:
            self._store = None  # connect anew, and so ask first whether it answers
            raise
        except OSError as error:  # of the spool itself: how far we are cannot be noted, so it is told once more later
            raise Unreachable(f"{self.spool.folder.name}: {error}") from error

    def _pump(self) -> None:
        state = self._begin()
        for kind, group in itertools.groupby(self.spool.events(state.offset), key=lambda pair: pair[0]["kind"]):
            for chunk in _chunks(list(group), BATCH if kind == "metrics" else 1):
                self._guarded(kind, [event for event, _ in chunk])
                assert self._state is not None
                self._state = replace(self._state, offset=chunk[-1][1])
                self.spool.acknowledge(self._state)

    def _begin(self) -> Delivered:
        """The run in the store we talk to now, made unless it is there."""
        name = public(self.project.tracking_uri)
        if self._state is None or self._state.store != name or not self._known(self._state.run_id):
            self._state = Delivered(name, self._guard(self._find_or_create))
            self.spool.acknowledge(self._state)
        return self._state

    def _known(self, run_id: str) -> bool:
        if self._store is not None:
            return True  # asked when this delivery connected
        store = self.store
        try:
            store.client.get_run(run_id)
        except Exception:  # MLflow has one exception for all; a run that cannot be had is made anew
            return not answers(store)
        return True

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (Unreachable, GrapeError):
            raise
        except Exception as error:  # boundary: whatever MLflow raises must not reach training
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"{public(self.project.tracking_uri)}: {scrub(str(error))}")

    def _guarded(self, kind: str, events: list[Event]) -> None:
        """Apply events; one that a store in good health refuses is dropped with a warning, not tried for ever."""
        try:
            getattr(self, f"_{kind}")(*events)
        except Exception as error:  # boundary: whatever MLflow raises must not reach training
            if not answers(self.store):
                raise self._unreachable(error) from error
            logger.warning("%s: MLflow refused %s: %s", self.spool.meta["stage"], kind, scrub(str(error)))
            self._refused.append(kind)

    def _find_or_create(self) -> str:
        from mlflow.entities import Param

        meta, client = self.spool.meta, self.store.client
        if found := self._tagged(f"tags.`grape.spool` = '{self.spool.name}'"):
            return found
        tags, parent = {**meta["tags"], "grape.spool": self.spool.name}, meta["parent_run"]
        if not parent and meta["nonce"] is not None and meta["kind"] != "pipeline":  # MLflow was away when the parent began
            parent = self._tagged(f"tags.`grape.nonce` = '{meta['nonce']}' AND tags.`grape.kind` = 'pipeline'")
        if parent:
            tags["mlflow.parentRunId"] = parent
        made = client.create_run(self.store.experiment_id, start_time=meta["started_ms"], tags=tags, run_name=meta["stage"])
        for params in _chunks([Param(key, value) for key, value in flatten(meta["params"]).items()], PARAMS):
            client.log_batch(made.info.run_id, params=params)
        return str(made.info.run_id)

    def _tagged(self, wanted: str) -> str | None:
        """The run with these tags, if there is one."""
        found = self.store.client.search_runs([self.store.experiment_id], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    # One method per kind of event; only metrics come several at a time.

    def _metrics(self, *events: Event) -> None:
        from mlflow.entities import Metric

        values = ((event, name, value) for event in events for name, value in event["values"].items())
        metrics = [
            Metric(metric_key(name), value, event["ms"], event["step"], **event.get("of", {})) for event, name, value in values
        ]
        for chunk in _chunks(metrics, BATCH):
            self.store.client.log_batch(self.run_id, metrics=chunk)

    def _headline(self, event: Event) -> None:
        """Of a model and a data set, where it says so: MLflow then shows the numbers on the model's page."""
        on = event.get("dataset")
        of = {"dataset_name": on["path"], "dataset_digest": on["digest"]} if on else {}
        if "model" in event:
            of["model_id"] = registry.find_model(self.store, event["model"]["digest"])
        self._metrics({**event, "step": 0, "of": of})

    def _tags(self, event: Event) -> None:
        for name, value in event["values"].items():
            self.store.client.set_tag(self.run_id, metric_key(name), value)

    def _dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        path, md5 = event["path"], event["digest"]
        dataset = Dataset(name=path, digest=md5, source_type="dvc", source=json.dumps({"path": path, "md5": md5}))
        used = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", event["context"])])
        self.store.client.log_inputs(self.run_id, datasets=[used])

    def _artifact(self, event: Event) -> None:
        self.store.client.log_artifact(self.run_id, str(self.spool.folder / "files" / event["file"]), event["folder"])

    def _model(self, event: Event) -> None:
        version = registry.log_model(self.store, self.project, str(self.run_id), event)
        if version is not None and self._state is not None:
            self._state = replace(self._state, version=version)

    def _champion(self, event: Event) -> None:
        registry.move_champion(self.store, self.project, str(self.run_id), event)

    def _end(self, event: Event) -> None:
        client = self.store.client
        if self._refused:
            client.set_tag(self.run_id, "grape.refused", ", ".join(sorted(set(self._refused))))
        if text := event.get("text"):  # what stopped the stage, for the run's artifacts
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "error.txt"
                path.write_text(text, encoding="utf-8")
                client.log_artifact(self.run_id, str(path))
        client.set_terminated(self.run_id, event["status"], event["ms"])


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
