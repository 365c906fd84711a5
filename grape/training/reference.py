"""Reference log-probabilities of fixed rows, computed once and kept by content: DPO reads the same ones in every epoch and run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from grape.files import replacing
from grape.models.chat import Row
from grape.models.encode import collate
from grape.models.forward import Dtype, batched_language
from grape.models.lora import adapters_off
from grape.models.protocols import LanguageModel


def row_key(row: Row) -> str:
    text = "|".join(",".join(map(str, part)) for part in row)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def reference_logp(
    model: LanguageModel, identity: str, rows: Sequence[Row], pad_id: int, folder: Path, max_tokens: int, dtype: Dtype = "float32"
) -> list[Tensor]:
    """log pi_ref(y_t | s_t) of every row, (T_i,) each, nats.

    Args:
        model: the reference, or the policy with adapters over it, which count for nothing here.
        identity: of the reference's weights (a digest): another reference has other files.
        folder: where they are kept; a file that cannot be read is made again.
    """
    path = folder / f"{hashlib.sha256(f'{identity} {dtype}'.encode()).hexdigest()[:32]}.safetensors"
    known: dict[str, Tensor] = {}
    if path.is_file():
        try:
            known = load_file(str(path))
        except Exception:  # safetensors raises its own kind for a file that was cut short
            known = {}
    keys = [row_key(row) for row in rows]
    missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
    if missing:
        batch = collate(list(missing.values()), pad_id).to(model.device)
        with adapters_off(model):
            logp = batched_language(model, batch, 1.0, max_tokens, dtype).logp
        for key, row, values in zip(missing, missing.values(), logp.cpu(), strict=True):
            known[key] = values[: len(row[1])].clone()
        with replacing(path, shared=True) as beside:
            save_file(known, str(beside))
    return [known[key] for key in keys]
