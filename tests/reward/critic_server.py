"""An OpenAI-compatible server on this machine that answers, or misbehaves, as a test's script says."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from grape.reward.critics.calibration import Calibration
from grape.reward.critics.openai import ServerCritic
from grape.reward.critics.transport import Endpoint
from grape.reward.verdict import Question, Verdicts

KEY = "sk-test-0123456789-never-to-be-seen"


@dataclass(frozen=True)
class Reply:
    """What goes over the wire. cut: the connection ends before the whole body; drop: before anything; parts: the body in pieces."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    drop: bool = False
    parts: Sequence[bytes] = ()

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def chat(content: Any, finish: str = "stop") -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": content}
    return Reply({"choices": [{"message": message, "finish_reason": finish}], "usage": {"total_tokens": 7}})


def key_of(body: Any) -> str:
    """The key the judge is told to copy: it stands behind all that others wrote."""
    return re.findall(r'"key": "([0-9a-f]{16})"', body["messages"][-1]["content"])[-1]


def answer_of(body: Any) -> str:
    """What stands inside the fence."""
    tag = f"answer_{key_of(body)}"
    _, _, rest = body["messages"][-1]["content"].partition(f"<{tag}>\n")
    return rest.partition(f"\n</{tag}>")[0]


def verdict(body: Any, score: Any = 0.25, confidence: Any = 0.5, **more: Any) -> str:
    return json.dumps({"reason": "my own", "score": score, "confidence": confidence, "key": key_of(body), **more})


def honest(body: Any, _: int = 0) -> Reply:
    return chat(verdict(body))


def by_length(body: Any, _: int = 0) -> Reply:
    return chat(verdict(body, score=len(answer_of(body)) / 100))


def questions(*responses: str, **more: Any) -> list[Question]:
    return [Question("Is it polite?", "Ask for tea.", response, **more) for response in responses]


def names(count: int) -> list[str]:
    return ["courtesy/polite"] * count


def judged(critic: ServerCritic, *responses: str) -> Verdicts:
    return critic.judge(names(len(responses)), questions(*responses))


Script = Callable[[Any, int], Reply]


class JudgeServer:
    """script(body, number of the request) -> Reply, called in a thread per connection. Use it with `with`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.now, self.peak = 0, 0
        self.lock, self.released = threading.Lock(), threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                owner.errors.append(sys.exc_info()[1])

        self.errors: list[BaseException | None] = []
        self.http = Server(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            number = len(self.bodies)
            self.now += 1
            self.peak = max(self.peak, self.now)
        try:
            assert handler.path == "/v1/chat/completions"
            reply = self.script(body, number)
        finally:
            with self.lock:
                self.now -= 1
        try:
            self.send(handler, reply)
        except OSError:  # the client hung up: it waited no longer
            handler.close_connection = True

    def send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.drop:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        length = sum(map(len, reply.parts)) if reply.parts else len(reply.data) + (100 if reply.cut else 0)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for part in reply.parts or [reply.data]:
            handler.wfile.write(part)
            handler.wfile.flush()
        handler.close_connection = reply.cut

    def hang(self) -> Reply:
        """Nothing until the test is over."""
        self.released.wait(20)
        return Reply(drop=True)

    def __enter__(self) -> JudgeServer:
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
        # A client that hangs up is what tests want; a script that fails is not.
        assert not [error for error in self.errors if not isinstance(error, OSError)], self.errors


class Bench:
    """A server and critics that ask it; waits are noted, not waited."""

    def __init__(self, script: Script) -> None:
        self.server, self.waits = JudgeServer(script), list[float]()

    def critic(
        self, model: str = "judge", cache: Path | None = None, calibration: Calibration | None = None,
        temperature: float = 0.0, certainty: Any = "margin", extra: Any = None, scoring: Any = "graded", **server: Any,
    ) -> ServerCritic:  # fmt: skip
        return ServerCritic(
            Endpoint(self.server.url, **server), model, calibration, cache, temperature=temperature,
            certainty=certainty, extra=extra, scoring=scoring, sleep=self.waits.append,
        )  # fmt: skip


@contextmanager
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], Bench]]:
    """Servers that end with the test, a key in the environment, and no proxy of the caller's."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as running:

        def start(script: Script) -> Bench:
            made = Bench(script)
            running.enter_context(made.server)
            return made

        yield start
