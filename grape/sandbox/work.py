"""The process where the model's code runs. It gets calls and gives back what they returned: it knows no expected value.

Runs in the child process: standard library, `kernel` only. Whatever the code does to this module, to `json` or to
the answer pipe, it can only change what it answers.
"""

from __future__ import annotations

import json
import os
import resource
import sys

from grape.sandbox import kernel

TYPE_CHECKING = False  # not from typing, whose import would cost each sandbox 7 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ANSWERS = 3  # descriptor of the answer pipe


def restrict(config: dict[str, Any]) -> None:
    """Every wall that the process builds around itself, for good. The limits come last: the steps before need room."""
    os.setsid()
    os.chdir(config["work"])
    linux, alone = sys.platform == "linux", config["mechanism"] in ("landlock", "process")
    if alone and linux:
        if config["mechanism"] == "landlock":
            # No more privileges first: the kernel wants that, or a capability, before it takes a ruleset.
            kernel.control(kernel.NO_NEW_PRIVILEGES, 1)
            kernel.landlock([source for source, _ in config["readable"]], config["work"])
        kernel.become(config["uid"], keep_reading=config["keep_reading"])
        kernel.control(kernel.DEATH_SIGNAL, 9)
    elif alone and config["uid"] is not None:
        os.setgroups([])
        os.setgid(config["uid"])
        os.setuid(config["uid"])
    for name, (soft, hard) in config["limits"].items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        try:
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):
            if linux:  # macOS has the names of limits that it does not keep
                raise
    if linux:
        kernel.seccomp(os.getpid() if alone else None)


def main(config: dict[str, Any], receive: Callable[[], Any], null: int) -> None:
    """Restrict this process, say so, then take the program and answer its calls. Never returns."""
    restrict(config)
    os.write(1, b"ready\n")
    # From here on the model's code decides what happens, so nothing below can excuse it with an error of the harness.
    job = receive()
    pipe = os.dup(1)
    for standard in (1, 2) if config["path"] else (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(pipe, ANSWERS)
    os.closerange(ANSWERS + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 1)
    if config["path"]:
        serve(config, job, receive)
    else:
        answer(job["source"], job["calls"])
    os._exit(0)


def plain(value: Any) -> object:
    """What JSON has no word for: a set says that it is one, and the other side that its order means nothing."""
    if type(value) in (set, frozenset):
        return {"$set": list(value)}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def say(index: int, returned: bool, value: object) -> None:
    line = json.dumps([index, returned, value], allow_nan=False, default=plain).encode() + b"\n"
    while line:
        line = line[os.write(ANSWERS, line) :]


def complaint(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:  # the model's own exception class may raise in its __str__
        return "an exception that cannot be shown"


def load(source: str, name: str) -> dict[str, Any]:
    """Execute a program as a module, which dataclasses and pickling want to find in sys.modules."""
    module = sys.modules[name] = type(sys)(name)
    exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def call(namespace: dict[str, Any], index: int, name: str, arguments: list[object]) -> None:
    """Answer one call: what it returned, or what went wrong. BaseException, because SystemExit is no way out."""
    try:
        if name not in namespace:
            raise NameError(f"the program defines no {name!r}")
        say(index, True, namespace[name](*arguments))
    except BaseException as error:
        say(index, False, complaint(error))


def answer(source: str, calls: list[tuple[str, list[object]]]) -> None:
    try:
        namespace = load(source, "candidate")
    except BaseException as error:
        say(-1, False, complaint(error))
        return
    for index, (name, arguments) in enumerate(calls):
        call(namespace, index, name, arguments)


def serve(config: dict[str, Any], source: str, receive: Callable[[], Any]) -> None:
    """A program of grape's own that uses a library: loaded once, then one fork per request, so none can touch the next."""
    sys.path += config["path"]
    namespace = load(source, "library")
    say(-1, True, "loaded")
    while True:
        name, arguments = receive()
        child = os.fork()
        if child == 0:
            os.close(0)
            resource.setrlimit(resource.RLIMIT_CPU, (config["seconds"], config["seconds"] + 1))
            call(namespace, 0, name, arguments)
            os._exit(0)
        say(-2, False, f"ended with {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
