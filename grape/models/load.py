"""From `model.base` to a model and a tokenizer, and back to disk. Everything is transformers' own classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from grape import memory
from grape.errors import GrapeError
from grape.files import replacing
from grape.models.folder import chain
from grape.models.forward import Weights
from grape.models.lora import merged
from grape.models.protocols import AnyTransformer, LanguageModel, ScalarModel, Tokenizer, Transformer
from grape.models.template import CHAT_TEMPLATE

# Stages report what they load themselves; a head that is new on purpose needs no report.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def device() -> torch.device:
    """The machine's accelerator if it has one, or what GRAPE_DEVICE says. A machine fact, so never in params.yaml."""
    named = os.environ.get("GRAPE_DEVICE")
    if named:
        return torch.device(named)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


# Below this many weights the parts of a matrix product are short: handing them to a thread that sleeps costs more than it gives,
# and one that spins meanwhile makes a step several times as long as soon as anything else wants its core (benchmarks/threads.py,
# on one small model; where to draw the line is a judgement).
SMALL = 5_000_000
_threads = {"all": torch.get_num_threads(), "largest": 0}


def fit_threads(model: AnyTransformer) -> AnyTransformer:
    """One CPU thread for a process whose models are all small, every thread the process was given else. Returns the model."""
    _threads["largest"] = max(_threads["largest"], sum(p.numel() for p in model.parameters()))
    torch.set_num_threads(1 if _threads["largest"] < SMALL else _threads["all"])
    return model


def _source(base: str) -> tuple[str, dict[str, str]]:
    """What from_pretrained wants: a hub id or directory, and gguf_file for a GGUF file."""
    path = Path(base)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise GrapeError(
                f"no such file: {base}", where="params.yaml, model.base", mend="give the path of an existing .gguf file"
            )
        return str(path.parent), {"gguf_file": path.name}
    looks_local = base.startswith((".", "/")) or base.count("/") > 1
    if looks_local and not path.is_dir():
        raise GrapeError(
            f"no such directory: {base}",
            where="params.yaml, model.base",
            mend="give a directory that holds config.json and safetensors weights, or a hub id such as org/name",
        )
    return base, {}


def place(base: str, root: Path) -> str:
    """What `model.base` names: a path counts from the project's folder, all else is a hub id."""
    try:
        local = root / Path(base).expanduser()
    except RuntimeError as error:
        raise GrapeError(str(error), where="params.yaml, model.base", mend="write the path out") from error
    return str(local) if local.exists() or base.startswith((".", "/", "~")) else base


def load_tokenizer(base: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer alone.

    Raises: as `load_language_model` does.
    """
    where, revision = chain(base, revision).tokenizer
    source, extra = _source(where)
    with _loading(base):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, **extra)
    return checked_tokenizer(tokenizer, base)


def read_config(base: str, revision: str | None = None) -> Any:
    """The config alone; no weight is read.

    Raises: as `load_language_model` does.
    """
    source, extra = _source(base)
    with _loading(base):
        return AutoConfig.from_pretrained(source, revision=revision, **extra)


@contextmanager
def _loading(base: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers, safetensors, gguf and the hub client each raise their own kinds
        if memory.short(error):
            raise
        raise GrapeError(
            f"the model cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=base,
            mend="check the path or hub id; if a file of the pipeline is damaged, delete its folder and run again",
        ) from error


def load_language_model(base: str, revision: str | None = None, weights: Weights = "float32") -> tuple[LanguageModel, Tokenizer]:
    """A causal language model in eval mode and its tokenizer, from a directory, a GGUF file or the hub; adapters are merged into
    the weights that they stand on, in float32.

    Args:
        weights: what its weights are kept in; less than float32 for models that are not trained.

    Raises:
        GrapeError: nothing there, a damaged weight file, weights that are missing, a tokenizer without EOS, without tokenizer.json
            or with more tokens than the model knows; what `chain` and `merged` refuse.
    """
    found = chain(base, revision)
    source, extra = _source(found.source)
    tokenizer = load_tokenizer(base, revision)
    kept = getattr(torch, weights)
    loaded = torch.float32 if found.adapters else kept
    with _loading(base):
        model, info = AutoModelForCausalLM.from_pretrained(
            source, revision=found.revision, dtype=loaded, output_loading_info=True, **extra
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        mend = "download it and give its directory, or name the model it stands on"
        raise GrapeError("it is an adapter, which grape merges from a directory alone", where=base, mend=mend)
    if missing := sorted(info["missing_keys"]):
        raise GrapeError(
            f"{len(missing)} weights of the architecture are not there ({', '.join(missing[:3])}, ..), and would be random",
            where=base,
            mend="check that config.json belongs to these weights, and that no file of them is missing",
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise GrapeError(
            f"the tokenizer has {len(tokenizer)} tokens, and the model knows {model.get_input_embeddings().num_embeddings}",
            where=base,
            mend="take the tokenizer the model was trained with, or resize the model's embeddings and save it",
        )
    if extra:
        model = _dequantised(model)
    for folder in found.adapters:
        model = merged(model, folder)
    rounded(model, kept)
    if found.generation is not None:
        model.generation_config = GenerationConfig.from_pretrained(found.generation)
    return fit_threads(model.eval()), tokenizer


def rounded(model: AnyTransformer, dtype: torch.dtype) -> AnyTransformer:
    """The same model with weights of this dtype. What no file holds, such as the frequencies of rotary positions, stays as it is:
    whoever loads the file computes it anew in float32."""
    for weight in model.state_dict(keep_vars=True).values():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return model


def _dequantised(model: Any) -> LanguageModel:
    """The same weights in a model that does not think it is quantised: transformers refuses to save or train one read from GGUF."""
    config = type(model.config).from_dict({k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):  # no second copy: the very tensors move over
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # those that are computed, and so in no file
        plain.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer, persistent=False)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    made: LanguageModel = plain
    return made


def checked_tokenizer(tokenizer: Any, where: str) -> Tokenizer:
    """The tokenizer with a pad token (EOS if it has none: masks never read it) and a chat template."""
    if not tokenizer.is_fast:
        raise GrapeError(
            "the tokenizer has no tokenizer.json, and text could not be kept from becoming control tokens without it",
            where=where,
            mend="convert it: AutoTokenizer.from_pretrained(...).save_pretrained(...) with `sentencepiece` or `tiktoken` installed",
        )
    if tokenizer.eos_token_id is None:
        raise GrapeError(
            "the tokenizer has no end-of-sequence token, so no model could learn to stop",
            where=where,
            mend="set eos_token in its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        # A template writes BOS itself; ours does where the tokenizer puts one before every text.
        begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + CHAT_TEMPLATE
    checked: Tokenizer = tokenizer
    return checked


def positions(model: Transformer) -> int:
    """The longest row this model takes, tokens."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30)


def load_scalar_model(path: str, from_language_model: bool = False, weights: Weights = "float32") -> tuple[ScalarModel, Tokenizer]:
    """A model with one scalar head (a reward model) and its tokenizer; `from_language_model`: a new head, initialised at zero.
    weights: as `load_language_model` has it."""
    found = chain(path)
    _source(found.source)
    tokenizer = load_tokenizer(path)
    kept = getattr(torch, weights)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            found.source, revision=found.revision, num_labels=1, dtype=torch.float32 if found.adapters else kept
        )
    except Exception as error:  # as in load_language_model
        if memory.short(error):
            raise
        raise GrapeError(
            f"the model cannot be loaded: {type(error).__name__}: {error}",
            where=path,
            mend="delete its folder and run the stage that makes it again",
        ) from error
    for folder in found.adapters:
        model = merged(model, folder)
    rounded(model, kept)
    model.config.pad_token_id = tokenizer.pad_token_id
    if from_language_model:
        # A random head would make the first margins noise of the seed; zero makes the first loss exactly ln 2.
        torch.nn.init.zeros_(model.score.weight)
    return fit_threads(model.eval()), tokenizer


def save_model(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer: `folder` is complete or not there.

    The files depend on the weights alone (no paths, dates or run ids), so that equal weights are equal bytes for DVC.
    """
    with replacing(folder) as beside:
        origin = model.config._name_or_path
        model.config._name_or_path = ""
        model.save_pretrained(beside)
        model.config._name_or_path = origin
        tokenizer.save_pretrained(beside)
