"""The way to MLflow: is it there, and if so a client and the experiment `grape`.

`import mlflow` takes about 2 s and opening the sqlite store 1 s more, so nothing here imports it before it is needed,
and a server that does not answer is found out by a small request first.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from filelock import FileLock

from grape.errors import GrapeError
from grape.net import is_loopback, public, scrub, server
from grape.project import Project

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "grape"
DATABASES = ("postgresql", "mysql", "sqlite", "mssql")  # MLflow's
PROBE_SECONDS = 2.0
QUIET = (
    "MLFLOW_HTTP_REQUEST_TIMEOUT=10 MLFLOW_HTTP_REQUEST_MAX_RETRIES=1 MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR=1 "
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=true "
    "GIT_PYTHON_REFRESH=quiet"
).split()
AWAY = "MLflow cannot be reached; the %s goes on and keeps its records in .grape/runs, `grape mlflow sync` delivers them later (%s)"
# Path columns of MLflow's sqlite schema that hold absolute locations.
LOCATIONS = (
    "experiments.artifact_location runs.artifact_uri logged_models.artifact_location "
    "model_versions.source model_versions.storage_location"
).split()


class Unreachable(Exception):
    """The store does not answer; whatever was to be written stays in the spool."""


@dataclass(frozen=True)
class Store:
    uri: str
    client: MlflowClient
    experiment_id: str

    @contextmanager
    def ambient(self) -> Iterator[None]:
        """For MLflow's functions that take no client and look at the process's environment."""
        before = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        try:
            yield
        finally:
            if before is None:
                del os.environ["MLFLOW_TRACKING_URI"]
            else:
                os.environ["MLFLOW_TRACKING_URI"] = before


def connect(project: Project) -> Store:
    """A client on the project's store, with its database and experiment made if need be.

    Raises:
        Unreachable: the store does not answer.
        GrapeError: the URI names no store that grape can write to.
    """
    uri = checked_uri(project)
    if urlsplit(uri).scheme in ("http", "https"):
        _probe(uri)
    _calm()
    project.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(project.state / "mlflow.lock"):  # first-use migrations of two processes would collide
            return _open(project, uri)
    except Exception as error:  # MLflow lets errors of requests, SQLAlchemy and its own through; all mean: not now
        raise Unreachable(f"{public(uri)}: {scrub(_first_line(error))}") from error


def checked_uri(project: Project) -> str:
    """The project's tracking URI. Nobody is asked.

    Raises:
        GrapeError: it names no store that grape can write to.
    """
    uri = project.tracking_uri
    scheme = uri.partition(":")[0].lower()
    if uri == project.own_store or scheme in {point.name for point in entry_points(group="mlflow.tracking_store")}:
        return uri
    if scheme in ("http", "https"):
        server("MLFLOW_TRACKING_URI", uri, "http://127.0.0.1:5000")
    elif what := _no_database(uri, scheme):
        mend = "unset MLFLOW_TRACKING_URI to use the project's own store, or name a server (http://...) or a database "
        raise GrapeError(what, where=f"MLFLOW_TRACKING_URI={public(uri)}", mend=f"{mend}(sqlite:////absolute/path.db)")
    return uri


def _no_database(uri: str, scheme: str) -> str:
    """Why the URI is not one of a database; "" where it is."""
    if scheme.startswith("databricks") or scheme == "uc":
        return "this is a Databricks workspace, whose experiments are paths of its users; grape cannot write there"
    if scheme == "file" or "://" not in uri:
        return "this is neither a server nor a database, and MLflow no longer writes to a plain folder"
    if scheme.partition("+")[0] not in DATABASES:
        return f"MLflow has no store of the kind {scheme}://"
    from sqlalchemy import exc, make_url

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except ImportError as error:
        return f"the database's driver is not installed ({error})"
    except (exc.ArgumentError, ValueError) as error:  # of a name, a port, a dialect
        return f"this is not a database's address ({scrub(_first_line(error))})"
    if scheme.startswith("sqlite") and url.database in (None, "", ":memory:"):
        return "a database in memory is gone when the run ends"
    return "" if url.host or scheme.startswith("sqlite") else "the address names no host"


def answers(store: Store) -> bool:
    """Whether the store still talks to us, to tell a refused event from a store that went away."""
    try:
        store.client.get_experiment(store.experiment_id)
    except Exception:  # any failure of this smallest request means that it does not
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _probe(uri: str) -> None:
    """Any answer will do: this finds servers that are down and servers that hang, in PROBE_SECONDS."""
    parts = urlsplit(uri)
    host = parts.hostname or "localhost"
    if parts.scheme in getproxies() and not proxy_bypass(host) and not is_loopback(uri):
        return  # only the proxy can tell
    connection = HTTPConnection(host, parts.port, timeout=PROBE_SECONDS)
    if parts.scheme == "https":  # nothing is sent that an impostor may not see, so certificates are MLflow's matter
        connection = HTTPSConnection(host, parts.port, timeout=PROBE_SECONDS, context=ssl._create_unverified_context())
    try:
        connection.request("HEAD", "/health")
        connection.getresponse().read()
    except (OSError, HTTPException) as error:
        raise Unreachable(f"{public(uri)}: {error or 'no answer'}") from error
    finally:
        connection.close()


def _calm() -> None:
    """Short time-outs unless the user set them, and no log lines of MLflow between the stage's own."""
    for setting in QUIET:
        os.environ.setdefault(*setting.split("="))
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"mlflow(\.|$)")
    warnings.filterwarnings("ignore", message=r".*Any type hint is inferred as AnyType")  # said of MLflow's own code


def _open(project: Project, uri: str) -> Store:
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    own, artifacts = uri == project.own_store, project.artifacts
    if own:
        _relocate(project.state / "mlflow.db", artifacts)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return Store(uri, client, client.create_experiment(EXPERIMENT, artifact_location=artifacts if own else None))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return Store(uri, client, experiment.experiment_id)


def _relocate(database: Path, artifacts: str) -> None:
    """MLflow stores absolute locations: a project that was moved or copied would read, or write, the old folder's."""
    if not database.is_file():
        return
    connection = sqlite3.connect(database, timeout=10)
    try:
        with connection:
            present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "experiments" not in present:
                return
            row = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
            if row is None or row[0] is None or row[0] == artifacts:
                return
            for table, column in (place.split(".") for place in LOCATIONS):
                if table in present:
                    move = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} LIKE ? || '/%'"
                    connection.execute(move, (artifacts, len(row[0]) + 1, row[0], row[0]))
    finally:
        connection.close()
