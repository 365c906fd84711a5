"""`grape ui`: MLflow's own UI on this project's store, for this machine only."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable

from grape import net
from grape.dvc import environment
from grape.errors import GrapeError
from grape.pipeline import execute
from grape.project import Project
from grape.track.store import checked_uri


def serve(project: Project, port: int | None, say: Callable[[str], None]) -> int:
    """Serve until interrupted; the exit code.

    Raises:
        GrapeError: the port is taken, or the server does not start.
    """
    project.enter()
    uri = checked_uri(project)
    if uri.startswith(("http://", "https://")):
        say(f"the runs of this project are on the server MLFLOW_TRACKING_URI names: {net.public(uri)}")
        return 0
    port = _checked(port) if port else net.free_port()
    log = project.state / "logs" / "mlflow-ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    options = f"--host 127.0.0.1 --port {port} --workers 1 --artifacts-destination".split()
    command = [sys.executable, "-m", "mlflow", "server", *options, project.artifacts]
    # The store goes by the environment: a command, which may hold a database's password, is there for every user to see.
    env = environment(project, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": uri})
    with log.open("w", encoding="utf-8") as file:
        process = execute.start(command, 5, cwd=project.root, env=env, stdout=file)
    try:
        say(f"MLflow is starting on http://127.0.0.1:{port}")
        _wait(process, port, log.relative_to(project.root).as_posix())
        say("ready; Ctrl-C ends it")
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        execute.stop(process)
        log.write_text(net.scrub(log.read_text(encoding="utf-8", errors="replace")), encoding="utf-8")


def _checked(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            mend = "choose another, or leave --port out to get a free one"
            raise GrapeError(f"port {port} cannot be used: {error.strerror}", where="--port", mend=mend) from error
    return port


def _wait(process: subprocess.Popen[bytes], port: int, log: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            with net.open_url(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise GrapeError("the MLflow UI did not start", where=log, mend="see that log; `grape doctor` looks for the cause")
