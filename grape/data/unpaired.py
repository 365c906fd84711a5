"""Unpaired feedback, answers that were each liked or not, as pairs: of each prompt the i-th liked with the i-th disliked one.

So each answer is in one pair at most, and counts once however many others its prompt has. An answer without a partner is left out,
and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from grape.files import Spilled


class Pairing:
    """Rows of prompt, completion (turns) and label in, pairs out as soon as both answers are there. Those that wait lie on the disk
    where they are many."""

    def __init__(self) -> None:
        self._rows = Spilled()
        self._places: dict[bytes, tuple[list[int], list[int]]] = {}  # of each prompt: the disliked that wait, the liked

    def add(self, where: str, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """The pair that this row completes, and where its answers stand. The same answer is no partner (people disagreed)."""
        asked = json.dumps([row.get("category"), row["prompt"]], sort_keys=True)
        waiting = self._places.setdefault(hashlib.blake2b(asked.encode(), digest_size=16).digest(), ([], []))
        others = waiting[not row["label"]]
        for number, place in enumerate(others):
            beside, other = json.loads(self._rows[place])
            if other["completion"] != row["completion"]:
                del others[number]
                liked, disliked = (row, other) if row["label"] else (other, row)
                rest = {key: value for key, value in liked.items() if key not in ("id", "completion", "label")}
                return f"{beside} and {where}", {**rest, "chosen": liked["completion"], "rejected": disliked["completion"]}
        waiting[bool(row["label"])].append(len(self._rows))
        self._rows.append(json.dumps([where, dict(row)], default=str).encode())
        return None

    @property
    def waiting(self) -> int:
        """Answers without a partner."""
        return sum(len(places) for both in self._places.values() for places in both)
