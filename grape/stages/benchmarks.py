"""Standard benchmarks of a model, measured once and kept by content as its answers are, and a policy's beside SFT's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

import numpy as np

from grape.evaluation import harness
from grape.evaluation.kept import kept, key
from grape.evaluation.record import Benchmark
from grape.evaluation.statistics import Bootstrap
from grape.models.load import device
from grape.randomness import key as random_key
from grape.stages.answers import FOLDER, Evaluated
from grape.stages.stage import Stage
from grape.track import digest

# Of the stage's inputs, those that decide what a model gets there besides its weights, the tasks and their knobs.
DECIDING = (
    "seed",
    "model.dtype",
    "model.template",
    "grape/evaluation",
    "grape/models",
    "grape/stages/benchmarks.py",
    "grape.version",
)


def benchmarked(stage: Stage, model: Evaluated) -> harness.Measured:
    """Every task's metrics; {} where no tasks are asked for."""
    knobs = stage.params.evaluate.benchmarks
    if not knobs.tasks:
        return {}
    tasks = {name: getattr(knobs, name) for name in ("tasks", "folder", "limit", "fewshot", "batch", "chat")}
    folder = harness.folder_of(knobs.folder, stage.project.root)
    files = digest.computed(folder, stage.project) if folder else None
    runs = [harness.installed(), *(f"{package} {version(package)}" for package in ("datasets", "torch", "transformers"))]
    rest = {name: value for name, value in stage.identity().items() if name in DECIDING}
    what = {"model": model.identity, "tasks": tasks, "files": files, "rest": rest, "packages": runs, "device": device().type}
    found: harness.Measured = kept(stage.project.state / FOLDER / f"{key(what)}.json", partial(_measured, stage, model))
    return found


def _measured(stage: Stage, model: Evaluated) -> harness.Measured:
    knobs, chat = stage.params.evaluate.benchmarks, model.chat
    print(f"{stage.name}: {model.name} on {', '.join(knobs.tasks)}", flush=True)
    seed = random_key(stage.params.seed, "evaluate", "benchmarks") % 2**32
    tokenizer, arguments = chat.tokenizer, dict(stage.params.model.template.arguments)
    tokenizer.chat_template = chat.template  # with the date of model.template
    return harness.measure(model.model, tokenizer, arguments, knobs, stage.project.root, seed, stage.params.model.dtype)


def beside(base: harness.Measured, sft: harness.Measured, own: harness.Measured, over: Bootstrap) -> Iterator[Benchmark]:
    """A policy's metrics beside SFT's, document by document where a metric is a mean over documents."""
    for task, metrics in own.items():
        for metric, found in metrics.items():
            before, origin = sft[task][metric], base.get(task, {}).get(metric)
            pairs = found["documents"] and before["documents"]
            gain = np.array(found["documents"]) - np.array(before["documents"]) if pairs else None
            yield Benchmark(
                task=task,
                metric=metric,
                higher_is_better=found["higher_is_better"],
                n=found["n"],
                base=None if origin is None else round(origin["value"], 6),
                sft=round(before["value"], 6),
                policy=round(found["value"], 6),
                difference=round(found["value"] - before["value"], 6) if gain is None else over(gain, "benchmark", task, metric),
            )
