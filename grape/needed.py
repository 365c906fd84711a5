"""Which of the stages critic, preferences and reward anybody needs. The others are not run: they only write down why.

So does one of them that runs and finds nothing to make (no pair, since every group of answers is a tie): what reads it refuses
with that reason, and all the others go on.

DVC's graph cannot ask an algorithm, a knob or a rubric what it reads. So each of these stages depends on a card, `inputs/STAGE`,
that says whether anybody reads what the stage makes, and nothing else: the stage runs again when that answer changes, not
whenever an algorithm is added. And `inputs/runs.yaml`, which dvc.yaml's `foreach` goes through, says of each run of rl, evaluate
and test which of the three it reads: GRPO does not wait for the pairs that DPO beside it learns from, and is not run again when
they change. Before each run or plan grape writes the cards anew; a stage that finds its card untrue refuses.

To answer, the algorithms' code is loaded, and with it torch. The answer is therefore kept beside what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape import dvc, slot, yamlfile
from grape.errors import GrapeError
from grape.files import write_json, write_text
from grape.named import FOLDER
from grape.project import Project

if TYPE_CHECKING:
    from grape.params import Params

# Why a stage is not needed: one sentence, whatever the settings are, so that a card changes when the answer does.
REASONS = {
    "critic": "no rubric that anybody scores by has an item for a critic",
    "preferences": "no algorithm learns from pairs, and no reward model is made",
    "reward": "no algorithm, knob or rubric item reads a reward model, and reward.when is needed",
}
JUDGES = ("critic", "reward")  # of these, what evaluate and test may read
VALIDATION = "validation"  # the validation prompts, of a run that validates while it trains
MAKES = {
    "critic": "models/critic",
    "preferences": "data/preferences",
    "reward": "models/reward",
    VALIDATION: "data/prompts/validation.jsonl",
}
RUNS = f"{FOLDER}/runs.yaml"
WITHOUT = {what: f"{FOLDER}/without/{what}" for what in MAKES}  # a run depends on it in place of what it does not read
CARDS = frozenset({*(f"{FOLDER}/{stage}" for stage in REASONS), *WITHOUT.values(), RUNS})
ANEW = "run `grape run`, or `grape plan` before `dvc repro`: both write it anew"
NOTE = "NOT_NEEDED.json"  # what stands in a folder that a stage did not need to make
KEY = "not_needed"  # likewise in a file of records, and in the receipt's facts
UNMADE = "NOT_MADE.json"  # what stands in a folder that a stage had nothing to make from
UNMADE_KEY = "not_made"
_CODE = ("needed.py", "params.py", "schema.py", "slot.py", "reward/rubric.py")
_ASK = "import sys; from grape.needed import main; sys.exit(main())"


@dataclass(frozen=True)
class Needed:
    """
    Attributes:
        unneeded: the stages that nobody needs. runs: `grpo-0` -> its algorithm and seed, and what its stages read: rl, and
            evaluate, which test reads as well.
        sampled: of each algorithm that learns from its own samples, what draws and scores a round beside the knobs of `rl`.
    """

    unneeded: tuple[str, ...]
    runs: dict[str, dict[str, Any]]
    sampled: dict[str, dict[str, Any]]


def answered(params: Params, root: Path) -> Needed:
    """
    Raises:
        GrapeError: the rubrics are wrong, or pairs are to be judged by critic items and there is none.
    """
    from grape.reward.rubric import load_rubrics

    learners = {name: _learner(params, name) for name in params.rl.algorithms}
    scored = "rubric" in {params.rl.reward, *(reward for reward, _ in learners.values())}
    source = params.preferences.source
    rubrics = load_rubrics(root / "rubrics") if scored or source != "people" else {}
    kinds = {item.kind for rubric in rubrics.values() for item in rubric.items}

    def judges(reward: str | None) -> set[str]:
        """What scoring by `reward` opens."""
        if reward == "rubric":
            return {stage for kind, stage in (("critic", "critic"), ("reward_model", "reward")) if kind in kinds}
        return {"reward"} if reward == "reward_model" else set()

    trained = {name: judges(reward) | more for name, (reward, more) in learners.items()}
    if params.rl.validate_every:
        trained = {
            name: trained[name] | judges(reward or params.rl.reward) | {VALIDATION} for name, (reward, _) in learners.items()
        }
    evaluated = judges(params.rl.reward)
    read = evaluated.union(*trained.values())
    if params.reward.when == "always":
        read.add("reward")
    if "reward" in read:
        read.add("preferences")
    if "preferences" in read and source == "critic" and "critic" not in kinds:
        mend = "set it to rubric or people, or write an item of kind critic"
        raise GrapeError("no rubric has an item for a critic", where="params.yaml, preferences.source", mend=mend)
    if "preferences" in read and source != "people":
        read |= judges("rubric") - {"reward"}
    runs = {
        f"{name}-{seed}": {"algorithm": name, "seed": seed, "rl": _paths(reads, *MAKES), "evaluate": _paths(evaluated, *JUDGES)}
        for name, reads in trained.items()
        for seed in params.rl.seeds
    }
    sampled = {name: _round(params, name, reward, judges(reward)) for name, (reward, _) in learners.items() if reward}
    return Needed(tuple(stage for stage in REASONS if stage not in read), runs, sampled)


def _round(params: Params, name: str, reward: str, judges: set[str]) -> dict[str, Any]:
    """What a round of algorithm `name` is scored by, which stages make that, what is drawn again or revised."""
    knobs: Any = params.algorithm(name)  # OnlineParams, as of all that are scored
    return {"reward": reward, "judges": sorted(judges), "resample": knobs.resample, "revise": knobs.revise}


def _learner(params: Params, name: str) -> tuple[str | None, set[str]]:
    """What an algorithm's rollouts are scored by, if it has any, and what else it reads."""
    from grape.algorithms.base import OnlineParams, ValueParams

    algorithm, knobs = params.slot(name), params.algorithm(name)
    valued = "value" in algorithm.wants(knobs) and isinstance(knobs, ValueParams) and knobs.from_reward_model
    more = ({"reward"} if valued else set()) | ({"preferences"} if algorithm.data == "pairs" else set())
    return (knobs.reward or params.rl.reward) if isinstance(knobs, OnlineParams) else None, more


def _paths(read: Collection[str], *what: str) -> dict[str, str]:
    return {one: MAKES[one] if one in read else WITHOUT[one] for one in what}


def declared(project: Project) -> list[str]:
    """The cards that stages of dvc.yaml depend on."""
    found = {dep for stage in dvc.stages(project).values() for dep in stage.get("deps") or [] if isinstance(dep, str)}
    return sorted(found & {f"{FOLDER}/{stage}" for stage in REASONS} | found & {RUNS})


def answer(project: Project) -> Needed:
    """Of params.yaml, the rubrics and the algorithms as they are now.

    Raises:
        GrapeError: as `answered` and `params.load` do.
    """
    memo, key = project.state / "needed.json", _identity(project)
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known["identity"] == key:
            return Needed(tuple(known["unneeded"]), dict(known["runs"]), dict(known["sampled"]))
    from grape.params import load

    found = answered(load(project.params), project.root)
    with suppress(OSError):  # it only spares time
        write_json(memo, {"identity": key, **asdict(found)})
    return found


def _identity(project: Project) -> str:
    """Of all that the answer is made from."""
    package, tree = Path(__file__).parent, yamlfile.read(project.params)
    files = [project.params, *sorted((project.root / "rubrics").glob("*")), *sorted((project.root / "algorithms").glob("*.py"))]
    files += [package / name for name in _CODE] + sorted((package / "algorithms").glob("*.py"))
    names = yamlfile.at(tree, "rl.algorithms")
    for name in names if isinstance(names, list) else ():
        use = yamlfile.at(tree, f"algorithms.{name}.{slot.USE}")
        with suppress(GrapeError):  # refused when the parameters are checked
            files += sorted(slot.code(str(name), use, project.root)) if isinstance(use, str) else []
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def asked(project: Project) -> tuple[str, ...]:
    """`answer`, by a process of its own: a stage opens no rubric and loads no algorithm that it does not declare."""
    done = subprocess.run([sys.executable, "-c", _ASK], cwd=project.root, capture_output=True, encoding="utf-8")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        what = f"what the algorithms need could not be found out: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}"
        raise GrapeError(what, where="params.yaml, rl.algorithms", mend="`grape plan` shows the cause") from error
    if done.returncode:
        raise GrapeError(found["what"], where=found["where"], mend=found["mend"])
    return tuple(found["unneeded"])


def main() -> int:
    """The answer for the project of the working directory, or the refusal, as JSON; for `asked`."""
    try:
        print(json.dumps({"unneeded": answer(Project.find()).unneeded}))
    except GrapeError as error:
        print(json.dumps({"what": error.what, "where": error.where, "mend": error.mend}))
        return 2
    return 0


def unneeded(project: Project) -> dict[str, str]:
    """Stage -> why nobody needs it, of the stages that have a card."""
    cards = declared(project)
    return {stage: REASONS[stage] for stage in answer(project).unneeded if f"{FOLDER}/{stage}" in cards} if cards else {}


def card(stage: str, reasons: Collection[str]) -> str:
    how = f"not needed: {REASONS[stage]}" if stage in reasons else "needed"
    return f"# The stage {stage} is {how}. grape keeps this true.\n"


def write(project: Project, reasons: Mapping[str, str]) -> bool:
    """Make every card true; whether one was not."""
    cards = declared(project)
    texts = {f"{FOLDER}/{stage}": card(stage, reasons) for stage in REASONS if f"{FOLDER}/{stage}" in cards}
    if RUNS in cards:
        texts[RUNS] = listed(answer(project).runs)
        texts |= {path: f"# Stands for {MAKES[what]} where a run does not read it.\n" for what, path in WITHOUT.items()}
    wrong = [path for path, text in texts.items() if _bytes(project.root / path) != text.encode()]
    for path in wrong:
        (project.root / path).parent.mkdir(parents=True, exist_ok=True)
        write_text(project.root / path, texts[path])
    return bool(wrong)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def listed(runs: Mapping[str, Any]) -> str:
    """`Needed.runs` as inputs/runs.yaml has them: YAML, each run a line of JSON."""
    lines = [f"  {json.dumps(name)}: {json.dumps(run)}" for name, run in runs.items()]
    head = "# The runs of rl, evaluate and test, and what each reads of what not all of them read. grape keeps this true.\nruns:"
    return "\n".join([head, *lines]) + "\n"


def runs(project: Project) -> dict[str, Any]:
    """What `inputs/runs.yaml` says; {} where it is not there.

    Raises:
        GrapeError: it cannot be read.
    """
    path = project.root / RUNS
    found = yamlfile.at(yamlfile.read(path), "runs") if path.is_file() else None
    return {name: run for name, run in found.items() if isinstance(run, dict)} if isinstance(found, dict) else {}


def unlisted(project: Project, tree: Any) -> bool:
    """Whether `inputs/runs.yaml` names other runs than params.yaml, `tree`, asks for."""
    names, seeds = (yamlfile.at(tree, f"rl.{key}") for key in ("algorithms", "seeds"))
    if not isinstance(names, list) or not isinstance(seeds, list):
        return False  # refused when the parameters are checked
    return {f"{name}-{seed}" for name in names for seed in seeds} != set(runs(project))


def left_out(project: Project, stage: str, deps: Collection[str]) -> str | None:
    """Why stage `stage` is not to be run, as its card says; None where it is, or has no card among its dependencies.

    Raises:
        GrapeError: the card is untrue.
    """
    name = f"{FOLDER}/{stage}"
    if stage not in REASONS or name not in deps:
        return None
    reasons = asked(project)
    if _bytes(project.root / name) != card(stage, reasons).encode():
        raise GrapeError(f"{name} does not say whether {stage} is needed now", where=f"stage {stage}", mend=ANEW)
    return REASONS[stage] if stage in reasons else None


def why_not(path: Path) -> str | None:
    """Why a folder, or the folder of a file, was not made; None where it was, or is not there."""
    note = _note(path)
    return str(note["reason"]) if note else None


def _note(path: Path) -> dict[str, str] | None:
    for name in (NOTE, UNMADE):
        with suppress(OSError, ValueError):
            found: dict[str, str] = json.loads(((path.parent if path.suffix else path) / name).read_text(encoding="utf-8"))
            return found
    return None


def made(path: Path) -> Path:
    """`path`, a folder that a stage makes or a file in one, which is about to be read.

    Raises:
        GrapeError: the stage was not needed when it ran, or had nothing to make it from.
    """
    if note := _note(path):
        mend = note.get("mend", "`grape run` looks again at what is needed, and makes it")
        raise GrapeError(f"it was not made, because {note['reason']}", where=str(path), mend=mend)
    return path
