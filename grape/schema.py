"""What params.yaml may say, as frozen values: a class per stage. `grape/params.py` reads the file into them."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from grape import slot
from grape.algorithms.base import AnyAlgorithm, SlotParams
from grape.budget import COUNTS, Unit
from grape.data.tables import Source, refuse_mixes
from grape.models.lora import LoRA
from grape.models.template import Template
from grape.reward.critics.judge import Judge, Panel, refuse_alike


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, protected_namespaces=())


class Model(Section):
    base: str = Field(min_length=1)
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    weights: Literal["float32", "bfloat16", "float16"]
    checkpointing: bool
    architecture: Literal["llama", "gpt2", "qwen3"]
    layers: int = Field(ge=1, le=48)
    width: int = Field(ge=8, le=4096)
    heads: int = Field(ge=1, le=64)
    positions: int = Field(ge=16, le=131072)
    too_long: Literal["drop", "refuse"]
    template: Template
    lora: LoRA
    quantise: Literal["nf4"] | None

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Model:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of 2 x heads = {2 * self.heads}")
        return self

    @model_validator(mode="after")
    def _quantised_weights_have_adapters(self) -> Model:
        if self.quantise and not self.lora.rank:
            raise ValueError("quantise: quantised weights cannot be trained; set lora.rank above 0 or quantise to null")
        return self


Table = Literal["corpus", "sft", "prompts", "validation", "test", "judgements", "preferences"]


class Prepare(Section):
    source: str = Field(min_length=1)
    files: dict[Table, Annotated[list[Source], Field(min_length=1)]]
    columns: dict[Table, dict[str, str]]
    category: str | None = Field(min_length=1)
    rows: dict[Table, Annotated[int, Field(ge=1)]]
    documents: int = Field(ge=1)
    demonstrations: int = Field(ge=1)
    prompts: int = Field(ge=1)
    validation: int = Field(ge=2)
    test: int = Field(ge=2)
    judgements: int = Field(ge=0)
    noise: float = Field(ge=0, le=1)

    @field_validator("files", mode="before")
    @classmethod
    def _one_source(cls, given: object) -> object:
        """A table with one source needs no list."""
        if not isinstance(given, dict):
            return given
        return {table: sources if isinstance(sources, list) else [sources] for table, sources in given.items()}

    @model_validator(mode="after")
    def _sources_that_mix(self) -> Prepare:
        refuse_mixes(self.files, self.columns)
        return self


class Optimisation(Section):
    steps: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=1)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0, le=1)
    max_grad_norm: float = Field(gt=0)


class SFT(Optimisation):
    turns: Literal["all", "last"]


class CriticSection(Optimisation):
    heldout: float = Field(ge=0, le=0.5)
    judge: Judge
    panel: Panel

    @model_validator(mode="after")
    def _judges_differ(self) -> CriticSection:
        refuse_alike(self.judge, self.panel)
        return self


class Preferences(Section):
    source: Literal["rubric", "critic", "people"]
    prompts: int = Field(ge=1)
    samples: int = Field(ge=2)
    pairs: Literal["best_worst", "all"]
    temperature: float = Field(gt=0)
    margin: float = Field(ge=0, le=1)


class Reward(Optimisation):
    when: Literal["always", "needed"]
    heldout: float = Field(ge=0, le=0.5)
    centring: float = Field(ge=0, le=1)
    margin: float = Field(ge=0, le=100)
    members: int = Field(ge=1, le=100)


class RL(Section):
    algorithms: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    reward: Literal["rubric", "reward_model"]
    steps: int = Field(ge=1)
    budget: dict[Unit, Annotated[float, Field(gt=0)]] | None
    prompts: int = Field(ge=1)
    samples: int = Field(ge=1)
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=1)
    warmup_steps: int = Field(ge=0)
    schedule: Literal["constant", "cosine"]
    weight_decay: float = Field(ge=0, le=1)
    max_grad_norm: float = Field(gt=0)
    checkpoint_every: int = Field(ge=0)
    kl_every: int = Field(ge=0)
    validate_every: int = Field(ge=0)
    max_missing: float = Field(ge=0, le=1)
    engine: Literal["grape", "vllm"]
    importance: Literal["token", "sequence"] | None
    importance_cap: float | None = Field(ge=1)

    @model_validator(mode="after")
    def _one_budget(self) -> RL:
        if self.budget is not None and len(self.budget) != 1:
            raise ValueError(f"budget: say one of {', '.join(COUNTS)}, got {sorted(self.budget)}: only one can be equal for all")
        if self.budget is not None and self.schedule == "cosine":
            raise ValueError("schedule: a cosine needs to know how many rounds there will be; with a budget set it to constant")
        return self

    @model_validator(mode="after")
    def _a_cap_of_something(self) -> RL:
        if self.importance is None and self.importance_cap is not None:
            raise ValueError("importance_cap has no effect where importance is null")
        return self

    @model_validator(mode="after")
    def _another_sampler_is_weighed(self) -> RL:
        if self.engine == "vllm" and self.importance is None:
            raise ValueError("importance null: vLLM is another computation of the policy; say token or sequence, or engine: grape")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> RL:
        for name, values in (("algorithms", self.algorithms), ("seeds", self.seeds)):
            if len(set(map(str, values))) < len(values):
                raise ValueError(f"{name} has a value twice: {values}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must be >= 0, got {min(self.seeds)}")
        return self


class Benchmarks(Section):
    tasks: list[Annotated[str, Field(min_length=1)]]
    folder: str | None = Field(min_length=1)
    limit: int | None = Field(ge=1)
    fewshot: int | None = Field(ge=0)
    batch: int = Field(ge=1)
    chat: bool

    @model_validator(mode="after")
    def _nothing_without_tasks(self) -> Benchmarks:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks has a name twice: {self.tasks}")
        given = [name for name in ("folder", "limit", "fewshot", "chat") if getattr(self, name) not in (None, False)]
        if given and not self.tasks:
            raise ValueError(f"{given[0]} has no effect where tasks is []")
        return self


class Evaluate(Section):
    samples: int = Field(ge=1)
    temperature: float = Field(gt=0)
    confidence: float = Field(gt=0, lt=1)
    benchmarks: Benchmarks


class Report(Section):
    samples: int = Field(ge=0)
    unsure: float = Field(ge=0, le=1)
    saturated: float = Field(ge=0, le=1)
    redundant: float = Field(ge=0, le=1)
    length: float = Field(ge=0, le=1)
    missing: float = Field(ge=0, le=1)


class Params(Section):
    """All of params.yaml. `algorithms` holds raw mappings here; `algorithm(name)` gives them checked, with defaults."""

    seed: int = Field(ge=0)
    model: Model
    prepare: Prepare
    base: Optimisation
    sft: SFT
    critic: CriticSection
    preferences: Preferences
    reward: Reward
    rl: RL
    evaluate: Evaluate
    report: Report
    algorithms: dict[str, dict[str, Any] | None]

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> Params:
        if self.rl.max_new_tokens >= self.model.positions:
            raise ValueError(
                f"rl.max_new_tokens {self.rl.max_new_tokens} leaves no room for a prompt within "
                f"model.positions {self.model.positions}"
            )
        return self

    @model_validator(mode="after")
    def _plain_weights_for_an_engine(self) -> Params:
        if self.rl.engine == "vllm" and self.model.quantise:
            raise ValueError("rl.engine: vllm is handed plain weights; set model.quantise to null, or rl.engine to grape")
        return self

    def algorithm(self, name: str) -> SlotParams:
        """The knobs of algorithm `name`, defaults filled in."""
        return self._slotted(name)[1]

    def slot(self, name: str) -> AnyAlgorithm:
        """What `name` stands for: one of grape's own, an installed one, or what its `use` names."""
        return self._slotted(name)[0]

    @cached_property
    def _known(self) -> dict[str, tuple[AnyAlgorithm, SlotParams]]:
        return {}

    def _slotted(self, name: str) -> tuple[AnyAlgorithm, SlotParams]:
        """Found and checked when it is asked for: a stage loads the code of its own algorithm alone."""
        if name not in self._known:
            given = dict(self.algorithms[name] or {})
            found = slot.find(name, given.pop(slot.USE, None))
            self._known[name] = found, found.params.model_validate(given)
        return self._known[name]
