"""A vLLM server in a process and a Python environment of its own, for the time of a run.

It listens on 127.0.0.1 alone, on a free port. Weights are loaded anew through vLLM's development endpoints, which ask for no
password: whoever may open that port on this machine may ask the server anything while it runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

import grape
from grape.errors import GrapeError
from grape.net import free_port, scrub

VARIABLE = "GRAPE_VLLM"  # the path of `vllm` in its environment: a fact of the machine, so never in params.yaml
START_SECONDS = 600.0  # importing alone takes most of a minute on a CPU; a large model is read from the disk besides
REQUEST_SECONDS = 3600.0  # a round of a large model on a CPU takes minutes
GRACE = 10.0  # seconds before each harder signal
TAIL = 8  # lines of its log in a message
LOOK = 400  # lines that are looked through for what went wrong first
PORTS = 3  # tries, where somebody takes the port between our look and its start
TAKEN = "Address already in use"
SHORT = ("out of memory", "Available memory on node", "No available memory for the cache blocks", "larger than the available KV")
CAUSE = re.compile(r"\b\w+(Error|Exception): ")
EFFECTS = ("EngineDeadError", "Tokenizer not available")  # of the other processes; of its warm-up, since it gets ids alone
# What would make its environment another one, or is nobody's business there.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def executable() -> Path:
    """The `vllm` that GRAPE_VLLM names.

    Raises:
        GrapeError: it names none, or nothing that can be run.
    """
    given, mend = os.environ.get(VARIABLE, ""), "see docs/sampling.md, vLLM; or set rl.engine: grape"
    if not given:
        what = f"rl.engine: vllm needs the path of vLLM's program, and {VARIABLE} is not set in the environment"
        raise GrapeError(what, where="params.yaml, rl.engine", mend=mend)
    path = Path(given).expanduser()
    if not path.is_file() or not os.access(path, os.X_OK):
        what = "no such file" if not path.exists() else "this cannot be run" if path.is_file() else "this is no file"
        raise GrapeError(what, where=f"{VARIABLE}={given}", mend=mend)
    return path.absolute()


class VllmServer:
    """Serves the model of a folder; `with` starts it and ends it, whatever happens in between. It ends with this process too,
    however that ends.

    Args:
        folder: config and weights. place: for its sockets and caches. log: what it prints. positions: longest row, tokens.
        cache_bytes: for keys and values. eager: nothing is compiled; on a CPU compiled code would keep the weights it was made for.
    """

    def __init__(self, folder: Path, place: Path, log: Path, dtype: str, positions: int, cache_bytes: int, eager: bool) -> None:
        self.folder, self.place, self.log = folder, place, log
        self.options = ["--dtype", dtype, "--max-model-len", str(positions), "--kv-cache-memory-bytes", str(cache_bytes)]
        self.options += ["--enforce-eager"] if eager else []
        self.name, self.url, self.version = f"grape-{uuid.uuid4().hex}", "", ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> VllmServer:
        self.client = httpx.Client(timeout=httpx.Timeout(REQUEST_SECONDS, connect=10), trust_env=False)
        try:
            for attempt in range(PORTS):
                self._start()
                if self._answers(again=attempt + 1 < PORTS):
                    self.version = str(self.get("/version").get("version", ""))
                    return self
                self._end()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        raise AssertionError("the last try answers or raises")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        self.client.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def _start(self) -> None:
        program, port = executable(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = [
            str(program), "serve", str(self.folder.absolute()), "--host", "127.0.0.1", "--port", str(port),
            "--served-model-name", self.name, "--skip-tokenizer-init", "--generation-config", "vllm",
            "--logprobs-mode", "processed_logprobs", "--disable-uvicorn-access-log", *self.options,
        ]  # fmt: skip
        # The guard of the orchestrator, as a program: it ends the server and all it started when our end of its stdin is closed,
        # by us or by the kernel.
        guard = Path(grape.__file__).parent / "pipeline" / "guard.py"
        self.place.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(guard), str(GRACE), *words],
                cwd=self.place, env=self._environment(), start_new_session=True,
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        threads = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # else it binds itself to the cores that training is on
        ours = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # for /collective_rpc and /reset_prefix_cache
            "VLLM_RPC_BASE_PATH": ".",  # of its sockets, in its working directory: a whole path may be too long for one
            "VLLM_CONFIG_ROOT": str(self.place / "config"),
        }
        caches = {
            name: str(self.log.parent.parent / "vllm-cache" / name.lower())
            for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")
        }
        return threads | inherited | caches | ours

    def _answers(self, again: bool) -> bool:
        """True once it is this server that answers; False: the port was taken, and another may be tried."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.dead:
                if again and TAKEN in self._last(LOOK):
                    return False
                raise self.failed("the vLLM server did not start")
            try:  # by its name, which no other program at this port has
                found = self.client.get(f"{self.url}/v1/models", timeout=5).json()
                if any(model.get("id") == self.name for model in found["data"]):
                    return True
            except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
                pass
            time.sleep(0.2)
        raise self.failed(f"the vLLM server did not answer within {START_SECONDS:g} s")

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _end(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What it answers to a request that is not for tokens. GrapeError: it does not, or says no."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self.client.request(method, self.url + path, json=body)
            return self.said(response)
        except httpx.HTTPError as error:
            raise self.lost(error) from error

    def said(self, response: httpx.Response) -> dict[str, Any]:
        """The JSON object of a response. Raises GrapeError: an error, or none."""
        try:
            found = response.json() if response.content else {}
        except ValueError:
            found = None
        if response.status_code != 200 or not isinstance(found, dict):
            excerpt = " ".join(response.text.split())[:300]
            raise self.failed(f"the vLLM server answered HTTP {response.status_code} to {response.url.path}: {excerpt}")
        return found

    def lost(self, error: httpx.HTTPError) -> GrapeError:
        """The message for a request that has no answer."""
        until = time.monotonic() + GRACE  # the guard ends what is left of a group first
        while not self.dead and time.monotonic() < until:
            time.sleep(0.1)
        if self.dead:
            return self.failed("the vLLM server ended in mid-run")
        return self.failed(f"the vLLM server does not answer ({type(error).__name__}: {error})")

    def failed(self, what: str) -> GrapeError:
        last = self._last(LOOK)
        mend = "see that log; the run goes on from its last checkpoint when it is started again"
        if any(word in last for word in SHORT):
            mend = "too little memory: lower rl.prompts, rl.samples or model.positions, or set model.dtype: bfloat16"
        causes = [line for line in last.splitlines() if CAUSE.search(line) and not any(word in line for word in EFFECTS)]
        shown = "\n     ".join(scrub("\n".join([*causes[:1], *last.splitlines()[-TAIL:]])).splitlines())
        return GrapeError(f"{what}; its log says:\n     {shown}", where=str(self.log), mend=mend)

    def _last(self, lines: int) -> str:
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""
