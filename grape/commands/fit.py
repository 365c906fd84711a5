"""`grape doctor --fit`: the memory each stage will take at its peak, from params.yaml and the model's config alone.

No weight is loaded: the model is made of tensors without content (torch's FakeTensorMode), and what its forward pass would keep for
the way back is counted tensor by tensor, whatever its architecture. How the numbers are put together stands in docs/memory.md;
benchmarks/memory.py compares them with measured peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from grape import memory, needed
from grape.algorithms.base import OnlineParams, ValueParams
from grape.commands import products
from grape.evaluation.record import HELD_OUT
from grape.models import attention
from grape.models.checkpointing import checkpointed
from grape.models.forward import Dtype, Weights, autocast
from grape.models.head import CHUNK, CHUNK_OF_ACCELERATORS, KEPT
from grape.models.load import device, place, read_config
from grape.models.lora import LoRA, linear, targets
from grape.models.micro import VARIABLE, fixed
from grape.models.scratch import character_tokenizer, scratch
from grape.models.shared import can
from grape.params import Params, load
from grape.project import Project
from grape.reward.rubric import load_rubrics
from grape.sampling import row_bytes

MIB = 2**20
PROGRAM = 390 * MIB  # Python with torch and transformers before a model is there, measured: docs/memory.md
# (tokens, V) numbers in float32, fitted to what benchmarks/memory.py measures: of a chunk on the way back, its gradient and what
# the allocator keeps beside it; of a token whose whole distribution is differentiated twice.
GRADIENT, TWICE = 3, 16
# With adapters a layer's output is the sum of two that go at once, while what is kept for the way back stays between the holes. The
# C library keeps these on a CPU: so many bytes more for each that is kept. Fitted likewise.
HOLES = 1.25


@dataclass(frozen=True)
class Size:
    """Of a model: how many weights it has, in its head too; bytes that a micro-batch keeps for the way back; bytes of one block."""

    weights: int
    head: int
    vocabulary: int
    kept: int
    wide: int


@dataclass(frozen=True)
class Footprint:
    """Bytes a stage takes at its peak, by what for; `peak` is less than their sum, since not all is there at once."""

    stage: str
    weights: int = 0
    frozen: int = 0
    optimiser: int = 0
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0

    @property
    def peak(self) -> int:
        """Sampling and training take turns: cache and logits of the one, gradients and activations of the other."""
        always = program() + self.weights + self.frozen + self.optimiser
        return always + max(self.gradients + self.activations + self.logits, self.cache)


def program() -> int:
    """What the program itself takes where the models lie: nothing of an accelerator's memory."""
    return PROGRAM if device().type == "cpu" else 0


def training(
    stage: str, size: Size, trainable: int, *, frozen: int = 0, cache: int = 0, micro: int, head: bool = True, each: int = 4
) -> Footprint:
    """A stage that trains `trainable` of a model's weights with Adam, in float32.

    Args:
        frozen: bytes of other models. cache: bytes that sampling takes, where it samples. micro: positions of a micro-batch.
        head: whether it ends in logits over a vocabulary. each: bytes of a weight below adapters.
    """
    # The head's gradient is made chunk by chunk: the sum so far, and what is being added.
    of_head = 2 * 4 * size.head if head and trainable >= size.weights else 0
    adapted = trainable < size.weights
    weights = each * size.weights + 4 * trainable if adapted else 4 * size.weights
    holes = int(HOLES * size.kept) if adapted and device().type == "cpu" else 0
    return Footprint(
        stage, weights, frozen, 8 * trainable, 4 * trainable, size.kept + holes,
        (of_logits(size, micro) if head else 0) + of_head, cache,
    )  # fmt: skip


def asking(stage: str, size: Size, *, frozen: int, cache: int, micro: int, models: int = 1) -> Footprint:
    """A stage that only asks its models: samples, and computes log-probabilities of `models` at once; their logits, and as much as
    those of one for what comes of them."""
    return Footprint(stage, 0, frozen, 0, 0, size.wide, (models + 1) * 4 * _chunk(size, micro) * size.vocabulary, cache)


def of_logits(size: Size, micro: int) -> int:
    """Bytes of a micro-batch's logits, as many as are ever kept, and of a chunk's gradient."""
    chunk = _chunk(size, micro)
    kept = min(micro, max(KEPT // size.vocabulary, chunk))
    return 4 * size.vocabulary * (kept + GRADIENT * chunk)


def trusted(need: Footprint, size: Size, trainable: int, micro: int, tokens: int) -> Footprint:
    """The same stage with the natural gradient: no moments but the vectors of conjugate gradient, log-probabilities of the whole
    vocabulary for every token of the round before and after a step, and a micro-batch of them differentiated twice."""
    numbers = 2 * tokens + TWICE * micro
    return replace(need, optimiser=0, gradients=8 * 4 * trainable, logits=4 * size.vocabulary * numbers)


def _chunk(size: Size, micro: int) -> int:
    return min(micro, max(1, CHUNK.get(device().type, CHUNK_OF_ACCELERATORS) // size.vocabulary))


def adapters(model: Any, lora: LoRA) -> int:
    """Weights that are trained: those of the adapters, or all of the model's where there are none."""
    if lora.rank == 0:
        return sum(p.numel() for p in model.parameters())
    wanted = targets(model, lora.targets)
    beside = [m for name, m in linear(model).items() if any(f".{name}".endswith(f".{target}") for target in wanted)]
    return sum(lora.rank * sum(cast(torch.Tensor, m.weight).shape) for m in beside)


def sized(config: Any, rows: int, width: int, dtype: Dtype, checkpointing: bool, lora: LoRA) -> tuple[Size, int]:
    """The size of the model of a config with a micro-batch of so many rows and tokens, and how many weights are trained."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        trainable, own = adapters(model, lora), {p.untyped_storage()._cdata for p in model.parameters()}
        wide = _kept(model, own, rows, width, dtype) // max(config.get_text_config().num_hidden_layers, 1)
        kept = _kept(checkpointed(model, checkpointing), own, rows, width, dtype) + (wide if checkpointing else 0)
        head = model.get_output_embeddings().weight
        weights = sum(p.numel() for p in model.parameters())
    return Size(weights, head.numel(), len(head), kept, wide), trainable


def _kept(model: Any, own: set[int], rows: int, width: int, dtype: Dtype) -> int:
    """Bytes that the trunk's forward pass keeps for the way back; its own weights are not counted."""
    found: dict[int, Any] = {}  # the tensors themselves, so that no storage's number is given out again

    def pack(x: Any) -> Any:
        found[x.untyped_storage()._cdata] = x
        return x

    ids, mask = torch.zeros(rows, width, dtype=torch.long), (rows, 1, width, width)
    given: dict[str, Any] = {"input_ids": ids, "position_ids": torch.arange(width).expand(rows, width)}
    if can(model):  # as `grape.models.shared` packs it
        attention.install(model)
        given["layout"], mask = attention.Layout(), (1, 1, 1, 1)
    given["attention_mask"] = torch.ones(mask, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), autocast(dtype, ids.device):
        out = model.base_model(**given, use_cache=False).last_hidden_state
    kept = sum(x.untyped_storage().nbytes() for place, x in found.items() if place not in own)
    return int(kept + out.untyped_storage().nbytes())


def estimate(project: Project, params: Params) -> list[Footprint]:
    """What every stage of the project takes.

    Raises:
        GrapeError: the model's config cannot be read.
    """
    model, rl = params.model, params.rl
    config = config_of(project, params)
    width = min(model.positions, fixed())
    micro = max(fixed() // width, 1) * width
    size, trainable = sized(config, micro // width, width, model.dtype, model.checkpointing, model.lora)
    each = getattr(torch, model.weights).itemsize
    frozen, trained = size.weights * each, partial(training, size=size, trainable=trainable, micro=micro, each=each)
    kinds = {item.kind for rubric in load_rubrics(project.root / "rubrics").values() for item in rubric.items}
    judges = frozen * (
        ("critic" in kinds and params.critic.judge.backend == "trained") + params.reward.members * ("reward_model" in kinds)
    )

    def cache(rows: int, weights: Weights) -> int:
        a_row = row_bytes(config, model.positions, model.dtype, getattr(torch, weights))
        rounded = 2 * size.weights if model.dtype == "bfloat16" and weights == "float32" else 0
        return rounded + min(rows * a_row, memory.free_bytes(device()) // 4)

    needs = [trained(name) for name in ("base", "sft", "critic") if getattr(params, name).steps]
    preferences = params.preferences
    if preferences.source != "people":
        asked = cache(preferences.prompts * preferences.samples, model.weights)
        needs.append(asking("preferences", size, frozen=frozen + judges, cache=asked, micro=micro))
    needs.append(trained("reward", head=False))
    for name in rl.algorithms:
        slot, knobs = params.slot(name), params.algorithm(name)
        online = slot.data == "rollouts"
        wanted = slot.needs(knobs)
        own_value = "value" in wanted and isinstance(knobs, ValueParams) and knobs.value != "head"
        rounds = (knobs.rounds if isinstance(knobs, OnlineParams) else None) or rl.steps
        rows = rl.prompts * rl.steps // rounds * rl.samples
        compared = "reference" in wanted or online and rl.kl_every > 0
        others = frozen * (compared and not model.lora.rank) + judges * online  # adapters are switched off instead
        sampled = cache(rows, "float32") if online else 0
        need = trained(f"rl@{name}", frozen=others, cache=sampled)
        if own_value:
            need = replace(need, **{part: 2 * getattr(need, part) for part in ("weights", "optimiser", "gradients", "activations")})
        if slot.update == "natural_gradient":
            need = trusted(need, size, trainable, micro, rows * rl.max_new_tokens)
        needs.append(need)
    asked = cache(params.evaluate.samples * _held_out(project, params), model.weights)
    return [*needs, asking("evaluate", size, frozen=2 * frozen + judges, cache=asked, micro=micro, models=2)]


def _held_out(project: Project, params: Params) -> int:
    """Prompts of the larger held-out split: as many as were prepared, or will be."""
    return max(_rows(project.root / f"data/prompts/{split}.jsonl", getattr(params.prepare, split)) for split in HELD_OUT)


def _rows(path: Path, otherwise: int) -> int:
    if not path.is_file():
        return otherwise
    with path.open("rb") as file:
        return sum(1 for _ in file)


def examine(project: Project) -> list[Footprint]:
    """`estimate` of the project as its params.yaml stands, without the stages that nobody needs."""
    params, left = load(project.params), needed.unneeded(project)
    return [need for need in estimate(project, params) if need.stage not in left]


def config_of(project: Project, params: Params) -> Any:
    """The config of the model that `model.base` names, or of the one that is trained from scratch.

    Raises:
        GrapeError: it cannot be read.
    """
    model = params.model
    if model.base != "scratch":
        return read_config(place(model.base, project.root), model.revision)
    with torch.device("meta"):
        letters = character_tokenizer([])
        return scratch(model.architecture, model.layers, model.width, model.heads, model.positions, letters, 0).config


def rows(needs: Sequence[Footprint]) -> list[dict[str, Any]]:
    """As `--json` prints them: bytes of each part, the peak, what there is, and whether it fits."""
    there = memory.total_bytes(device())
    parts = [field.name for field in fields(Footprint) if field.name != "stage"]
    return [
        {"stage": need.stage, "program": program(), **{part: getattr(need, part) for part in parts},
         "peak": need.peak, "there": there, "fits": need.peak <= there, "micro_batch_tokens": fixed()}
        for need in needs
    ]  # fmt: skip


def lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """A table in MiB, and what helps where a stage does not fit."""
    columns = [name for name in found[0] if name not in ("there", "fits", "micro_batch_tokens")]
    shown = [list(columns)]
    shown += [[str(row[name] if name == "stage" else round(row[name] / MIB)) for name in columns] for row in found]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]
    short = [row["stage"] for row in found if not row["fits"]]
    end = [
        f"estimates in MiB; this machine's {device().type} has {round(found[0]['there'] / MIB)}",
        f"with micro-batches of {found[0]['micro_batch_tokens']} tokens ({VARIABLE}); large models are trained in "
        "larger ones where these are faster and fit",
    ]
    return [
        *table,
        *end,
        products.line(products.rates(device())),
        *([f"too little for {', '.join(short)}: {memory.MEND}"] if short else []),
    ]
