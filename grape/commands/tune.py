"""What `grape tune` and `grape run compare --tuned` are told, checked, and the table of what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grape import tuned
from grape.commands import league
from grape.errors import GrapeError
from grape.params import edited
from grape.pipeline import Hooks, Request, Screen, Threads, look, preflight
from grape.pipeline import run as run_pipeline
from grape.pipeline.schedule import default_workers
from grape.project import Project
from grape.slot import SFT
from grape.tuned import Tuned

FRESH = (0, 1, 2, 3, 4)  # seeds of `compare --tuned`, but for those of the trials
COLUMNS = ("algorithm", "trials", "best", "as it was", "median", "quartiles", "worst", "pruned", "failed")


def tune(
    project: Project, algorithms: str | None, trials: int, share: float, seeds: str, workers: int | None, file: Path | None,
    sets: Sequence[str], screen: Screen,
) -> dict[str, Tuned]:  # fmt: skip
    """Run the trials of `grape tune`.

    Args:
        algorithms, seeds: with commas, as `grape run compare` has them, and `sft`. share: of the budget. file: of spaces.
        sets: `--set`.

    Raises:
        GrapeError: something of the user's is wrong, and nothing has run; or an algorithm has no score at all.
    """
    if not 0 < share <= 1:
        raise GrapeError(f"{share} is no share of the budget", where="--budget", mend="a number above 0, up to 1, e.g. 0.25")
    asked = [name.strip() for name in algorithms.split(",")] if algorithms else []
    slotted = ",".join(name for name in asked if name != SFT) or None
    text, params = edited(project.params, [*sets, *league.assignments(project, slotted, seeds, sets)])
    project.enter()
    from grape.tune import run, spaces
    from grape.tune.search import Tuning

    names = [*([SFT] if SFT in asked else []), *(params.rl.algorithms if slotted or not asked else [])]
    if SFT in names and not params.sft.steps:
        raise GrapeError("there is no SFT to tune", where="params.yaml, sft.steps: 0", mend="train it some steps, or leave sft out")
    mine = spaces.read(file, names) if file else {}
    found = {name: spaces.of(params, name, mine, file.name if file else "") for name in names}
    wanted = Tuning(found, trials, share, tuple(params.rl.seeds), workers or default_workers())
    budgets = " and ".join(dict.fromkeys(wanted.budget(params, name) for name in names))
    each = f"{trials} trials each, {budgets}, seeds {_joined(wanted.seeds)}"
    screen.say(f"tuning {', '.join(names)}: {each}, on the validation prompts")
    _upstream(project, sets, screen)
    return run.tune(project, wanted, text, screen)


def _upstream(project: Project, sets: Sequence[str], screen: Screen) -> None:
    """Bring what the project makes before rl up to date, as `grape run` does: its runs are MLflow's, its results the project's.

    Raises:
        GrapeError: a stage failed.
    """
    from grape.tune.workspace import stages_before

    preflight.repository(project, screen.say)
    look(project, Request(sets=tuple(sets)), Hooks())  # the cards that the graph of the stages is drawn from
    result = run_pipeline(project, Request(tuple(stages_before(project))), Threads(), screen, Hooks())
    if result.exit_code:
        raise GrapeError("what the trials start from could not be made", where="grape tune", mend="see the stage's message above")


def lines(found: Mapping[str, Tuned]) -> Iterator[str]:
    """What was found, an algorithm a row, the best first."""
    table: list[tuple[str, ...]] = [COLUMNS, *(row(name, entry) for name, entry in ordered(found))]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(COLUMNS))]
    for cells in table:
        yield "  ".join(
            text.rjust(width) if i else text.ljust(width) for i, (text, width) in enumerate(zip(cells, widths, strict=True))
        )
    yield ""
    for name, entry in ordered(found):
        yield f"{name}: {settings(entry)}"
    yield ""
    yield f"kept in {tuned.FILE}"
    yield f"next: {_next(found)}"


def _next(found: Mapping[str, Tuned]) -> str:
    """What to do with it: whoever starts from SFT is tuned when SFT is as it stays."""
    sft, others = found.get(SFT), [name for name in found if name != SFT]
    if sft is None or (sft.present == sft.spread.best and others):
        return "grape run compare --tuned"
    if sft.present == sft.spread.best:
        return "tune the others, which start from SFT: its present settings are its best"
    sets = " ".join(f"--set {SFT}.{knob}={json.dumps(value)}" for knob, value in sft.knobs.items())
    again = f"{', '.join(others)} again" if others else "the others"
    return f"grape run {SFT} {sets}, and only then tune {again}, which start from it"


def ordered(found: Mapping[str, Tuned]) -> list[tuple[str, Tuned]]:
    return sorted(found.items(), key=lambda item: -item[1].spread.best)


def settings(entry: Tuned) -> str:
    return ", ".join(f"{knob} {json.dumps(value)}" for knob, value in entry.knobs.items())


def row(name: str, entry: Tuned) -> tuple[str, ...]:
    spread = entry.spread
    numbers = [f"{value:.3f}" for value in (spread.best, spread.median, spread.low, spread.high, spread.worst)]
    best, median, low, high, worst = numbers
    was = "-" if entry.present is None else f"{entry.present:.3f}"
    return name, str(entry.trials), best, was, median, f"{low}-{high}", worst, str(entry.pruned), str(entry.failed)


def assignments(
    project: Project, algorithms: str | None, seeds: str | None, sets: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """What `--set` gets for `grape run compare --tuned`: every algorithm's best knobs, the algorithms and fresh seeds; and what is
    worth saying of them.

    Raises:
        GrapeError: an algorithm was not tuned, or had another chance than the others, or was tuned for another project than this is
            now; or seeds that the trials had.
    """
    known = tuned.read(project.root)
    if not known:
        raise GrapeError("nothing was tuned yet", where=tuned.FILE, mend="run `grape tune --algorithms all` first")
    known = {name: entry for name, entry in known.items() if name != SFT}
    if not known:
        mend = "run `grape tune --algorithms all`; what was found for SFT is taken with --set, before the others are tuned"
        raise GrapeError("nothing but SFT was tuned yet, which all the others start from", where=tuned.FILE, mend=mend)
    chosen = algorithms or ",".join(known)
    more = league.assignments(project, chosen, seeds, sets)
    params = edited(project.params, [*sets, *more])[1]
    names: list[str] = params.rl.algorithms
    entries = _entries(known, names)
    _refuse_unequal(entries)
    _refuse_another(project, entries, sets)
    used = sorted({seed for entry in entries.values() for seed in entry.seeds})
    given = [seed for seed in FRESH if seed not in used] if seeds is None else [int(seed) for seed in seeds.split(",")]
    if again := sorted(set(given) & set(used)):
        what = f"the trials had seed {_joined(again)}: what was chosen by it would be shown as if it were not"
        raise GrapeError(what, where="--seeds", mend=f"use others, e.g. {_joined([s for s in range(10) if s not in used][:5])}")
    from grape.tune import spaces

    now = {name: spaces.present(params, name, entry.knobs) for name, entry in entries.items()}
    knobs = [  # what is so already is not written out: it would train again what is there
        f"algorithms.{name}.{knob}={json.dumps(value)}"
        for name, entry in entries.items()
        for knob, value in entry.knobs.items()
        if value != now[name][knob]
    ]
    words = [f"tuned settings of {', '.join(names)} ({tuned.FILE}), seeds {_joined(given)}"]
    if len(names) == 1:
        words.append(f"{names[0]} alone: it is compared with SFT, and says nothing about other algorithms")
    return [*more, f"rl.seeds={json.dumps(given)}", *knobs], words


def _entries(known: Mapping[str, Tuned], names: Sequence[str]) -> dict[str, Tuned]:
    if missing := [name for name in names if name not in known]:
        mend = f"run `grape tune --algorithms {','.join(missing)}`, or name only what was tuned: --algorithms {','.join(known)}"
        raise GrapeError(f"not tuned: {', '.join(missing)}", where=tuned.FILE, mend=mend)
    return {name: known[name] for name in names}


def _refuse_unequal(entries: Mapping[str, Tuned]) -> None:
    first, entry = next(iter(entries.items()))
    for name, other in entries.items():
        for what, value in entry.chance.items():
            if other.chance[what] != value:
                said = f"{first} had {what}: {value}, {name} had {other.chance[what]}: that is no equal chance"
                trials = max(one.trials for one in entries.values())
                mend = f"grape tune --algorithms {','.join(entries)} --trials {trials} --budget {entry.share:g}"
                raise GrapeError(said, where=tuned.FILE, mend=mend)


def _refuse_another(project: Project, entries: Mapping[str, Tuned], sets: Sequence[str]) -> None:
    now = tuned.surroundings(project)
    for name, entry in entries.items():
        if others := tuned.unlike(entry, now):
            what = f"{name} was tuned for something else; since then these have changed: {'; '.join(others)}"
            raise GrapeError(what, where=tuned.FILE, mend="undo the change, or run `grape tune` again")
    settled = (*tuned.SECTIONS, "algorithms")
    if touched := [key for key in (one.partition("=")[0].strip() for one in sets) if key.split(".")[0] in settled]:
        raise GrapeError(f"{touched[0]} is what the tuning settled", where="--set", mend="leave it out, or leave out --tuned")


def _joined(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
