"""The first process of a sandbox: builds the walls, starts the worker behind them, watches it, and leaves nothing behind.

Runs in the child process: standard library, `kernel` and `work` only. It stays outside of the walls (in a process
namespace its parent is what the worker cannot see), ends the worker when grape closes the control pipe or dies, and
says on standard error how the worker ended.
"""

from __future__ import annotations

import os
import select
import sys

from grape.sandbox import kernel, work

TYPE_CHECKING = False  # not from typing, whose import would cost each sandbox 7 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KILL = 9  # the module `signal` would cost 5 ms
TICK = 100  # milliseconds between two looks at memory and disk
FAILED = 97  # exit status of a process that could not build its walls


def main(config: dict[str, Any], receive: Callable[[], Any]) -> None:
    """Never returns. `config` is what `box.Sandbox` sends."""
    null = os.open("/dev/null", os.O_RDWR)
    try:
        if config["mechanism"] == "inside":
            work.main(config, receive, null)
        if sys.platform == "linux":
            kernel.control(kernel.SUBREAPER, 1)  # daemons of the worker become our children, not init's
        if config["mechanism"] == "namespaces":
            if os.geteuid() != 0:
                kernel.own_user_namespace(config["inner"])
            kernel.unshare(kernel.NEWPID)
        child = os.fork()
        if child == 0:
            {"namespaces": inside, "bubblewrap": bubblewrap}.get(config["mechanism"], work.main)(config, receive, null)
    except BaseException as error:
        os.write(2, f"error: {type(error).__name__}: {error}\n".encode())
        os._exit(FAILED)
    os.dup2(null, 1)  # only the worker holds the answer pipe: its end is the end of the file
    os.write(2, watch(child, config).encode())
    os._exit(0)


def inside(config: dict[str, Any], receive: Callable[[], Any], null: int) -> None:
    """Process 1 of the namespaces: builds the root, drops every right, starts the worker; its end is the end of them all."""
    kernel.unshare(kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS)
    kernel.build_root(config["readable"], config["work"], config["disk"], config["uid"] or config["inner"])
    kernel.become(config["uid"])
    kernel.control(kernel.DEATH_SIGNAL, KILL)
    worker = os.fork()
    if worker == 0:
        work.main(config, receive, null)
    for standard in (0, 1):
        os.dup2(null, standard)
    while True:
        ended, status = os.wait()
        if ended == worker:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def bubblewrap(config: dict[str, Any], receive: Callable[[], Any], null: int) -> None:
    """Become bwrap, as nobody where we are root; the interpreter that it starts reads on from the control pipe."""
    if config["uid"] is not None:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    os.execv(config["command"][0], config["command"])


def watch(child: int, config: dict[str, Any]) -> str:
    """Wait for the worker's end, for grape's word, or for too much memory or disk; then end all. Returns what happened."""
    poll = select.poll()
    poll.register(0, 0)  # no event asked for: a closed pipe is always told
    if hasattr(os, "pidfd_open"):
        poll.register(os.pidfd_open(child), select.POLLIN)
    said = ""
    while not said:
        happened = [descriptor for descriptor, _ in poll.poll(TICK)]
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            said = f"signal {-code}" if code < 0 else f"signal {code - 128}" if code > 128 else f"exit {code}"
        else:
            said = "stopped" if 0 in happened else excess(config)
    end_all(None if ended else child)
    return said


def end_all(child: int | None) -> None:
    """Kill and bury every descendant, `child` (None: buried already) among them, until none is left to bury."""
    while True:
        if child is not None:
            _kill(child)
            if sys.platform != "linux":
                _kill(-child)  # its group: there is no /proc to find descendants in
        for pid in descendants(os.getpid()):
            _kill(pid)
        try:
            ended, _ = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        child = None if ended == child else child


def _kill(pid: int) -> None:
    try:
        os.kill(pid, KILL)
    except (ProcessLookupError, PermissionError):
        pass  # it ended by itself


def descendants(root: int) -> list[int]:
    """Processes below `root`; none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    try:
        names = filter(str.isdigit, os.listdir("/proc"))
    except OSError:
        return []
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parents.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
        except (OSError, IndexError):
            continue  # it ended while we looked
    found, new = [], [root]
    while new:
        new = [pid for parent in new for pid in parents.get(parent, ())]
        found += new
    return found


def excess(config: dict[str, Any]) -> str:
    """What of the sandbox as a whole is over its limit: limits of the kernel's are per process and per file."""
    memory = 0
    for pid in descendants(os.getpid()):
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                memory += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    if memory > config["memory"]:
        return "memory"
    if config["mechanism"] in ("landlock", "process"):  # elsewhere the folder is a file system with a size
        seen = used = 0
        for folder, _, names in os.walk(config["work"]):
            for name in names:
                seen += 1
                try:
                    used += os.lstat(os.path.join(folder, name)).st_size
                except OSError:
                    continue
            if used > config["disk"] or seen > 4096:
                return "disk"
    return ""
