"""One JSON request to a server that may be slow, busy, broken or gone, and an exchange of many that gives up when it is gone.

The only place where the key is known. It is read from the environment for each request, and replaced in all that a server sends.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from grape.errors import GrapeError
from grape.net import is_loopback
from grape.randomness import generator

AGAIN = frozenset({408, 409, 425, 429})  # worth another attempt, as is every 5xx
REFUSED = frozenset({400, 413, 422})  # this request, which says nothing about the next one
SECRET = 8  # characters; a shorter key is a placeholder such as EMPTY, and would be found where it is none
LARGEST_BODY = 4 * 2**20  # bytes


class Failure(Exception):
    """A request that gave no answer. reason: why, without anything secret. again: another attempt may succeed. wait: seconds the
    server asked for. own: it is this request's own fault."""

    def __init__(self, reason: str, again: bool, wait: float = 0.0, own: bool = False) -> None:
        self.reason, self.again, self.wait, self.own = reason, again, wait, own
        super().__init__(reason)


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently. None of it changes an answer but `url`.

    Attributes:
        url: up to and including the version, e.g. http://127.0.0.1:8000/v1. key: the environment variable that holds the key.
        timeout: seconds for one attempt as a whole. attempts: per request. concurrency: requests at a time.
        pause: seconds before the second attempt, doubled for each further one. longest: seconds between two attempts at most; a
            server that asks for more is not asked again. patience: judgements in a row that fail before the exchange gives up.
    """

    url: str
    key: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    attempts: int = 5
    concurrency: int = 8
    pause: float = 0.5
    longest: float = 60.0
    patience: int = 16

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:  # a port that is none, a bracket that is not closed
            wrong = True
        secret = "@" in self.url or "?" in self.url
        if wrong or secret or not self.url.isprintable() or " " in self.url:
            what = "the address holds a user, a password or a query" if secret else f"not a server's address: {self.url!r}"
            mend = f"write it like http://127.0.0.1:8000/v1, and put the key into the environment as {self.key}"
            raise GrapeError(what, where="critic, url", mend=mend)

    def secret(self) -> str:
        """The key; "": there is none. Raises GrapeError: it cannot be sent as it is."""
        key = os.environ.get(self.key, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            what = f"the key in ${self.key} holds spaces or characters that cannot be sent"
            raise GrapeError(what, where="environment", mend="set it anew")
        return key


class Exchange:
    """The requests of one batch: use it with `with`. Threads may share it. sleep: waits so many seconds; default: until then or
    until the exchange ends. clock: seconds, monotonic."""

    def __init__(
        self, endpoint: Endpoint, sleep: Callable[[float], object] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.endpoint, self.clock = endpoint, clock
        self.over = threading.Event()
        self.sleep = sleep or self.over.wait
        self.counts: Counter[str] = Counter()
        self._failed, self._gave_up, self._lock = 0, "", threading.Lock()

    def __enter__(self) -> Exchange:
        limits = httpx.Limits(max_connections=self.endpoint.concurrency)
        # Whatever the environment says, a proxy is not asked for this machine.
        proxies = not is_loopback(self.endpoint.url)
        self.client = httpx.Client(timeout=self.endpoint.timeout, limits=limits, verify=_certificates(), trust_env=proxies)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.client.close()

    def count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self.counts[name] += by

    def post(self, path: str, body: Mapping[str, object], *spread: object) -> dict[str, Any]:
        """The JSON object that the server answers with. spread: what the request is for, so that attempts do not come in step.
        Raises Failure: it could not be had; `reason` says why."""
        attempt, last = 0, Failure(self._gave_up, again=False)
        while not self._gave_up and not self.over.is_set():
            attempt += 1
            self.count("requests")
            try:
                answer = self._once(path, body)
            except Failure as failure:
                last = failure
            else:
                self._note("")
                return answer
            wait = self._wait(last, attempt, *spread)
            if not last.again or attempt == self.endpoint.attempts or wait > self.endpoint.longest:
                break
            self.count("retries")
            self.sleep(wait)
        reason = last.reason + (f" (attempt {attempt})" if attempt > 1 else "")
        if last.wait > self.endpoint.longest:
            reason += f"; the server asks for {last.wait:g} s, more than the {self.endpoint.longest:g} s that we wait"
        if not last.own:
            self._note(reason)
        raise Failure(reason or "the exchange was ended", again=False) from None

    def _note(self, reason: str) -> None:
        """Count failures in a row: a server that is gone must not cost every judgement all of its attempts."""
        with self._lock:
            self._failed = self._failed + 1 if reason else 0
            if self._failed >= self.endpoint.patience and not self._gave_up:
                self._gave_up = f"not asked, since {self._failed} judgements in a row had failed; the last: {reason}"

    def _wait(self, failure: Failure, attempt: int, *spread: object) -> float:
        """Seconds: what the server asked for or the doubled pause, and up to half of the pause more, never less."""
        pause = min(self.endpoint.pause * 2.0 ** (attempt - 1), self.endpoint.longest / 2)
        jitter = float(generator("back-off", attempt, *spread).random()) * pause / 2
        return max(failure.wait, pause) + jitter

    def _once(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        key = self.endpoint.secret()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        end = self.clock() + self.endpoint.timeout
        try:
            with self.client.stream("POST", self.endpoint.url.rstrip("/") + path, json=body, headers=headers) as response:
                text = self._read(response, end)
        except httpx.TimeoutException:
            raise Failure(f"no answer within {self.endpoint.timeout:g} s", again=True) from None
        except httpx.RequestError as error:
            raise Failure(_without(key, f"{type(error).__name__}: {error}"), again=True) from None
        text = _without(key, text)
        if response.status_code != 200:
            status, excerpt = response.status_code, " ".join(text.split())[:200]
            again = status in AGAIN or status >= 500
            raise Failure(f"HTTP {status}: {excerpt}", again, _retry_after(response.headers), own=status in REFUSED)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Failure("the body is not a JSON object", again=True)
        return answer

    def _read(self, response: httpx.Response, end: float) -> str:
        """The whole body. httpx limits the wait for each part alone, so a server that drips would hold us for ever."""
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > LARGEST_BODY:
                raise Failure(f"the body is larger than {LARGEST_BODY} bytes", again=True)
            if self.clock() > end:
                raise Failure(f"no whole answer within {self.endpoint.timeout:g} s", again=True)
        return b"".join(parts).decode("utf-8", "replace")


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to believe, read once: reading takes longer than many a request."""
    return httpx.create_ssl_context()


def _without(key: str, text: str) -> str:
    return text.replace(key, "[key]") if len(key) >= SECRET else text


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the server asks us to wait, from `Retry-After` as seconds or as a date; 0 where it does not, or not legibly."""
    given = headers.get("retry-after", "").strip()
    for seconds in (float, lambda date: (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()):
        with suppress(ValueError, TypeError):
            return max(0.0, seconds(given))
    return 0.0
