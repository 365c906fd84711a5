"""What a stage trains, the weights of a model or adapters over them (`model.lora`), and how the result is saved."""

from __future__ import annotations

from typing import TypeVar

from grape.models.forward import Weights
from grape.models.load import device, save_model
from grape.models.lora import adapt, is_adapted, save_adapter
from grape.models.protocols import Tokenizer, Transformer
from grape.models.quantise import quantise
from grape.randomness import key
from grape.stages.stage import Stage

AnyModel = TypeVar("AnyModel", bound=Transformer)


def kept_in(stage: Stage) -> Weights:
    """What the weights of a model that is about to be trained are loaded in: those below adapters are frozen."""
    how, kept = stage.params.model, stage.params.model.weights
    return kept if how.lora.rank and not how.quantise else "float32"


def trainable(stage: Stage, model: AnyModel, *what: object) -> AnyModel:
    """The model as `model.lora` and `model.quantise` have it trained: as it is, or frozen with adapters on it.

    Args:
        what: the adapters' first weights are drawn for, beside the seed and the stage.
    """
    how = stage.params.model
    if how.quantise:
        model = quantise(model, device(), how.dtype)
    if how.lora.rank:
        seed = key(stage.params.seed, stage.kind, *what, "adapters") % 2**63
        model = adapt(model, how.lora, seed)
    return model


def save_trained(
    stage: Stage, model: Transformer, tokenizer: Tokenizer, name: str, parent: str, revision: str | None = None
) -> None:
    """The folder `name` with weights, or with adapters over `parent`, as params.yaml names models."""
    if is_adapted(model):
        save_adapter(model, tokenizer, stage.path(name), parent, revision)
    else:
        save_model(model, tokenizer, stage.path(name))
