"""Judgements on disk, one file each, named by the hash of everything that was asked. Errors are never kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from grape.files import write_text
from grape.reward.critics.reply import Malformed, Opinion, checked


def digest(asked: Mapping[str, object]) -> str:
    """SHA-256 of what was asked, as JSON with sorted names."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Cache:
    """A folder of judgements, which threads and processes may share: an entry is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.json"

    def get(self, name: str) -> Opinion | None:
        """The judgement, or None: not there, or damaged, in which case it is asked for again."""
        try:
            return checked(json.loads(self.path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, Malformed):
            return None

    def put(self, name: str, opinion: Opinion, **more: str) -> None:
        """Keep a judgement; `more` is for people who look into the file."""
        entry = {"score": opinion.score, "confidence": opinion.confidence, "reason": opinion.reason, **more}
        write_text(self.path(name), json.dumps(entry, ensure_ascii=False, indent=1) + "\n", shared=True)
