"""The model card: README.md in Hugging Face's format, written from dvc.lock, receipts and the evaluation's record. What nobody has
measured or said does not stand in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape.errors import GrapeError
from grape.evaluation.record import Evaluation, Interval, Side
from grape.export.lineage import Lineage, Records, hub_data, param, stage_of

TABLES = {"corpus": "corpus", "sft": "demonstrations", "train": "training prompts", "validation": "validation prompts"}
TABLES |= {"test": "test prompts", "judgements": "judgements", "preferences": "labelled pairs"}
FOLDERS = {"corpus": "data/corpus", "sft": "data/sft"}
FOLDERS |= {split: f"data/prompts/{split}.jsonl" for split in ("train", "validation", "test")}
FOLDERS |= {"judgements": "data/judgements", "preferences": "data/labelled"}
READER = "AutoModelForSequenceClassification"


@dataclass(frozen=True)
class About:
    """What the card is of, and what is said of it beside its lineage.

    Attributes:
        license: an identifier of the hub's list. base: the hub's name of the model it began as; None: none has one.
        notes: lines on how the files were written. proof: the replay, in words.
    """

    stage: str
    lineage: Lineage
    dtype: str
    license: str
    base: str | None
    notes: Sequence[str]
    proof: str
    adapter: bool = False

    @property
    def algorithm(self) -> str | None:
        return self.stage.removeprefix("rl@").rpartition("-")[0] if self.stage.startswith("rl@") else None

    @property
    def answers(self) -> bool:
        """Whether it writes text; a reward model does not."""
        return self.stage != "reward"


def text(about: About, found: Evaluation | None) -> str:
    """
    Args:
        found: what `evaluate` says of these very weights; None: nothing.
    """
    from huggingface_hub import ModelCard

    body = "\n".join(_body(about, found))
    return str(ModelCard(f"---\n{_front(about, found).to_yaml()}\n---\n\n{body}")).rstrip() + "\n"


def _front(about: About, found: Evaluation | None) -> Any:
    from huggingface_hub import ModelCardData

    results = list(_measured(about, found))
    tags = ["grape", *([about.algorithm] if about.algorithm else []), *(["reward-model"] if not about.answers else [])]
    return ModelCardData(
        license=about.license,
        library_name="peft" if about.adapter else "transformers",
        pipeline_tag="text-generation" if about.answers else "text-classification",
        base_model=about.base,
        tags=tags,
        model_name=about.stage if results else None,
        eval_results=results or None,
    )


def _measured(about: About, found: Evaluation | None) -> Iterator[Any]:
    """The scores as the hub's model index has them."""
    from huggingface_hub import EvalResult

    side = _side(about, found)
    for name, value in (("gold", side.gold), ("proxy", side.proxy)) if side and found else ():
        if value is not None and found is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type="test-prompts",
                dataset_name="test prompts (data/prompts/test.jsonl)",
                dataset_args={"md5": _digest(about.lineage, "data/prompts/test.jsonl")},
                metric_type=name,
                metric_name=f"{name} score, mean of {found.prompts} prompts",
                metric_value=value.mean,
            )


def _side(about: About, found: Evaluation | None) -> Side | None:
    """The results of this model in an evaluation: a policy's, or of the SFT model it came from."""
    return None if found is None else found.policy if about.stage.startswith("rl@") else found.sft


def evaluation(records: Records, lineage: Lineage) -> Evaluation | None:
    """What reports/test says of these weights; None: nothing, or of others, or it is not what dvc.lock names."""
    model = lineage["artifact"]
    for name, entry in records.lock.items():
        read = {dep["path"]: dep.get("md5") for dep in entry.get("deps") or []}
        if not name.startswith("test@") or read.get(model["path"]) != model["md5"]:
            continue
        folder = f"reports/test/{name.removeprefix('test@')}"
        if model["path"] not in ("models/sft", f"models/policy/{name.removeprefix('test@')}"):
            continue
        if folder in records.makers and records.state(folder, records.makers[folder][1]) == "same":
            path = records.project.root / folder / "metrics.json"
            try:
                return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise GrapeError("this is not what test writes", where=str(path), mend=f"run it: grape run {name}") from error
    return None


def _body(about: About, found: Evaluation | None) -> Iterator[str]:
    yield f"# {about.stage}\n"
    yield from _introduction(about)
    yield from _use(about)
    yield "\n## Results\n"
    yield from _results(about, found)
    yield "\n## Replay\n"
    yield about.proof
    yield "\n## Training\n"
    yield from _training(about)
    yield "\n## Data\n"
    yield from _data(about.lineage)
    yield "\n## Lineage\n"
    yield from _lineage(about.lineage)
    yield "\n## Licence\n"
    if about.license == "unknown":
        yield "Unknown. The licences of the base model and of the data say what may be done with this model."
    else:
        yield f"{about.license}, as whoever exported it says. The licences of the base model and of the data hold as well."


def _introduction(about: About) -> Iterator[str]:
    what = {"base": "The base model", "sft": "The instruction-tuned model", "critic": "The judge of rubric items"}
    what |= {"reward": "The reward model, one score for a conversation with its answer"}
    told = what.get(about.stage.partition("@")[0], f"A policy trained with {about.algorithm} from the instruction-tuned model")
    yield f"{told} of a [grape](https://arxiv.org/abs/2509.04501) pipeline. Weights: {about.dtype}."
    base = stage_of(about.lineage, "base")
    if base:
        named, revision = param(base, "model.base"), param(base, "model.revision")
        if named == "scratch":
            yield f"Base model: a {param(base, 'model.architecture')} trained from scratch on the corpus below."
        else:
            shown = str(named) if about.base == named else Path(str(named)).name  # where it lay is nobody's business
            yield f"Base model: `{shown}`" + (f", revision `{revision}`" if revision else "") + "."
    cards = [s["says"] for s in about.lineage["sources"] if s["path"] == "inputs/model.base" and "says" in s]
    yield from (card.partition(". ")[0] + "." for card in cards if "md5" in card)
    for note in about.notes:
        yield f"\n{note}"


def _use(about: About) -> Iterator[str]:
    if about.adapter:
        yield "\n```python\nfrom peft import AutoPeftModelForCausalLM\n"
        yield 'model = AutoPeftModelForCausalLM.from_pretrained("THIS FOLDER OR REPOSITORY")\n```'
    elif about.answers:
        yield "\n```python\nfrom transformers import pipeline\n"
        yield 'talk = pipeline("text-generation", "THIS FOLDER OR REPOSITORY")'
        yield 'print(talk([{"role": "user", "content": "..."}])[0]["generated_text"][-1]["content"])\n```'
    else:
        yield f"\n`{READER}`; the score is read at the answer's last token, its end of turn."


def _interval(value: Interval | None, sign: str = "") -> str:
    return "" if value is None else f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _results(about: About, found: Evaluation | None) -> Iterator[str]:
    side = _side(about, found)
    if found is None or side is None:
        yield "No evaluation is of these weights."
        return
    yield f"On {found.prompts} test prompts, {found.samples} sampled answers each; intervals by bootstrap over prompts."
    yield "*Gold* is a truth that training never saw, *proxy* the reward it was trained on.\n"
    policy = side is found.policy
    yield "| | this model |" + " SFT | difference |" * policy
    yield "| --- | --- |" + " --- | --- |" * policy
    for name in ("gold", "proxy"):
        own, sft, gain = (getattr(part, name) for part in (side, found.sft, found.difference))
        if own is not None:
            yield f"| {name} | {_interval(own)} |" + f" {_interval(sft)} | {_interval(gain, '+')} |" * policy
    yield f"| length, tokens | {side.length:.1f} |" + f" {found.sft.length:.1f} | |" * policy
    yield f"| finished answers | {side.finished:.3f} |" + f" {found.sft.finished:.3f} | |" * policy
    if policy:
        yield f"| wins against SFT ({found.win_rate.judge}) | {_interval(found.win_rate)} | | |"
        yield f"| KL to SFT, nats per token | {found.kl.token:.4f} | | |"


def _training(about: About) -> Iterator[str]:
    own = about.lineage["stages"][0]
    yield f"The parameters that `{own['stage']}` read; those of the stages before it are in `grape.json`.\n"
    yield "```yaml"
    yield from _flat(own["params"])
    yield "```"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}: {json.dumps(inner, ensure_ascii=False)}"


def _data(lineage: Lineage) -> Iterator[str]:
    prepare = stage_of(lineage, "prepare")
    if prepare is None:
        yield "No data set went into this model."
        return
    rows = (prepare["run"] or {}).get("headline") or {}
    outs = {out["path"]: out["md5"] for out in prepare["outputs"]}
    used = {dep["path"] for stage in lineage["stages"] for dep in stage["inputs"]}
    yield "| data | rows | md5 |\n| --- | --- | --- |"
    for table, said in TABLES.items():
        folder = FOLDERS[table]
        if folder in used and folder in outs and rows.get(f"rows/{table}"):
            yield f"| {said} ({folder}) | {rows[f'rows/{table}']:.0f} | `{outs[folder]}` |"
    made = next((out for stage in lineage["stages"] for out in stage["outputs"] if out["path"] == "data/preferences"), None)
    if made:
        pairs = (stage_of(lineage, "preferences") or {}).get("run") or {}
        yield f"| pairs (data/preferences) | {pairs.get('headline', {}).get('pairs', 0):.0f} | `{made['md5']}` |"
    yield ""
    for source in lineage["sources"]:
        if not source["path"].startswith("inputs/"):
            yield f"- `{source['path']}`, md5 `{source['md5']}`"
    for table, source in hub_data(prepare).items():
        yield f"- {table}: {source}"


def _lineage(lineage: Lineage) -> Iterator[str]:
    yield "Every stage with its inputs and outputs is in `grape.json`; `grape trace` prints it.\n"
    yield "| stage | made | md5 | git revision | MLflow run |\n| --- | --- | --- | --- | --- |"
    for stage in lineage["stages"]:
        run = stage["run"] or {}
        made = next((o for o in stage["outputs"] if o["path"].startswith("models/")), stage["outputs"][0])
        revision = f"{run['git_revision']}{' with changes' * bool(run['git_dirty'])}" if run.get("git_revision") else ""
        yield f"| {stage['stage']} | {made['path']} | `{made['md5']}` | {revision} | {run.get('run_id') or ''} |"
    if lineage["problems"]:
        yield "\nWhat was no longer so when it was exported:\n"
        yield from (f"- {problem}" for problem in lineage["problems"])


def _digest(lineage: Lineage, path: str) -> str | None:
    return next((o["md5"] for stage in lineage["stages"] for o in stage["outputs"] if o["path"] == path), None)
