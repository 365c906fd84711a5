"""Who runs what: the process, the code, the parameters and the packages of a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from grape.project import Project

PACKAGES = "grape accelerate datasets dvc mlflow numpy peft prefect safetensors tokenizers torch transformers".split()


def process() -> dict[str, str]:
    """Tags that tell this process from any other, also from one that gets the same pid later."""
    own = psutil.Process()
    return {"grape.host": socket.gethostname(), "grape.pid": str(own.pid), "grape.process_start": f"{own.create_time():.2f}"}


def tags(kind: str, source: str, nonce: str | None, commit: str | None, dirty: bool | None) -> dict[str, str]:
    """What the runs of stages and of pipelines both say of themselves; `source`: the command."""
    found = {"grape.kind": kind, "mlflow.source.name": source, "mlflow.source.type": "LOCAL", **process()}
    if commit:
        found |= {"grape.git_revision": commit + ("+changes" if dirty else ""), "mlflow.source.git.commit": commit}
    return found | ({"grape.nonce": nonce} if nonce else {})


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process these tags name ran on this host and is gone. Another host's processes cannot be judged."""
    if tags.get("grape.host") != socket.gethostname() or "grape.pid" not in tags:
        return False
    try:
        started = psutil.Process(int(tags["grape.pid"])).create_time()
    except psutil.NoSuchProcess:
        return True
    # 2 s: the start time is counted from boot, and the boot time moves a little when the clock is set
    return abs(started - float(tags.get("grape.process_start", started))) > 2


def revision(project: Project) -> tuple[str | None, bool | None]:
    """Git revision of the project and whether tracked files differ from it; None where git does not answer."""
    commit = _git(project, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(project, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(project: Project, *command: str) -> str | None:
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(["git", *command], cwd=project.root, capture_output=True, text=True, timeout=20, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def params_hash(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()[:16]


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as MLflow keeps them: dotted keys, text values, within its limits."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[metric_key(name)] = text[:6000]
    return flat


def metric_key(name: str) -> str:
    """A name MLflow accepts: letters, digits and _ - . space : /; rl@grpo-0 becomes rl/grpo-0."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "/"), flags=re.ASCII)[:250]


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float:
    """Resident MiB of this process at its peak. Linux's ru_maxrss would count the process that it was forked from as well."""
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return round(int(found[1]) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)  # macOS counts bytes, others KiB
