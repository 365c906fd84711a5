"""Prefect's own server for the time of one run: started early (it takes seconds), ended with us, however we end.

Prefect would start one by itself, but only once the flow begins, and would leave it behind when we are killed. Nothing
here imports prefect, so that the start costs this process nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time

from grape import dvc, net
from grape.errors import GrapeError
from grape.pipeline import execute
from grape.pipeline.schedule import Threads, Work
from grape.project import Project

START_SECONDS = 120  # a first start makes its database: 13 s on a quiet machine, far more on a busy one


class Server:
    """`start()` returns at once; `wait()` returns the URL when it answers; `stop()` always ends it.

    A server of the user's (PREFECT_API_URL) is only waited for: not `own`, and never started nor ended.

    Raises:
        GrapeError: PREFECT_API_URL is not the address of one.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._process: subprocess.Popen[bytes] | None = None
        self.url = net.prefect_api()
        self.own = not self.url
        self._log = project.state / "logs" / "prefect.log"

    def start(self) -> None:
        port = net.free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        options = f"--host 127.0.0.1 --port {port} --no-ui --no-scheduler --no-late-runs --analytics-off"
        serve = [sys.executable, *"-m prefect server start".split(), *options.split()]
        with self._log.open("w", encoding="utf-8") as log:
            self._process = execute.start(serve, 3, cwd=self._project.root, env=dvc.environment(self._project), stdout=log)

    def wait(self) -> str:
        """Its address once it answers; GrapeError where it does not."""
        until, why = time.monotonic() + (START_SECONDS if self.own else 3), ""
        while time.monotonic() < until:
            if self._process and self._process.poll() is not None:
                break
            try:
                net.prefect_health(self.url)
                return self.url
            except OSError as error:
                why = str(getattr(error, "reason", error))
                time.sleep(0.1)
        if self.own:
            where = str(self._log.relative_to(self._project.root))
            mend = "see that log, or run with `--engine dvc`, which does without Prefect"
            raise GrapeError("Prefect's server did not start", where=where, mend=mend)
        mend = "start it, unset the variable, or run with `--engine dvc`"
        raise GrapeError(f"Prefect's server does not answer: {why}", where=f"PREFECT_API_URL={self.url}", mend=mend)

    def stop(self) -> None:
        if self._process:
            execute.stop(self._process)
            self._process = None


class PrefectEngine:
    """`--engine prefect`: the work as a flow, on the user's server or one for the time of the run."""

    def __init__(self) -> None:
        self._server: Server | None = None

    def prepare(self, project: Project) -> None:
        self._server = Server(project)
        if self._server.own:
            self._server.start()
        else:
            self._server.wait()

    def __call__(self, work: Work) -> None:
        assert self._server is not None
        try:
            url = self._server.wait()
        except GrapeError as error:
            work.executor.screen.say(f"{error}\nrunning the stages without Prefect")
            Threads()(work)
            return
        from flows.pipeline import run_prefect

        try:
            run_prefect(work, url, self._server.own)
        except Exception as error:  # boundary: whatever Prefect raises when its server is gone; DVC does not need it
            if work.executor.interrupted:
                raise KeyboardInterrupt from error
            work.executor.resume()
            if work.graph.needs.keys() - work.executor.outcomes.keys():
                work.executor.screen.say(net.scrub(f"Prefect failed ({type(error).__name__}: {error}); going on without it"))
                Threads()(work)

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
