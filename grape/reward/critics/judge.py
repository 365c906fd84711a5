"""Which critic judges, as a value for params.yaml, and as a file beside the calibration that was fitted for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grape.errors import GrapeError, first_problem
from grape.files import write_json
from grape.models.forward import Dtype, Weights
from grape.models.template import Template
from grape.reward.critics.calibration import RUN_CRITIC, Calibration, Method
from grape.reward.verdict import Certainty, Critic

JUDGE = "judge.json"
CACHE = Path(".grape/critic-cache")


class Judge(BaseModel):
    """The knobs of a critic: what decides its answers. How many at a time and how patiently is the machine's, see
    `openai.endpoint`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    backend: Literal["trained", "local", "openai"] = "trained"
    model: str | None = None
    revision: str | None = None
    url: str = "https://api.openai.com/v1"
    key: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int | None = Field(512, ge=16)
    extra: dict[str, Any] = Field(default_factory=dict)
    confidence: Certainty = "margin"
    calibration: Method = "platt"

    @model_validator(mode="after")
    def _a_backend_has_its_model(self) -> Judge:
        if (self.backend == "trained") != (self.model is None):
            raise ValueError("a model is named for the backends local and openai, and for no other")
        return self

    def write(self, folder: Path) -> None:
        write_json(folder / JUDGE, self.model_dump())

    @classmethod
    def read(cls, folder: Path) -> Judge:
        """What the critic stage wrote; a folder without it holds a trained critic. Raises GrapeError: it cannot be read."""
        path = folder / JUDGE
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        except (OSError, ValueError) as error:
            what = ": ".join(first_problem(error)) if isinstance(error, ValidationError) else str(error)
            raise GrapeError(f"the critic's settings cannot be read: {what}", where=str(path), mend=RUN_CRITIC) from error


def load_critic(
    folder: Path, root: Path, dtype: Dtype = "float32", max_tokens: int = 16384, template: Template | None = None,
    weights: Weights = "float32",
) -> Critic:  # fmt: skip
    """The critic that the critic stage left in `folder`, ready to judge."""
    return make_critic(Judge.read(folder), Calibration.read(folder), folder, root, dtype, max_tokens, template, weights)


def make_critic(
    judge: Judge, calibration: Calibration, folder: Path, root: Path, dtype: Dtype = "float32", max_tokens: int = 16384,
    template: Template | None = None, weights: Weights = "float32",
) -> Critic:  # fmt: skip
    """A critic of the settings.

    Args:
        folder: with the trained critic's model. root: of the project, for the cache. max_tokens: per forward pass.
        template: what the trained critic's chat template is told. weights: what a model's weights are kept in.
    """
    if judge.model is None:
        from grape.models.chat import Chat
        from grape.models.load import device, load_language_model
        from grape.reward.critics.logits import trained_critic

        model, tokenizer = load_language_model(str(folder), weights=weights)
        return trained_critic(model.to(device()), Chat(tokenizer, template, model), calibration, max_tokens, dtype)
    if judge.backend == "local":
        from grape.reward.critics.logits import local_critic

        return local_critic(judge.model, calibration, judge.revision, dtype, max_tokens, judge.confidence, weights)
    from grape.reward.critics.openai import ServerCritic, endpoint

    return ServerCritic(
        endpoint(judge.url, judge.key), judge.model, calibration, root / CACHE,
        judge.temperature, judge.max_tokens, judge.confidence, judge.extra,
    )  # fmt: skip
