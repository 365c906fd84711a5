"""What stands in reports/evaluate/ALGORITHM-SEED and reports/test/ALGORITHM-SEED: metrics.json is an Evaluation, a line of
samples.jsonl a Sample.

Fields stand in the order of the files.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

JudgeName = Literal["gold", "proxy"]
Split = Literal["validation", "test"]  # of the held-out prompts: what may be looked at, and what the report's tables are made from
HELD_OUT: tuple[Split, ...] = get_args(Split)


class Strict(BaseModel):
    """Frozen, every number finite; further keys in a file are its own business."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Interval(Strict):
    mean: float
    low: float
    high: float


class Judged(Strict):
    """A score by each judge: `gold` never seen by training (None: there is none), `proxy` the one trained on."""

    gold: Interval | None
    proxy: Interval

    def of(self, judge: JudgeName) -> Interval:
        found = self.gold if judge == "gold" else self.proxy
        assert found is not None, "gold is asked for only where every evaluation has it"
        return found


class Counted(Strict):
    n: int  # prompts


class Category(Judged, Counted):
    """Its prompts stand before its scores: fields of the last base come first."""


class Greedy(Strict):
    gold: float | None
    proxy: float

    def of(self, judge: JudgeName) -> float | None:
        return self.gold if judge == "gold" else self.proxy


class ItemStatistics(Strict):
    """One rubric item: mean score and confidence in [0, 1], share of missing scores, mean standard deviation of the scores of one
    prompt's answers, correlation of score and length within prompts. None: there is no such number."""

    score: float | None
    confidence: float | None
    missing: float
    spread: float | None
    length_correlation: float | None


class Overlap(Strict):
    """Correlation of two items, `category/item` each, over the responses both were asked about; None where one is constant."""

    a: str
    b: str
    correlation: float | None


class Side(Judged):
    """One model's held-out results; `length` in tokens, `entropy` in nats per token, `finished` a share.

    `datasets`: as `categories`, by the data set that a prompt is from; empty where prompts name none.
    """

    greedy: Greedy
    length: float
    finished: float
    entropy: float
    pass_at: dict[str, float] = Field(default_factory=dict)
    categories: dict[str, Category]
    datasets: dict[str, Category] = Field(default_factory=dict)
    items: dict[str, ItemStatistics]
    overlap: list[Overlap]


class WinRate(Interval):
    judge: JudgeName


class KL(Strict):
    """Divergence from the SFT policy in nats, per token and per response."""

    token: float
    sequence: float


class Benchmark(Strict):
    """One metric of a standard benchmark, in the harness's own unit, over `n` documents; `base` None: it was not measured.

    `difference` is the policy's value less SFT's: with an interval where the metric is a mean over documents, else alone.
    """

    task: str
    metric: str
    higher_is_better: bool | None
    n: int
    base: float | None
    sft: float
    policy: float
    difference: Interval | float


class Evaluation(Strict):
    """`data`: md5 of the prompts. `weights`: md5 of the policy. `base`: the pre-trained model's side, "sft": the two are one model
    (no SFT step); None: it was not evaluated.

    `dataset_differences`: by how much the policy is better than SFT on the prompts of each data set.
    """

    split: Split
    data: str
    weights: str
    algorithm: str
    seed: int
    prompts: int
    samples: int
    base: Side | Literal["sft"] | None = None
    sft: Side
    policy: Side
    difference: Judged
    dataset_differences: dict[str, Judged] = Field(default_factory=dict)
    win_rate: WinRate
    dropped: dict[str, int] = Field(default_factory=dict)
    kl: KL
    benchmarks: list[Benchmark] = Field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.algorithm}-{self.seed}"

    @property
    def base_side(self) -> Side | None:
        """The base model's numbers, those of SFT where the two are one."""
        return self.sft if self.base == "sft" else self.base


class ItemScore(Strict):
    """An answer by one rubric item; `score` None: it is missing, for the `reason`."""

    item: str
    score: float | None
    confidence: float | None
    reason: str


class SampledAnswer(Strict):
    """One policy's first answer. `raw` is all that was written, not there where that is the text."""

    text: str
    raw: str = ""
    gold: float | None
    proxy: float | None
    items: list[ItemScore]

    def of(self, judge: JudgeName) -> float | None:
        return self.gold if judge == "gold" else self.proxy


class DrawScores(Strict):
    """The score of every draw of an answer, in order; of `proxy`, None where it is missing."""

    gold: list[float] | None
    proxy: list[float | None]

    def of(self, judge: JudgeName) -> list[float | None]:
        return [*self.gold] if judge == "gold" and self.gold is not None else self.proxy


class BothDraws(Strict):
    sft: DrawScores
    policy: DrawScores


class Sample(Strict):
    """What both policies answered to one held-out prompt: a text, or turns of role and content. `draws`: what every answer scored;
    the first is shown."""

    id: str
    category: str
    prompt: str | list[dict[str, Any]]
    answer: str | None
    sft: SampledAnswer
    policy: SampledAnswer
    draws: BothDraws

    def row(self) -> dict[str, Any]:
        """As it stands in the file."""
        return self.model_dump(exclude_unset=True)
