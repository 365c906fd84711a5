"""`grape export` and `grape push`: a stage's model out of the project."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from grape.commands.chat import best_policy
from grape.export import hub
from grape.export.checks import Order, refuse_settings
from grape.export.make import export
from grape.project import Project

__all__ = ["export", "named", "push"]


def named(project: Project, stage: str) -> str:
    """The stage that is meant; `best`: of the best policy of the last report, else SFT."""
    return best_policy(project) if stage == "best" else stage


def push(project: Project, stage: str, repo: str, order: Order, private: bool, say: Callable[[str], None]) -> None:
    """Into a repository of the hub, by way of a temporary folder. Asks the hub first whether it would take it."""
    refuse_settings(stage, order)
    api = hub.client(repo)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "export"
        export(project, stage, target, order, say)
        say(f"uploading to {repo}")
        say(hub.upload(api, target, repo, private, f"{stage}, by grape export"))
