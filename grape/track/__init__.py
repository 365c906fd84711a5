"""Tracking: runs, metrics, datasets and models in MLflow. The only part of grape that imports mlflow, and only lazily.

Every record goes to a spool on disk first (spool.py) and from there to MLflow (deliver.py), by a thread of the orchestrator or of a
stage that runs without one, or later by `grape mlflow sync` (courier.py). Training neither waits for MLflow nor fails with it.
"""

from __future__ import annotations

from grape.track.courier import close_dead_runs, sync
from grape.track.parent import close_parent, link_cached, note, open_parent
from grape.track.registry import POLICY, Candidate
from grape.track.run import StageRun, Unrecorded
from grape.track.runs import known_runs
from grape.track.trials import TrialRun

__all__ = [
    "POLICY", "Candidate", "StageRun", "TrialRun", "Unrecorded", "close_dead_runs", "close_parent", "known_runs", "link_cached",
    "note", "open_parent", "sync",
]  # fmt: skip
