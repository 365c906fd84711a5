"""LoRA (2106.09685) through PEFT: B A of rank r is trained beside every frozen matrix W of the blocks, W' = W + (alpha / r) B A.

PEFT's layers take the place of the model's linear ones and the model keeps its class. A is random, B zero, so that the model starts
as it was; with the adapters off it is that model, bit for bit, which is why no second copy of the reference is kept. There is no
dropout: the policy that sampled must be the one that is trained.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import save_file
from torch import nn

from grape.errors import GrapeError, nearest
from grape.files import replacing, write_sorted
from grape.models.folder import ADAPTER, ADAPTER_WEIGHTS
from grape.models.protocols import Tokenizer, Transformer

AnyModel = TypeVar("AnyModel", bound=Transformer)
PREFIX = "base_model.model."  # what PEFT's files put before a weight's name
HEAD = "score"  # of a scalar model; it is new, and trained in full


class LoRA(BaseModel):
    """`model.lora` of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    rank: int = Field(ge=0, le=4096)
    alpha: float | None = Field(default=None, gt=0)
    targets: Literal["all-linear"] | list[str] = "all-linear"

    @model_validator(mode="after")
    def _in_effect(self) -> LoRA:
        if not self.rank and (self.alpha is not None or self.targets != "all-linear"):
            raise ValueError("alpha and targets say nothing where rank is 0: raise it, or set them to null and all-linear")
        if not self.targets:
            raise ValueError("targets names no module: list some, or write all-linear")
        return self


def package() -> Any:
    """PEFT, imported where an adapter is used and nowhere else: it takes seconds. Raises GrapeError: it is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which PEFT imports too: it tells of kernels it does without
    try:
        import peft
    except ImportError as error:
        what, mend = f"adapters need the package peft: {error}", "pip install 'grape[lora]'"
        raise GrapeError(what, where="params.yaml, model.lora.rank", mend=mend) from error
    return peft


def linear(model: Transformer) -> dict[str, nn.Module]:
    """The matrices of the blocks that an adapter can stand beside, by name: not the embeddings, not the head."""
    heads = (model.get_output_embeddings(), getattr(model, HEAD, None))
    kinds = ("Linear", "Conv1D", "Linear4bit")  # Conv1D: GPT-2's transposed linear
    return {n: m for n, m in model.named_modules() if type(m).__name__ in kinds and not any(m is head for head in heads)}


def targets(model: Transformer, wanted: str | Sequence[str]) -> list[str]:
    """The last parts of the names of the modules that get an adapter, sorted.

    Raises:
        GrapeError: one of `wanted` is none of the model's linear modules.
    """
    known = sorted({name.rpartition(".")[2] for name in linear(model)})
    if isinstance(wanted, str):
        return known
    for name in wanted:
        if not any(f".{there}".endswith(f".{name}") for there in linear(model)):
            what = f"the model has no linear module {name!r} in its blocks; it has {', '.join(known)}"
            mend = nearest(name, known, "write all-linear, or some of: %s")
            raise GrapeError(what, where="params.yaml, model.lora.targets", mend=mend)
    return sorted(wanted)


def adapt(model: AnyModel, lora: LoRA, seed: int) -> AnyModel:
    """Freeze the model and put adapters of `lora.rank` on it, drawn from `seed` alone; a scalar model's head is trained in full.

    Raises:
        GrapeError: no PEFT, or a target that the model does not have.
    """
    peft, names = package(), targets(model, lora.targets)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        target_modules=names,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in linear(model).values()),
        task_type="SEQ_CLS" if hasattr(model, HEAD) else "CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:  # half-precision weights still have adapters in full
            parameter.data = parameter.data.float()
    if hasattr(model, HEAD):
        getattr(model, HEAD).float().requires_grad_(True)
    model.eval()
    return model


def is_adapted(model: object) -> bool:
    return getattr(model, "peft_config", None) is not None


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The model as it was before `adapt`, bit for bit; one that has no adapters as it is. For passes without gradient."""
    layers = [m for m in model.modules() if hasattr(m, "enable_adapters") and hasattr(m, "base_layer")] if is_adapted(model) else []
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(model: Transformer, tokenizer: Tokenizer, folder: Path, parent: str, revision: str | None = None) -> None:
    """Write the adapters in PEFT's format, with the tokenizer: `folder` is complete or not there, equal weights are equal bytes.

    Args:
        parent: the model they stand on, as params.yaml names models: a path from the project's folder, or a hub id.
    """
    weights = package().get_peft_model_state_dict(model, save_embedding_layers=False)
    scalar = hasattr(model, HEAD)
    if scalar:
        weights |= {f"{HEAD}.{name}": value for name, value in getattr(model, HEAD).state_dict().items()}
    config = model.peft_config["default"].to_dict() | {  # type: ignore[attr-defined]
        "base_model_name_or_path": parent,
        "revision": revision,
        "inference_mode": True,
        "modules_to_save": [HEAD] if scalar else None,
    }
    with replacing(folder) as beside:
        beside.mkdir()
        kept = {PREFIX + name: value.detach().cpu().contiguous() for name, value in sorted(weights.items())}
        save_file(kept, str(beside / ADAPTER_WEIGHTS), metadata={"format": "pt"})
        write_sorted(beside / ADAPTER, {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()})
        tokenizer.save_pretrained(beside)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(beside)


def merged(model: AnyModel, folder: Path) -> AnyModel:
    """Plain weights W + (alpha / r) B A from W and an adapter's folder, everything trainable; a language model's adapter fits a
    scalar model of the same trunk.

    Raises:
        GrapeError: no PEFT, a damaged file, or an adapter of another model.
    """
    peft, mend = package(), "check that it is the adapter of this model; one of the pipeline's own is made again by its stage"
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise GrapeError(f"the adapter has no {ADAPTER_WEIGHTS}", where=str(folder), mend=mend)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.task_type = None  # PEFT's classes for a task add what only its own way of saving needs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that do not fit: they are looked at here
            wrapped = peft.PeftModel(model, config)
            found = wrapped.load_adapter(str(folder), "default")
        plain: AnyModel = wrapped.merge_and_unload()
    except Exception as error:  # PEFT, safetensors and torch each raise their own kinds
        what = f"the adapter cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise GrapeError(what, where=str(folder), mend=mend) from error
    wrong = [*found.unexpected_keys, *(key for key in found.missing_keys if "lora_" in key or "modules_to_save" in key)]
    if wrong:
        what = f"the adapter is of another model: {len(wrong)} of its weights have no place here ({wrong[0]})"
        raise GrapeError(what, where=str(folder), mend=mend)
    if is_adapted(plain):
        del plain.peft_config  # type: ignore[attr-defined]
    plain.requires_grad_(True)
    return plain
