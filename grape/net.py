"""Addresses: which are of this machine, which are none at all, and what of them may be shown."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import ProxyHandler, build_opener

from grape.errors import GrapeError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST = 4  # characters; a shorter password would be found in half of all words
_PROXIES = [name for kind in ("HTTP", "HTTPS", "ALL", "FTP") for name in (f"{kind}_PROXY", f"{kind}_PROXY".lower())]
_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", *_PROXIES)
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "HF_TOKEN")
_USER = re.compile(r"([A-Za-z][\w+.-]*://)[^\s/@'\"]*:[^\s'\"]*@")


def free_port() -> int:
    """A free port, not one that other tools of this trade take: 5000 (MLflow's usual) or 8000-8999 (Prefect's)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port != 5000 and not 8000 <= port < 9000:
            return port


def is_loopback(url: str) -> bool:
    """Whether the address names this machine by one of its loopback names."""
    try:
        host = (urlsplit(url).hostname or "").lower().rstrip(".")
        if host == "localhost" or host.endswith(".localhost"):
            return True
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified  # 0.0.0.0 is what a server prints that listens everywhere here
    except ValueError:
        return False


def no_proxy() -> str:
    """What NO_PROXY and no_proxy must be: all the user has in either, and the loopback names. A proxy cannot reach those."""
    given = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
    if "*" in given:
        return "*"  # urllib reads the star only where it stands alone
    return ",".join(dict.fromkeys([*filter(None, given), *LOOPBACK]))


def open_url(url: str, timeout: float) -> Any:
    """`urllib.request.urlopen`, which asks this machine directly whatever the environment says."""
    direct = [ProxyHandler({})] if is_loopback(url) else []
    return build_opener(*direct).open(url, timeout=timeout)


def server(name: str, url: str, example: str) -> str:
    """The address of an HTTP server as the environment variable `name` has it, without a slash at its end.

    Raises:
        GrapeError: it is none, or holds a user and password, which would come to be shown.
    """
    mend = f"write it like {example}, or unset the variable"
    try:
        parts = urlsplit(url)
        wrong = parts.scheme.lower() not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:  # a port that is no number or too large, a bracket that is not closed
        wrong = True
    if wrong or not url.isprintable() or " " in url or "\\" in url:
        raise GrapeError("this is not the address of a server", where=f"{name}={public(url)}", mend=mend)
    return url.rstrip("/")


def prefect_api() -> str:
    """PREFECT_API_URL; "": there is none, and a run gets a server of its own.

    Raises:
        GrapeError: it is no address, or holds a password.
    """
    given = os.environ.get("PREFECT_API_URL", "")
    if not given:
        return ""
    url = server("PREFECT_API_URL", given, "http://127.0.0.1:4200/api")
    if public(url) != url:
        mend = "put user:password into PREFECT_API_AUTH_STRING, or a key into PREFECT_API_KEY"
        raise GrapeError("the address holds a user, a password or a query", where=f"PREFECT_API_URL={public(url)}", mend=mend)
    return url


def prefect_health(url: str) -> None:
    """OSError where there is no Prefect server at this address."""
    try:
        with open_url(f"{url}/health", timeout=5) as answer:
            if answer.read(64).strip() != b"true":  # the pages of a server are at every other path
                raise OSError("something answers, but not Prefect's API; its address ends in /api")
    except HTTPError as error:
        if error.code not in (401, 403):  # it is there, and Prefect's own client knows the key
            raise
    except HTTPException as error:
        raise OSError(f"no answer that is HTTP: {error}") from error


def public(url: str) -> str:
    """An address without user, password and query: fit for messages and files."""
    if url.lower().startswith(("sqlite:///", "file:")):
        return url  # a path: an @ in it is a folder's name
    head, slashes, rest = url.partition("//")
    if "@" in url:
        rest = (rest if slashes else head).rpartition("@")[2]
        head = head if slashes else ""
    return (head + slashes + rest).partition("?")[0]


def scrub(text: str) -> str:
    """Text of other programs without the passwords that this process's environment holds, and without any in an address."""
    for name in _ADDRESSES:
        if url := os.environ.get(name):
            text = text.replace(url, public(url))
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USER.sub(r"\1", text)


def _secrets() -> Iterator[str]:
    found = [os.environ.get(name, "") for name in _SECRETS]
    for url in filter(None, map(os.environ.get, _ADDRESSES)):
        user = url.partition("//")[2].rpartition("@")[0]
        found += [user, user.partition(":")[2]]
    for secret in found:
        for form in {secret, unquote(secret)}:
            if len(form) >= SHORTEST:
                yield form
