"""Tracking: runs, metrics, datasets and models in MLflow. The only part of grape that imports mlflow, and only lazily.

Every record goes to a spool on disk first (spool.py) and from there to MLflow (deliver.py), by a thread (courier.py) of the
orchestrator or of a stage that runs without one, or later by `grape mlflow sync` (recover.py). Training therefore neither waits
for MLflow nor fails with it.
"""

from __future__ import annotations

from grape.track.parent import close_parent, link_cached, open_parent
from grape.track.recover import close_dead_runs, sync
from grape.track.registry import CHAMPION, POLICY, Candidate
from grape.track.run import StageRun, Terminated
from grape.track.store import EXPERIMENT

__all__ = [
    "CHAMPION",
    "EXPERIMENT",
    "POLICY",
    "Candidate",
    "StageRun",
    "Terminated",
    "close_dead_runs",
    "close_parent",
    "link_cached",
    "open_parent",
    "sync",
]
