"""What a rehearsal saw and what that means, as it is kept in `.grape/rehearsal/` and told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from grape.errors import GrapeError
from grape.files import write_json
from grape.progress import duration
from grape.project import Project

Level = Literal["fine", "look", "stop"]
REGARDLESS = "`--no-rehearsal` goes on regardless"
UNITS: dict[str, Callable[[float], str]] = {
    "share": "{:.0%}".format,
    "nats": "{:.3f} nats".format,
    "tokens": "{:.0f} tokens".format,
    "seconds": duration,
    "MiB": "{:.0f} MiB".format,
    "reward": "{:.3g}".format,
}


@dataclass(frozen=True)
class Seen:
    """Of the answers to plain prompts in all rounds; revisions aside.

    Attributes:
        cut: share of answers without an end. late: length that 95 % of them stay within, tokens; longest: row, prompt and answer.
        flat: share of groups whose rewards are all equal. varies: whether any two rewards differ.
        reward: mean; None: there is none. best: what it can be at most; None: nobody knows.
        missing: share of scores, of the worst round; `reason` of the first.
        sampler, outside: mean |log pi_old - log mu|, nats, and share of tokens with a ratio off 1 by more than 0.2.
        kept, dropped: prompts that fit, and that do not. tokens, samples: of a round of P x G answers, with those drawn again.
        drawing, reading, learning: seconds of a round's P x G answers: drawn and scored; read by the policy; read and learned from.
        peak_mb: of the process.
    """

    answers: int
    cut: float
    late: float
    longest: int
    flat: float
    varies: bool
    reward: float | None
    best: float | None
    missing: float
    reason: str
    sampler: float
    outside: float
    kept: int
    dropped: int
    tokens: float
    samples: float
    drawing: float
    reading: float
    learning: float
    peak_mb: float


@dataclass(frozen=True)
class Reading:
    """One thing that was looked at.

    Attributes:
        value, limit: of the unit; None: there is no number. limit: beyond it, the level is not fine.
        sentence: what it means for the run; mend: the knob. Both "" where all is fine.
    """

    name: str
    level: Level
    value: float | None = None
    limit: float | None = None
    unit: str = "share"
    sentence: str = ""
    mend: str = ""

    @property
    def judged(self) -> bool:
        return self.limit is not None or self.level != "fine"

    def shown(self, number: float | None) -> str:
        return "" if number is None else UNITS[self.unit](number)


@dataclass(frozen=True)
class Rehearsal:
    """
    Attributes:
        key: what it stands for (`alike.key`). runs: those that wait for it. seconds: what each is estimated to take.
        seen: None where it could not be brought to an end. took: seconds. accepted: people went on although it says stop.
    """

    key: str
    runs: tuple[str, ...]
    readings: tuple[Reading, ...]
    seconds: dict[str, float]
    seen: Seen | None
    took: float
    accepted: bool = False

    def of(self, level: Level) -> list[Reading]:
        return [reading for reading in self.readings if reading.level == level]

    @property
    def passed(self) -> bool:
        return self.accepted or not self.of("stop")

    def refusal(self) -> GrapeError:
        """Why no run should begin."""
        stops = self.of("stop")
        mends = list(dict.fromkeys(reading.mend for reading in stops))
        what = " ".join(reading.sentence for reading in stops)
        return GrapeError(what, where=f"rehearsal of {', '.join(self.runs)}", mend="; ".join([*mends, REGARDLESS]))

    def summary(self) -> str:
        """One line."""
        bad = [f"{reading.level}: {reading.sentence}" for reading in self.readings if reading.level != "fine"]
        return " ".join([f"{'passed' if self.passed else 'stopped'} in {duration(self.took)}.", *bad])

    def lines(self) -> Iterator[str]:
        """A table of all that was looked at, and what to do about what is not fine."""
        rows = [("", "found", "limit", "")]
        rows += [(r.name, r.shown(r.value), r.shown(r.limit), r.level if r.judged else "") for r in self.readings]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        answers = f"{self.seen.answers} answers, " if self.seen else ""
        yield f"rehearsal of {', '.join(self.runs)}: {answers}{duration(self.took)}"
        for a, b, c, d in rows:
            yield f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip()
        for reading in (*self.of("look"), *self.of("stop")):
            yield f"{reading.level}: {reading.sentence}\n  -> {reading.mend}"


def place(project: Project, key: str) -> Path:
    return project.state / "rehearsal" / f"{key}.json"


def keep(project: Project, rehearsal: Rehearsal) -> None:
    write_json(place(project, rehearsal.key), asdict(rehearsal) | {"passed": rehearsal.passed})


def kept(project: Project, key: str) -> Rehearsal | None:
    """What was kept by this key; None where nothing is, or an older grape wrote it."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        told = json.loads(place(project, key).read_text(encoding="utf-8"))
        told.pop("passed")
        readings, seen = tuple(Reading(**reading) for reading in told["readings"]), told["seen"]
        found = Rehearsal(**(told | {"runs": tuple(told["runs"]), "readings": readings, "seen": None}))
        return replace(found, seen=Seen(**seen) if seen else None)
    return None
