"""`grape doctor --fit`: the memory each stage will take at its peak, from params.yaml and the model's config alone.

No weight is loaded: the model is made of tensors without content (torch's FakeTensorMode), and what its forward pass would keep for
the way back is counted tensor by tensor, whatever its architecture. How the numbers are put together stands in docs/memory.md;
benchmarks/memory.py compares them with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForCausalLM

from grape import memory
from grape.algorithms.base import OnlineParams, ValueParams
from grape.models.checkpointing import checkpointed
from grape.models.forward import Dtype, Weights, autocast
from grape.models.head import CHUNK, CHUNK_OF_ACCELERATORS
from grape.models.load import _loading, _source, device, place
from grape.models.scratch import character_tokenizer, scratch
from grape.params import Params
from grape.project import Project
from grape.reward.rubric import load_rubrics
from grape.sampling import row_bytes

MIB = 2**20
PROGRAM = 480 * MIB  # Python with torch, transformers and datasets, before a model is there; docs/memory.md
# (tokens, V) numbers in float32 that are alive at once while a chunk's log-softmax is differentiated, and without gradient.
HEAD_BACKWARD, HEAD_FORWARD = 5, 4


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
        always = PROGRAM + self.weights + self.frozen + self.optimiser
        return always + max(self.gradients + self.activations + self.logits, self.cache)


def training(stage: str, size: Size, trainable: int, *, frozen: int = 0, cache: int = 0, micro: int, head: bool = True) -> Footprint:
    """A stage that trains `trainable` of a model's weights with Adam, in float32.

    Args:
        frozen: bytes of other models. cache: bytes that sampling takes, where it samples. micro: positions of a micro-batch.
        head: whether it ends in logits over a vocabulary.
    """
    chunk = min(micro, max(1, _chunk() // size.vocabulary))
    # The head's gradient is made chunk by chunk: the sum so far, and what is being added.
    of_head = 2 * 4 * size.head if head and trainable >= size.weights else 0
    return Footprint(
        stage, 4 * size.weights + 4 * (trainable if trainable < size.weights else 0), frozen, 8 * trainable, 4 * trainable,
        size.kept, HEAD_BACKWARD * 4 * chunk * size.vocabulary * head + of_head, cache,
    )  # fmt: skip


def asking(stage: str, size: Size, *, frozen: int, cache: int, micro: int, models: int = 1) -> Footprint:
    """A stage that only asks its models: samples, and computes log-probabilities of `models` at once."""
    chunk = min(micro, max(1, _chunk() // size.vocabulary))
    return Footprint(stage, 0, frozen, 0, 0, size.wide, HEAD_FORWARD * models * 4 * chunk * size.vocabulary, cache)


def _chunk() -> int:
    return CHUNK.get(device().type, CHUNK_OF_ACCELERATORS)


def adapters(model: Any, rank: int) -> int:
    """Weights of adapters of this rank on every matrix of the blocks (grape.models.lora); all of the model's for rank 0."""
    if rank == 0:
        return sum(p.numel() for p in model.parameters())
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(rank * sum(p.shape) for p in model.parameters() if p.dim() == 2 and id(p) not in outside)


def sized(config: Any, rows: int, width: int, dtype: Dtype, checkpointing: bool, rank: int = 0) -> tuple[Size, int]:
    """The size of the model of a config with a micro-batch of so many rows and tokens, and how many weights are trained."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        trainable, own = adapters(model, rank), {p.untyped_storage()._cdata for p in model.parameters()}
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

    ids = torch.zeros(rows, width, dtype=torch.long)
    given = {
        "input_ids": ids,
        "position_ids": torch.arange(width).expand(rows, width),
        "attention_mask": torch.ones(rows, 1, width, width, dtype=torch.bool),
    }
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
    width = min(model.positions, model.micro_batch_tokens)
    micro = max(model.micro_batch_tokens // width, 1) * width
    size, every = sized(config, micro // width, width, model.dtype, model.checkpointing)
    trainable = sized(config, 1, 16, model.dtype, False, rl.lora_rank)[1] if rl.lora_rank else every
    frozen = size.weights * getattr(torch, model.weights).itemsize
    kinds = {item.kind for rubric in load_rubrics(project.root / "rubrics").values() for item in rubric.items}
    judges = frozen * (("critic" in kinds and params.critic.judge.backend == "trained") + ("reward_model" in kinds))

    def cache(rows: int, weights: Weights) -> int:
        longest = model.positions
        return min(rows * row_bytes(config, longest, model.dtype, getattr(torch, weights)), memory.free_bytes(device()) // 4)

    needs = [training(name, size, every, micro=micro) for name in ("base", "sft", "critic") if getattr(params, name).steps]
    preferences = params.preferences
    if preferences.source != "people":
        asked = cache(preferences.prompts * preferences.samples, model.weights)
        needs.append(asking("preferences", size, frozen=frozen + judges, cache=asked, micro=micro))
    needs.append(training("reward", size, every, micro=micro, head=False))
    for name in rl.algorithms:
        slot, knobs = params.slot(name), params.algorithm(name)
        online = slot.data == "rollouts"
        wanted = slot.needs(knobs)
        own_value = "value" in wanted and isinstance(knobs, ValueParams) and knobs.value != "head"
        rounds = (knobs.rounds if isinstance(knobs, OnlineParams) else None) or rl.steps
        rows = rl.prompts * rl.steps // rounds * rl.samples
        others = frozen * ("reference" in wanted or online and rl.kl_every > 0) + judges * online
        sampled = cache(rows, "float32") if online else 0
        need = training(f"rl@{name}", size, trainable, frozen=others, cache=sampled, micro=micro)
        needs.append(twice(need, size) if own_value else whole(need, size, rows, trainable) if slot.update != "adam" else need)
    asked = cache(params.evaluate.samples * 256, model.weights)
    return [*needs, asking("evaluate", size, frozen=2 * frozen + judges, cache=asked, micro=micro, models=2)]
