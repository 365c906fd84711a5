"""What a sandbox is told: which folders it may read, whose identity it takes, its environment and its limits."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOBODY = 65534
FRESH_UIDS = 1_900_000_000  # systemd's table of identities leaves the range from 1 879 048 192 on to nobody
WORK = "/grape-work"  # a name that no folder of the machine has: those that programs need are shown under their own names
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/nix/store")
DEVICES = ("/dev/null", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """What one program may use. Seconds of processor time per process, wall clock for all; MiB; counts; answers in KiB."""

    seconds: float = 5.0
    wall: float = 15.0
    memory: int = 512
    disk: int = 16
    file: int = 4
    files: int = 64
    processes: int = 16
    answers: int = 1024


def python() -> str:
    """The interpreter itself, not a virtual environment's link to it, which would need that environment's folder too."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def readable(extra: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(real path, path) of what a plain Python needs to import its own library, and no more; nested ones only once."""
    kept: list[tuple[str, str]] = []
    own = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR")]
    for path in sorted({*LIBRARIES, *filter(None, own), os.path.join(sys.base_prefix, "lib"), *extra}):
        real = os.path.realpath(path)
        inside = any(path.startswith(p + "/") and real.startswith(r + "/") for r, p in kept)
        if os.path.isdir(real) and not inside:
            kept.append((real, path))
    return kept + [(path, path) for path in DEVICES if os.path.exists(path)]


def _mapped(number: int) -> bool:
    """Whether this user namespace knows the identity (a container may know 65 536 of them)."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return False
    return any(first <= number < first + count for first, _, count in ranges)


def identity() -> int | None:
    """Whom root becomes inside: someone new each time, so that the kernel's limit on processes, which does not bind root,
    counts this sandbox alone and nobody else's processes can be signalled. None: we are not root and stay who we are."""
    if os.geteuid() != 0:
        return None
    fresh = FRESH_UIDS + secrets.randbelow(1 << 24)
    return fresh if _mapped(fresh) else NOBODY


def _others(uid: int | None, mechanism: str) -> int:
    """Threads that the limit on processes counts although they are not the sandbox's: it is per user. Since Linux 5.14 a new
    user namespace counts from zero."""
    if uid is not None and uid != NOBODY or sys.platform != "linux":
        return 0
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if uid is None and mechanism in ("namespaces", "bubblewrap") and version >= (5, 14):
        return 0
    whose, count = str(os.getuid() if uid is None else uid), 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/status", encoding="ascii", errors="replace") as file:
                fields = dict(line.split(":", 1) for line in file if ":" in line)
        except OSError:
            continue  # it ended while we looked
        if fields.get("Uid", "").split()[:1] == [whose]:
            count += int(fields.get("Threads", "1"))
    return count


def _closed_to_others(path: str) -> bool:
    """Whether a folder above the path, or it, lets only its owner in: /root, as a rule."""
    return any(not folder.stat().st_mode & 0o001 for folder in (Path(path), *Path(path).parents))


def config(mechanism: str, limits: Limits, folder: str | None, path: Sequence[str]) -> dict[str, Any]:
    """What the child is sent. It holds nothing of the task: the program inside can read it.
    Raises OSError: /proc or the interpreter's folders cannot be read."""
    uid, seconds = identity(), max(1, round(limits.seconds))
    file, memory, disk = (mebi << 20 for mebi in (limits.file, limits.memory, limits.disk))
    most = {"CORE": 0, "FSIZE": file, "NOFILE": limits.files, "NPROC": limits.processes + _others(uid, mechanism), "AS": memory}
    bounds = {f"RLIMIT_{name}": (count, count) for name, count in {**most, "MEMLOCK": 0, "MSGQUEUE": 0}.items()}
    if not path:  # what serves lives long; its requests get their own limit
        bounds["RLIMIT_CPU"] = (seconds, seconds + 1)
    folders = readable(path)
    closed = (_closed_to_others(real) for real, _ in folders if real not in DEVICES)
    return {
        "mechanism": mechanism, "uid": uid, "inner": NOBODY, "limits": bounds, "seconds": seconds, "path": list(path),
        "work": folder or WORK, "disk": disk, "memory": memory, "readable": folders,
        "keep_reading": mechanism == "landlock" and uid is not None and any(closed),
    }  # fmt: skip


def environment(work: str, token: str) -> dict[str, str]:
    """All that the program sees of the environment. Hashes are seeded, so a set prints in the same order each time."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    kept |= {"PATH": "/usr/bin:/bin", "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8", "GRAPE_SANDBOX": token}
    return kept | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def command(boot: str) -> list[str]:
    """No user site, no site-packages, no bytecode, no folder of the caller in sys.path. Not -I: it would ignore the hash seed."""
    return [python(), "-s", "-S", "-P", "-B", "-X", "utf8", "-c", boot]


def bubblewrap(settings: dict[str, Any], boot: str, token: str) -> list[str]:
    """The command line of bwrap around the worker. Raises OSError: there is no bwrap."""
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bubblewrap (bwrap) is not installed")
    line = [program, *"--unshare-all --die-with-parent --new-session --clearenv --cap-drop ALL".split()]
    line += ["--uid", str(NOBODY), "--gid", str(NOBODY)]
    for real, path in [*settings["readable"], (os.path.realpath(python()), python())]:
        line += ["--dev-bind" if real in DEVICES else "--ro-bind", real, path]
    line += ["--size", str(settings["disk"]), "--tmpfs", WORK, "--remount-ro", "/", "--chdir", WORK]
    for name, value in environment(WORK, token).items():
        line += ["--setenv", name, value]
    return [*line, "--", *command(boot)]


def sweep(token: str) -> int:
    """Kill what still carries the sandbox's token in its environment; how many that were."""
    from psutil import NoSuchProcess, Process, pids

    found = 0
    for pid in pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if token.encode() not in file.read():
                    continue
            Process(pid).kill()
            found += 1
        except (OSError, NoSuchProcess):
            continue  # not ours to see, or gone
    return found
