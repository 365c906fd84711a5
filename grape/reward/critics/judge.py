"""Which critic judges, as a value for params.yaml, and as a file beside the calibration that was fitted for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from grape.errors import GrapeError, first_problem
from grape.files import write_json
from grape.models.forward import Dtype, Weights
from grape.models.template import Template
from grape.reward.critics.calibration import RUN_CRITIC, Calibration, Method
from grape.reward.critics.panel import PanelCritic
from grape.reward.verdict import Certainty, Critic, Scoring

JUDGE = "judge.json"
PANEL = "panel"  # the folder of the further judges, a folder each
FIRST = "judge"  # what the one of critic.judge is called beside them
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
    repeats: int = Field(1, ge=1, le=100)
    score: Scoring = "graded"
    confidence: Certainty | None = None
    calibration: Method = "platt"

    @model_validator(mode="after")
    def _a_backend_has_its_model(self) -> Judge:
        if (self.backend == "trained") != (self.model is None):
            raise ValueError("a model is named for the backends local and openai, and for no other")
        return self

    @model_validator(mode="after")
    def _draws_that_can_differ(self) -> Judge:
        if self.repeats > 1 and self.backend == "trained":
            raise ValueError("repeats draws verdicts of the backends local and openai; the trained critic's are read exactly")
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError("at temperature 0 all repeats are alike: set temperature above 0, or repeats to 1")
        if self.repeats > 1 and (fixed := sorted({"seed", "temperature", "n"} & set(self.extra))):
            raise ValueError(f"extra.{fixed[0]} would decide what repeats draws: leave it out")
        if self.confidence == "agreement" and self.repeats == 1:
            raise ValueError("confidence: agreement is that of several draws: set repeats to 2 or more")
        if self.backend != "openai" and self.temperature > 0 and self.repeats == 1:
            raise ValueError("temperature has no effect here: probabilities are read, and nothing is drawn (repeats: 1)")
        return self

    @property
    def certainty(self) -> Certainty:
        """What `confidence` says, or what is usual for the backend."""
        return self.confidence or ("right" if self.backend == "trained" else "margin")

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the answers before anything is made of them."""
        return self.model_dump(exclude={"name", "score", "confidence", "calibration", "repeats"})

    def write(self, folder: Path) -> None:
        write_json(folder / JUDGE, self.model_dump(exclude={"name"}))  # which the folder has

    @staticmethod
    def read(folder: Path) -> Judge:
        """What the critic stage wrote; a folder without it holds a trained critic. Raises GrapeError: it cannot be read."""
        path = folder / JUDGE
        try:
            return Judge.model_validate(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        except (OSError, ValueError) as error:
            what = ": ".join(first_problem(error)) if isinstance(error, ValidationError) else str(error)
            raise GrapeError(f"the critic's settings cannot be read: {what}", where=str(path), mend=RUN_CRITIC) from error


class PanelJudge(Judge):
    """One judge of a panel beside critic.judge: its knobs and a name."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=40)
    backend: Literal["local", "openai"]


def _own_names(panel: list[PanelJudge]) -> list[PanelJudge]:
    names = [FIRST, *(judge.name for judge in panel)]
    for name in names:
        if names.count(name) > 1:
            whose = "that of critic.judge" if name == FIRST else "that of two judges"
            raise ValueError(f"the name {name!r} is {whose}: give every judge its own")
    return panel


Panel = Annotated[list[PanelJudge], AfterValidator(_own_names)]


def refuse_alike(judge: Judge, panel: list[PanelJudge]) -> None:
    """Raises ValueError: two judges would give the same answers, and so agree about nothing."""
    seen: list[tuple[str, dict[str, Any]]] = [(FIRST, judge.identity)]
    for one in panel:
        for name, identity in seen:
            if identity == one.identity:
                raise ValueError(f"panel: the judge {one.name!r} is {name!r} once more, so that their agreement says nothing")
        seen.append((one.name, one.identity))


def folders(folder: Path) -> dict[str, Path]:
    """Where the critic stage leaves each judge, by name: critic.judge in `folder` itself, a panel's others below it."""
    panel = folder / PANEL
    return {FIRST: folder} | {path.name: path for path in (sorted(panel.iterdir()) if panel.is_dir() else ())}


def load_critic(
    folder: Path, root: Path, dtype: Dtype = "float32", max_tokens: int = 16384, template: Template | None = None,
    weights: Weights = "float32",
) -> Critic:  # fmt: skip
    """The critic that the critic stage left in `folder`, ready to judge: one judge, or a panel."""
    made = {
        name: make_critic(Judge.read(place), Calibration.read(place), place, root, dtype, max_tokens, template, weights)
        for name, place in folders(folder).items()
    }
    return joined(made)


def joined(judges: dict[str, Critic]) -> Critic:
    """One judge as it is, several as a panel."""
    return PanelCritic(judges) if len(judges) > 1 else judges[FIRST]


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
        chat = Chat(tokenizer, template, model)
        return trained_critic(model.to(device()), chat, calibration, max_tokens, dtype, judge.certainty, judge.score)
    if judge.backend == "local":
        from grape.reward.critics.logits import local_critic

        draws = (judge.repeats, judge.temperature)
        return local_critic(
            judge.model, calibration, judge.revision, dtype, max_tokens, judge.certainty, *draws, weights, judge.score
        )
    from grape.reward.critics.openai import ServerCritic, endpoint

    return ServerCritic(
        endpoint(judge.url, judge.key), judge.model, calibration, root / CACHE,
        judge.temperature, judge.max_tokens, judge.certainty, judge.extra, repeats=judge.repeats, scoring=judge.score,
    )  # fmt: skip
