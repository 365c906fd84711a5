"""`transformers serve` on this machine, with one model, for the time of a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx

from grape.net import free_port
from grape.pipeline.guard import command as guarded

NEEDED = ("accelerate", "fastapi", "openai", "uvicorn")
START_SECONDS = 300  # it imports torch, and other tests may run beside


def missing() -> list[str]:
    """The packages that the server lacks."""
    return [name for name in NEEDED if find_spec(name) is None]


class RealServer:
    """Serves the model of a folder, under the folder's path as its name. It ends with this process, however that ends.

    Args:
        state: a folder for its log and for what it would keep in the home directory.
    """

    def __init__(self, model: Path, state: Path) -> None:
        self.model, self.state, self.log = str(model), state, state / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Starts it unless it runs, and waits until it answers."""
        if self.process is not None:
            return
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        words = ["serve", self.model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HOME": str(self.state), "OMP_NUM_THREADS": "1"}
        self.state.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                guarded([sys.executable, "-m", "transformers.cli.transformers", *words], grace=0),
                env={**os.environ, **quiet},
                start_new_session=True, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        assert self.process is not None
        with httpx.Client(trust_env=False) as client:
            while self.process.poll() is None and time.monotonic() < until:
                try:
                    if client.get(self.url.removesuffix("/v1") + "/health").status_code == 200:
                        return
                except httpx.TransportError:
                    time.sleep(0.1)
        self.kill()
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """Ends it and all it started at once, whatever it is doing."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()  # its guard does the rest
            self.process.wait()
            self.process = None

    def requests(self) -> int:
        """How many completions it was asked for since it started, by its own log."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1"')
