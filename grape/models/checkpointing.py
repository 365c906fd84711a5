"""Gradient checkpointing (`model.checkpointing`): of a block only its input is kept, all else is computed again on the way back.

transformers' own switch acts on modules in training mode alone, and every model is in eval mode here (dropout would make pi_theta
another distribution than the one that was sampled). So each block's forward is wrapped; what is computed is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from grape.errors import GrapeError
from grape.models.protocols import AnyTransformer


def checkpointed(model: AnyTransformer, wanted: bool = True) -> AnyTransformer:
    """The model with checkpoints around its blocks wherever a gradient is wanted, with `wanted`. Returns the model.

    Raises:
        GrapeError: transformers knows no blocks of this architecture that may be computed twice.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if wanted else []
    if wanted and not blocks:
        raise GrapeError(
            f"models of the type {model.config.model_type} have no blocks that can be checkpointed",
            where="params.yaml, model.checkpointing",
            mend="set it to false, and set GRAPE_MICRO_BATCH_TOKENS to 512 or less where memory is short",
        )
    for block in blocks:
        block.forward = partial(_twice, block.forward)
    return model


def _twice(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Without gradient (rollouts, the reference) and with a cache, which would be written twice, the plain forward."""
    if not torch.is_grad_enabled() or kwargs.get("use_cache") or kwargs.get("past_key_values") is not None:
        return forward(*args, **kwargs)
    # No dropout, so no state of a generator to keep; not reentrant, so that weights alone may want a gradient, and twice (TRPO).
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
