"""`grape export`: checks, the model's weights, the replay, the card; a folder that is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from grape.artifacts import read_prompts
from grape.errors import GrapeError
from grape.export import card, folder, gguf, replay
from grape.export.checks import Order, full_disk, is_hub_id, model_path, recorded, refuse_place, refuse_settings
from grape.export.lineage import ABOUT, Lineage, Records, of_path, param, stage_of
from grape.files import read_json, replacing, write_json, write_text
from grape.models.chat import Chat
from grape.models.folder import ADAPTER
from grape.models.load import device, load_language_model, load_scalar_model, load_tokenizer, place
from grape.models.protocols import LanguageModel, Tokenizer
from grape.models.template import Template
from grape.params import Params, load
from grape.project import Project
from grape.track import digest
from grape.types import Prompt


def export(project: Project, stage: str, target: Path, order: Order, say: Callable[[str], None]) -> None:
    """Write the model of a stage into a new or empty folder.

    Raises:
        GrapeError: as the checks above; a disk that is full; a replay that differs. Nothing is then left behind.
    """
    path = model_path(stage)
    refuse_settings(stage, order)
    converter = gguf.converter() if order.gguf else []
    refuse_place(project, target)
    md5 = recorded(project, stage, path)
    params = load(project.params, [])
    lineage = of_path(Records(project), path)
    with full_disk(project.root), replacing(target.resolve()) as beside:
        made = _adapter if order.adapter else _scalar if stage == "reward" else _language
        files = made(Job(project, params, stage, lineage, order, beside))
        if order.gguf:
            say(f"converting to GGUF with {converter[-1]}")
            gguf.convert(converter, beside, stage.replace("@", "-"), files.dtype)
        _finish(project, lineage, files, beside)
    say(f"{target}: {stage} ({path}, md5 {md5}), {files.dtype}, {digest.size(target) / 1e6:.1f} MB")
    say(f"replay: {files.proof}")


@dataclass(frozen=True)
class Job:
    """One export: what is asked for, and where it is written."""

    project: Project
    params: Params
    stage: str
    lineage: Lineage
    order: Order
    place: Path

    @property
    def source(self) -> str:
        return str(self.project.root / self.lineage["artifact"]["path"])

    def chat(self, tokenizer: Tokenizer, model: LanguageModel | None = None) -> Chat:
        """With the template as the stage had it: params.yaml may say otherwise by now."""
        said = param(self.lineage["stages"][0], "model.template")
        return Chat(tokenizer, Template.model_validate(said), model)

    @property
    def hub_base(self) -> str | None:
        """The hub's name of the model that the base stage began with: told, or model.base where that is one."""
        base = stage_of(self.lineage, "base")
        named = str(param(base, "model.base")) if base else "scratch"
        return self.order.base or (named if place(named, self.project.root) == named and is_hub_id(named) else None)


def _language(job: Job) -> card.About:
    """Merged weights, compared with what plain transformers makes of them."""
    dtype = job.order.dtype or "float32"
    model, tokenizer = load_language_model(job.source)
    chat = job.chat(tokenizer, model.to(device()))
    folder.refuse_full(job.place, folder.bytes_of(model, dtype) * (2 if job.order.gguf else 1))
    positions, longest = job.params.model.positions, job.params.rl.max_new_tokens
    asked = job.order.replay != 0
    prompts = replay.usable(chat, _validation(job.project), positions - longest, job.order.replay) if asked else []
    policy = replay.greedy(model, chat, prompts, longest, positions)
    if dtype != "float32":
        folder.in_dtype(model, dtype, job.source)
    own = policy if dtype == "float32" else replay.greedy(model, chat, prompts, longest, positions)
    left = folder.write(model, chat, job.place)
    notes = [f"Left out of the base's generation config, since it was trained without: {', '.join(left)}."] if left else []
    proof = "Not made (--replay 0)."
    if prompts:
        plainly = replay.plainly(job.place, [prompt.messages for prompt in prompts], [longest] * len(prompts))
        found = replay.compare(chat, dtype, policy, own, plainly)
        if found.difference:
            mend = "this should not be: please report it; --replay 0 exports without the proof"
            raise GrapeError(f"the exported model answers otherwise: {found.line()}", where=job.stage, mend=mend)
        proof = f"{found.line()}. Plain transformers {version('transformers')} loaded this folder in a process of its own."
    return card.About(job.stage, job.lineage, dtype, job.order.license, job.hub_base, notes, proof)


def _validation(project: Project) -> list[Prompt]:
    path = project.root / "data/prompts/validation.jsonl"
    if not path.is_file():
        mend = "bring them back: grape run prepare; or use --replay 0"
        raise GrapeError("there are no validation prompts to replay", where="data/prompts/validation.jsonl", mend=mend)
    return read_prompts(path)


def _scalar(job: Job) -> card.About:
    dtype = job.order.dtype or "float32"
    model, tokenizer = load_scalar_model(job.source)
    folder.refuse_full(job.place, folder.bytes_of(model, dtype))
    folder.write_scalar(folder.in_dtype(model, dtype, job.source), job.chat(tokenizer), job.place)
    proof = "Not made: a reward model answers nothing."
    return card.About(job.stage, job.lineage, dtype, job.order.license, job.hub_base, [], proof)


def _adapter(job: Job) -> card.About:
    """The adapter as it was trained, told the hub's name of the model it belongs to."""
    source = Path(job.source)
    if not (source / ADAPTER).is_file():
        mend = "leave --adapter out, or train with adapters"
        raise GrapeError(f"{job.stage} has plain weights and no adapter", where=job.lineage["artifact"]["path"], mend=mend)
    config = read_json(source / ADAPTER)
    name, revision = _adapted(job, str(config.get("base_model_name_or_path")))
    shutil.copytree(source, job.place)
    chat = job.chat(load_tokenizer(job.source))
    folder.write_tokenizer(chat, job.place)
    write_json(job.place / ADAPTER, {**config, "base_model_name_or_path": name, "revision": revision})
    notes = [f"An adapter in PEFT's format, to be put on `{name}`."]
    proof = "Not made: an adapter answers with its base alone."
    return card.About(job.stage, job.lineage, "as trained", job.order.license, name, notes, proof, adapter=True)


def _adapted(job: Job, parent: str) -> tuple[str, str | None]:
    """The hub's name and revision of the model in the project's folder `parent`.

    Raises:
        GrapeError: it was trained here, so that only its owner knows what it is called.
    """
    if job.order.base:
        return job.order.base, None
    base, sft = stage_of(job.lineage, "base"), stage_of(job.lineage, "sft")
    tuned = Path(parent).name == "sft" and sft is not None and param(sft, "sft.steps")
    headline = (base or {}).get("run") or {}
    if tuned or base is None or "loss" in headline.get("headline", {"loss": 0}) or job.hub_base is None:
        what = f"the adapter belongs to {parent}, which was made here: nobody else could load it without that model's name"
        mend = "push that model, and name it: --base OWNER/NAME; or export merged weights, without --adapter"
        raise GrapeError(what, where="--adapter", mend=mend)
    return job.hub_base, param(base, "model.revision")


def _finish(project: Project, lineage: Lineage, about: card.About, beside: Path) -> None:
    """The card, and grape.json: the lineage with the md5 of every file."""
    write_text(beside / "README.md", card.text(about, card.evaluation(Records(project), lineage)))
    files = {f.relative_to(beside).as_posix(): digest.computed(f) for f in sorted(beside.rglob("*")) if f.is_file()}
    told = {"grape": version("grape"), "stage": about.stage, "dtype": about.dtype, "replay": about.proof}
    kept = {name: md5 for name, md5 in files.items() if name != "README.md"}  # people go on writing the card
    write_json(beside / ABOUT, {**told, "files": kept, "lineage": lineage})
