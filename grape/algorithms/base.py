"""What an algorithm is: a frozen value of pure functions, composed in the algorithm's own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from grape.types import Batch, Loss, Outputs, Scores

Data = Literal["text", "pairs", "rollouts"]
Need = Literal["scores", "reference", "old", "value", "entropy"]
State = Mapping[str, float]


class Params(BaseModel):
    """The knobs of an algorithm. Unknown keys are errors; values never change once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlotParams(Params):
    """Knobs of everything that can be slotted into the rl stage."""

    learning_rate: float | None = Field(None, gt=0, le=1, description="peak; null: rl.learning_rate")


class OnlineParams(SlotParams):
    """Knobs of every algorithm that learns from its own samples."""

    reward: Literal["rubric", "reward_model"] | None = Field(None, description="what it learns from; null: rl.reward")
    rounds: int | None = Field(
        None,
        ge=1,
        description="rounds of sampling; null: rl.steps. Fewer rounds are larger ones: the budget of samples stays",
    )
    resample: int = Field(
        0,
        ge=0,
        le=100,
        description="times a group with equal rewards is drawn again with another prompt (DAPO, 2503.14476)",
    )
    revise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a round's prompts that ask to revise an answer of the round, given its critique; 0: none",
    )
    epochs: int = Field(1, ge=1, le=100, description="passes over each round's rollouts (mu)")
    mini_batches: int = Field(1, ge=1, le=1024, description="optimiser updates per pass; groups stay together")

    @property
    def compares(self) -> bool:
        """Whether the responses to a prompt are compared with each other, so that there must be two of them."""
        return False


@dataclass(frozen=True)
class Credit:
    """What `credit` gives back: the batch with its advantage, the rows that stay, the new state, diagnostics as (sum, weight)."""

    batch: Batch
    keep: Tensor
    state: State = field(default_factory=dict)
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


CreditFn = Callable[[Scores, Batch, Params, State], Credit]
LossFn = Callable[[Outputs, Batch, Params], Loss]


def no_needs(params: Params) -> frozenset[Need]:
    return frozenset()


@dataclass(frozen=True)
class Algorithm:
    """One section of the paper.

    Attributes:
        params: the class of its knobs; `params()` are the vetted defaults.
        data: what it learns from: text (prompt, response), pairs (chosen, rejected) or rollouts (its own samples, scored).
        loss: (Outputs, Batch, params) -> Loss, unreduced.
        credit: (Scores, Batch, params, state) -> Credit: rewards become advantages. Rollouts only.
        needs: params -> what must be there besides the policy: scores, a frozen reference, log-probabilities of the rollout
            policy before credit is given, a value model, entropies with gradient. Checked before any model loads, and
            nothing that is not needed is computed.
        update: who moves the weights: Adam, or the natural gradient within a trust region.
    """

    params: type[Params]
    data: Data
    loss: LossFn
    credit: CreditFn | None = None
    needs: Callable[[Params], frozenset[Need]] = no_needs
    update: Literal["adam", "natural_gradient"] = "adam"

    def __post_init__(self) -> None:
        if (self.data == "rollouts") != (self.credit is not None):
            raise ValueError("an algorithm gives credit exactly when it learns from rollouts")
