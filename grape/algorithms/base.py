"""What an algorithm is: a frozen value of pure functions, composed in the algorithm's own file. And what those who run it read of
its knobs: they know the mixins of this file, and no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from grape.errors import GrapeError
from grape.types import Batch, Loss, Outputs, Rollouts, Scores

Data = Literal["text", "pairs", "rollouts"]
Need = Literal["group", "reference", "old", "value", "entropy"]
Needs = frozenset[Need]
State = Mapping[str, float]
Sum = tuple[Tensor, Tensor]  # a diagnostic as (sum, weight)
LAST = "last/"  # the state holds the metrics of the update before under these names


class AlgorithmParams(BaseModel):
    """The knobs of an algorithm. Unknown keys are errors; values never change once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlotParams(AlgorithmParams):
    """Knobs of everything that can be slotted into the rl stage."""

    learning_rate: float | None = Field(None, gt=0, le=1, description="peak; null: rl.learning_rate")


class RevisionParams(AlgorithmParams):
    """What the sampler reads to make revisions."""

    revise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a round's prompts that ask to revise an answer of the round, given its critique; 0: none",
    )

    @property
    def distils(self) -> bool:
        """Whether revisions are learned as answers to the plain prompt, not as second turns."""
        return False


class OnlineParams(RevisionParams, SlotParams):
    """Knobs of every algorithm that learns from its own samples."""

    reward: Literal["rubric", "reward_model"] | None = Field(None, description="what it learns from; null: rl.reward")
    rounds: int | None = Field(
        None, ge=1, description="rounds of sampling; null: rl.steps. Fewer rounds are larger ones: the budget of samples stays"
    )
    resample: int = Field(
        0, ge=0, le=100, description="times a group with equal rewards is drawn again with another prompt (DAPO, 2503.14476)"
    )
    epochs: int = Field(1, ge=1, le=100, description="passes over each round's rollouts (mu)")
    mini_batches: int = Field(1, ge=1, le=1024, description="optimiser updates per pass; groups stay together")


class ValueParams(AlgorithmParams):
    """What is read to make the value model, for the need `value`."""

    value: Literal["model", "head"] = Field("model", description="a model of its own, or a head on the policy")
    value_init: Literal["reward_model", "policy"] = Field(
        "reward_model", description="whose trunk it starts from; its head starts at 0"
    )
    value_learning_rate: float | None = Field(None, gt=0, le=1, description="peak; null: the policy's")

    @property
    def from_reward_model(self) -> bool:
        return self.value == "model" and self.value_init == "reward_model"


class TrustRegionParams(AlgorithmParams):
    """What the natural gradient reads (`training/natural.py`)."""

    delta: float = Field(0.01, gt=0, le=1, description="largest mean KL to pi_old, nats per token (0.01 in 1502.05477)")
    cg_iterations: int = Field(10, ge=1, le=1000, description="of conjugate gradient (Spinning Up: 10)")
    cg_residual: float = Field(1e-10, ge=0, description="squared relative residual at which it stops")
    damping: float = Field(0.01, ge=0, description="added to the Fisher matrix's diagonal (0.1 is for small MLPs)")
    backtracks: int = Field(10, ge=1, le=100, description="steps tried (Spinning Up: 10)")
    backtrack_ratio: float = Field(0.5, gt=0, lt=1, description="each shorter by this factor (0.8 in Spinning Up)")
    improvement: float = Field(0.0, ge=0, lt=1, description="share of the expected improvement a step must reach")
    fisher_share: float = Field(0.1, gt=0, le=1, description="share of the rows the Fisher products are computed on")
    parameters: Literal["all", "adapters", "last_block"] = Field("all", description="which weights move")


@dataclass(frozen=True)
class Credit:
    """What `credit` gives back.

    Attributes:
        advantage: (B, T). keep: (B,) bool, the rows that stay. state: the next round's.
        metrics: diagnostics as (sum, weight).
        returns, beta, length: what else the loss reads, fields of `Batch`; None: it does not.
    """

    advantage: Tensor
    keep: Tensor
    state: State = field(default_factory=dict)
    metrics: Mapping[str, Sum] = field(default_factory=dict)
    returns: Tensor | None = None
    beta: Tensor | None = None
    length: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.advantage, Tensor):
            raise TypeError(f"Credit.advantage is a {type(self.advantage).__name__}, expected a tensor (B, T): rollouts.per_token")

    def batch(self, rollouts: Rollouts) -> Batch | None:
        """What there is to learn from these rollouts; None where no row stays."""
        if not bool(self.keep.any()):
            return None
        whole = Batch.of(rollouts, advantage=self.advantage, returns=self.returns, beta=self.beta, length=self.length)
        return whole.select(self.keep.nonzero().squeeze(1))


P = TypeVar("P", bound=AlgorithmParams)


def no_needs(params: AlgorithmParams) -> Needs:
    return frozenset()


@dataclass(frozen=True)
class Algorithm(Generic[P]):
    """One section of the paper.

    Attributes:
        params: the class of its knobs; `params()` are the vetted defaults.
        data: what it learns from: text (prompt, response), pairs (chosen, rejected) or rollouts (its own samples, scored).
        loss: (Outputs, Batch, params) -> Loss, unreduced.
        credit: (Scores, Rollouts, params, state) -> Credit: rewards become advantages. Rollouts only. The state holds the metrics
            of the update before as `last/NAME`.
        needs: params -> what must be there besides the policy: `group`, two responses to a prompt or more, since they are compared;
            `reference`, log-probabilities of a frozen one; `old`, those of the rollout policy before credit is given; `value`, a
            value model (`ValueParams`); `entropy` with gradient. Checked before any model loads; what nobody needs is not computed.
        update: who moves the weights: Adam, or the natural gradient within a trust region (`TrustRegionParams`).
    """

    params: type[P]
    data: Data
    loss: Callable[[Outputs, Batch, P], Loss]
    credit: Callable[[Scores, Rollouts, P, State], Credit] | None = None
    needs: Callable[[P], Needs] = no_needs
    update: Literal["adam", "natural_gradient"] = "adam"

    def __post_init__(self) -> None:
        if (self.data == "rollouts") != (self.credit is not None):
            raise ValueError("an algorithm gives credit exactly when it learns from rollouts")

    def wants(self, params: P) -> Needs:
        """`needs`, checked.

        Raises:
            GrapeError: one that nobody would meet.
        """
        needs = self.needs(params)
        if unknown := sorted(needs - set(get_args(Need))):
            raise GrapeError(
                f"nothing is known of the need {unknown[0]!r}",
                where=f"`needs` of {self.loss.__module__}",
                mend=f"known: {', '.join(get_args(Need))}; scores are there wherever there are rollouts",
            )
        return needs


AnyAlgorithm = Algorithm[Any]
