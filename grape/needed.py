"""Which of the stages critic, preferences and reward anybody needs. The others are not run: they only write down why.

So does one of them that runs and finds nothing to make (no pair, since every group of answers is a tie): what reads it refuses
with that reason, and all the others go on.

DVC's graph cannot ask an algorithm, a knob or a rubric what it reads. So each of these stages depends on a card, `inputs/STAGE`,
that says whether anybody reads what the stage makes, and nothing else: the stage runs again when that answer changes, not
whenever an algorithm is added. Before each run or plan grape writes the cards anew; a stage that finds its card untrue refuses.

To answer, the algorithms' code is loaded, and with it torch. The answer is therefore kept beside what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

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
CARDS = frozenset(f"{FOLDER}/{stage}" for stage in REASONS)
NOTE = "NOT_NEEDED.json"  # what stands in a folder that a stage did not need to make
KEY = "not_needed"  # likewise in a file of records, and in the receipt's facts
UNMADE = "NOT_MADE.json"  # what stands in a folder that a stage had nothing to make from
UNMADE_KEY = "not_made"
_CODE = ("needed.py", "params.py", "schema.py", "slot.py", "reward/rubric.py")
_ASK = "import sys; from grape.needed import main; sys.exit(main())"


def answered(params: Params, root: Path) -> tuple[str, ...]:
    """The stages that nobody needs.

    Raises:
        GrapeError: the rubrics are wrong, or pairs are to be judged by critic items and there is none.
    """
    from grape.algorithms.base import OnlineParams, ValueParams
    from grape.reward.rubric import load_rubrics

    slots = [(params.slot(name), params.algorithm(name)) for name in params.rl.algorithms]
    rewards = {knobs.reward or params.rl.reward for _, knobs in slots if isinstance(knobs, OnlineParams)} | {params.rl.reward}
    scored, source = "rubric" in rewards, params.preferences.source
    rubrics = load_rubrics(root / "rubrics") if scored or source != "people" else {}
    kinds = {item.kind for rubric in rubrics.values() for item in rubric.items}
    values = [knobs for algorithm, knobs in slots if "value" in algorithm.wants(knobs) and isinstance(knobs, ValueParams)]
    model_read = "reward_model" in rewards or (scored and "reward_model" in kinds) or any(v.from_reward_model for v in values)
    pairs_read = any(algorithm.data == "pairs" for algorithm, _ in slots)

    model = model_read or params.reward.when == "always"
    pairs = model or pairs_read
    judged = scored or (pairs and source != "people")
    if pairs and source == "critic" and "critic" not in kinds:
        mend = "set it to rubric or people, or write an item of kind critic"
        raise GrapeError("no rubric has an item for a critic", where="params.yaml, preferences.source", mend=mend)
    made = {"critic": judged and "critic" in kinds, "preferences": pairs, "reward": model}
    return tuple(stage for stage, wanted in made.items() if not wanted)


def declared(project: Project) -> list[str]:
    """The stages whose card dvc.yaml has them depend on."""
    stages = dvc.stages(project)
    return [stage for stage in REASONS if f"{FOLDER}/{stage}" in (stages.get(stage, {}).get("deps") or [])]


def answer(project: Project) -> tuple[str, ...]:
    """Of params.yaml, the rubrics and the algorithms as they are now.

    Raises:
        GrapeError: as `answered` and `params.load` do.
    """
    memo, key = project.state / "needed.json", _identity(project)
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known["identity"] == key:
            return tuple(known["unneeded"])
    from grape.params import load

    found = answered(load(project.params), project.root)
    with suppress(OSError):  # it only spares time
        write_json(memo, {"identity": key, "unneeded": found})
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
        print(json.dumps({"unneeded": answer(Project.find())}))
    except GrapeError as error:
        print(json.dumps({"what": error.what, "where": error.where, "mend": error.mend}))
        return 2
    return 0


def unneeded(project: Project) -> dict[str, str]:
    """Stage -> why nobody needs it, of the stages that have a card."""
    cards = declared(project)
    return {stage: REASONS[stage] for stage in answer(project) if stage in cards} if cards else {}


def card(stage: str, reasons: Collection[str]) -> str:
    how = f"not needed: {REASONS[stage]}" if stage in reasons else "needed"
    return f"# The stage {stage} is {how}. grape keeps this true.\n"


def write(project: Project, reasons: Mapping[str, str]) -> bool:
    """Make every card true; whether one was not."""
    texts = {project.root / FOLDER / stage: card(stage, reasons) for stage in declared(project)}
    wrong = [path for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode()]
    for path in wrong:
        write_text(path, texts[path])
    return bool(wrong)


def left_out(project: Project, stage: str, deps: Collection[str]) -> str | None:
    """Why stage `stage` is not to be run, as its card says; None where it is, or has no card among its dependencies.

    Raises:
        GrapeError: the card is untrue.
    """
    name = f"{FOLDER}/{stage}"
    if stage not in REASONS or name not in deps:
        return None
    path, reasons = project.root / name, asked(project)
    if not path.is_file() or path.read_bytes() != card(stage, reasons).encode():
        raise GrapeError(
            f"{name} does not say whether {stage} is needed now",
            where=f"stage {stage}",
            mend="run `grape run`, or `grape plan` before `dvc repro`: both write it anew",
        )
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
