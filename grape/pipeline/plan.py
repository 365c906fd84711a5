"""What a run will do and why, told before it does it.

`dvc status` names what changed; the old values of parameters stand in dvc.lock, the new ones in params.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal

from grape import dvc, yamlfile
from grape.dvc import Graph, Status
from grape.errors import GrapeError
from grape.project import Project

Action = Literal["run", "restore", "check", "ready"]

_WORDS: dict[Action, str] = {"run": "will run", "restore": "will be restored", "check": "follows", "ready": "up to date"}


@dataclass(frozen=True)
class Step:
    """`check`: it runs only if what a stage before it makes comes out different."""

    stage: str
    action: Action
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    graph: Graph
    steps: tuple[Step, ...]
    unneeded: Mapping[str, str] = field(default_factory=dict)  # stage -> why it is left out: it only writes that down
    notes: tuple[str, ...] = ()  # what else is to be known before it runs

    @property
    def todo(self) -> set[str]:
        return {step.stage for step in self.steps if step.action != "ready"}

    @property
    def computes(self) -> bool:
        """Whether anything will run, not only come back from the cache."""
        return any(step.action == "run" for step in self.steps)

    def lines(self) -> Iterator[str]:
        width = max((len(step.stage) for step in self.steps), default=0)
        for step in self.steps:
            reasons, left = "; ".join(step.reasons), self.unneeded.get(step.stage)
            what = f"not needed: {left}" if left else _WORDS[step.action] + (f": {reasons}" if reasons else "")
            yield f"{step.stage:<{width}}  {what}"
        yield from self.notes

    def as_json(self) -> list[dict[str, Any]]:
        more = {
            step.stage: {"needs": self.graph.needs[step.stage], "not_needed": self.unneeded.get(step.stage)} for step in self.steps
        }
        return [asdict(step) | more[step.stage] for step in self.steps]


def left_out(unneeded: Mapping[str, str]) -> list[str]:
    """The stages that nobody needs, a line each."""
    width = max(map(len, unneeded), default=0)
    return [f"{stage:<{width}}  not needed: {reason}" for stage, reason in unneeded.items()]


def make(graph: Graph, status: Status, lock: Mapping[str, Any], params: Any, cached: Callable[[str], bool]) -> Plan:
    """
    Args:
        lock: the stages of dvc.lock.
        params: params.yaml as it is now.
        cached: whether DVC's cache holds a hash.
    """
    producers = {out["path"]: name for name, stage in lock.items() for out in stage.get("outs") or []}
    actions: dict[str, Action] = {}
    steps = []
    for stage in graph.order():
        upstream = [n for n in graph.needs[stage] if actions[n] in ("run", "check", "restore")]
        remade = [n for n in upstream if actions[n] != "restore"]
        changes = _changes(status.get(stage, []))
        why = _why_run(stage, changes, lock.get(stage), params, {p for p, n in producers.items() if n in upstream})
        outs = _why_restore(changes, lock.get(stage), cached)
        if why:
            step = Step(stage, "run", tuple(why))
        elif outs:
            restorable = all(fine for fine, _ in outs) and not remade
            step = Step(stage, "restore" if restorable else "run", tuple(text for _, text in outs))
        elif remade or (upstream and changes):
            step = Step(stage, "check", (f"after {', '.join(remade or upstream)}",))
        elif changes:  # something dvc reports that we have no words for
            step = Step(stage, "run", ("dvc status says it changed",))
        else:
            step = Step(stage, "ready")
        actions[stage] = step.action
        steps.append(step)
    return Plan(graph, tuple(steps))


def _changes(entries: list[Any]) -> dict[str, dict[str, Any]]:
    """{"deps": {path: what}, "outs": {path: what}, "other": {text: ""}}"""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for key, value in (entry if isinstance(entry, dict) else {"other": {str(entry): ""}}).items():
            found.setdefault(key.removeprefix("changed "), {}).update(value)
    return found


def _why_run(stage: str, changes: dict[str, dict[str, Any]], entry: Any, params: Any, remade: set[str]) -> list[str]:
    if changes and entry is None:
        return ["it never ran here"]
    why = []
    if "changed command" in changes.get("other", {}):
        why.append("its command in dvc.yaml changed")
    if "always changed" in changes.get("other", {}):
        why.append("it always runs")
    for path, what in changes.get("deps", {}).items():
        if isinstance(what, dict):
            old = (entry.get("params") or {}).get(path) or {}
            for key in what:
                pairs = _difference(key, old.get(key, _ABSENT), yamlfile.at(params, key, _ABSENT))
                why += [f"{name} {before} -> {now}" for name, before, now in pairs]
        elif path not in remade:
            why.append(f"{path} is missing" if what == "deleted" else f"{path} changed")
    return why


def _why_restore(changes: dict[str, dict[str, Any]], entry: Any, cached: Callable[[str], bool]) -> list[tuple[bool, str]]:
    """(can the cache give it back, sentence) of every output that is not as dvc.lock says."""
    hashes = {out["path"]: out.get("md5", "") for out in (entry or {}).get("outs") or []}
    found = []
    for path, what in changes.get("outs", {}).items():
        here = bool(hashes.get(path)) and cached(hashes[path])
        if what == "not in cache" or not here:
            text = f"{path} is not in DVC's cache (a fresh clone? `dvc pull` fetches it where there is a remote)"
        else:
            text = f"{path} is not here" if what == "deleted" else f"{path} is damaged or was edited"
        found.append((here, text))
    return found


class _Absent:
    def __str__(self) -> str:
        return "(unset)"


_ABSENT = _Absent()


def _difference(key: str, old: Any, new: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*new, *(n for n in old if n not in new)]:
            yield from _difference(f"{key}.{name}", old.get(name, _ABSENT), new.get(name, _ABSENT))
    elif old != new:
        yield key, str(old), str(new)


def known(project: Project) -> dict[str, Any]:
    """The stages of dvc.lock."""
    try:
        return dvc.read_lock(project.root / "dvc.lock")
    except ValueError as error:
        raise GrapeError(f"it is damaged: {error}", where="dvc.lock", mend="`grape run` restores it") from error


def draw(project: Project, targets: list[str], status: Status) -> Plan:
    """The plan of `targets` (empty: everything), given the answer of `dvc status`."""
    graph = dvc.graph(project)
    if targets:
        graph = graph.select(targets)
    lock = known(project)
    folder = cache(lambda: dvc.cache_folder(project))  # asked for once, and only when an output is not as it was
    return make(graph, status, lock, yamlfile.read(project.params), lambda md5: dvc.cached(folder(), md5))
