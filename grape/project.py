"""Where a project lives on disk, and the environment every process that works in it gets.

A project is a folder with `params.yaml` and `dvc.yaml`. All state that is not an artifact (MLflow's database, Prefect's
home, logs, checkpoints, caches of libraries) lives in its `.grape/` folder, so that nothing outside is ever written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from grape import disk, net
from grape.errors import GrapeError

# Set for us by the orchestrator, read by the stages. Never MLFLOW_RUN_ID: that would leak into nested processes.
PARENT_RUN = "GRAPE_PARENT_RUN"
NONCE = "GRAPE_NONCE"


@dataclass(frozen=True)
class Project:
    """Paths of one project; `root` is absolute."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """The project that holds `start` (default: the working directory), searching upwards."""
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            files = [folder / name for name in ("params.yaml", "dvc.yaml")]
            if all(file.is_file() for file in files):
                return cls(folder)
            if all(file.exists() for file in files):
                where = ", ".join([str(folder), *(file.name for file in files if not file.is_file())])
                mend = "move it away and restore the file from git or from `grape init`"
                raise GrapeError("a folder stands where a file should", where=where, mend=mend)
        what = "no grape project here: neither this folder nor one above it has params.yaml and dvc.yaml"
        raise GrapeError(what, where=str(here), mend="go to your project's folder, or make one with `grape init DIR`")

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def state(self) -> Path:
        return self.root / ".grape"

    @property
    def checkpoints(self) -> Path:
        return self.state / "checkpoints"

    def receipt(self, stage: str) -> Path:
        return self.root / "reports" / "receipts" / f"{stage}.json"

    @property
    def tracking_uri(self) -> str:
        """MLflow's store: the user's MLFLOW_TRACKING_URI, else the project's own."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.own_store

    @property
    def own_store(self) -> str:
        """A sqlite file of the project (absolute: MLflow resolves a relative path against the working directory)."""
        path = self.state / "mlflow.db"
        # With the driver named, MLflow does not make a folder of the path's quoted name.
        return sqlite_address("sqlite+pysqlite" if set("%?") & set(str(path)) else "sqlite", path)

    @property
    def artifacts(self) -> str:
        """Where MLflow keeps the artifacts of its own store. As an address where it would take the path for one."""
        folder = self.state / "mlartifacts"
        return folder.as_uri() if set("%?#") & set(str(folder)) else str(folder)

    def environment(self) -> dict[str, str]:
        """Variables that keep every library inside the project folder and off the network.

        A variable the user has set already wins, except where it would leak one run into another.
        """
        state = self.state
        defaults = {
            "DVC_NO_ANALYTICS": "1",
            # DVC's database library puts variables into an absolute path; DVC itself is always started in the project.
            "DVC_SITE_CACHE_DIR": str(state / "dvc") if "$" not in str(state) else ".grape/dvc",
            "DVC_STUDIO_OFFLINE": "1",
            "DO_NOT_TRACK": "true",  # MLflow ignores "1"
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "PREFECT_HOME": str(state / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the orchestrator tells the same, once, and keeps its own logs
            "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
            "PREFECT_CLIENT_MAX_RETRIES": "2",  # with the default 5 a lost server holds the end of a run up for 75 s
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DATASETS_CACHE": str(state / "datasets"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",  # a bar per file and stage, some hundred lines of a log
            "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MPLCONFIGDIR": str(state / "matplotlib"),
            "TMPDIR": str(state / "tmp" / str(os.getpid())),  # whose it was is known when it is dead
            "GIT_TERMINAL_PROMPT": "0",
            # Waiting threads sleep. Spinning ones starve each other as soon as anything else wants a core: then a step takes
            # several times as long (benchmarks/threads.py).
            "OMP_WAIT_POLICY": "PASSIVE",
            # Tensors above 2 MB in large pages: Linux hands memory out zeroed, page by page, and with pages of 4 kB that was two
            # thirds of a softmax over 512 x 49152 numbers, and a tenth of an update of SmolLM2-135M.
            "THP_MEM_ALLOC_ENABLE": "1",
        }
        if set("%?") & set(str(state)) and not any("DATABASE" in name for name in os.environ if name.startswith("PREFECT_")):
            defaults["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = sqlite_address(
                "sqlite+aiosqlite", state / "prefect" / "prefect.db"
            )
        direct = dict.fromkeys(("NO_PROXY", "no_proxy"), net.no_proxy())
        return {name: os.environ.get(name) or value for name, value in defaults.items()} | direct

    def enter(self) -> None:
        """Apply `environment()` to this process and make the folders it names.

        Raises:
            GrapeError: a folder cannot be made.
        """
        variables = self.environment()
        try:
            for name in ("dvc", "matplotlib", "checkpoints"):
                (self.state / name).mkdir(parents=True, exist_ok=True)
            if Path(variables["TMPDIR"]).is_relative_to(self.state):
                Path(variables["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk.refusal(error, self.root) or error from error
        os.environ.update(variables)
        os.environ.pop("MLFLOW_RUN_ID", None)


def sqlite_address(driver: str, path: Path) -> str:
    """SQLAlchemy's address of a database file; a `?` or `%` of the path is the path's."""
    return f"{driver}:///{quote(str(path), safe='/') if set('%?') & set(str(path)) else path}"
