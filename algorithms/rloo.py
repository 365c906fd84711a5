"""RLOO (2402.14740) as an algorithm of your own: REINFORCE, each response compared with the mean of the others.

The worked example of CONTRIBUTING.md. It is selected by `algorithms.rloo.use: algorithms.rloo:ALGORITHM` in params.yaml.

    A_i = R_i - 1/(G-1) sum_{j != i} R_j,      L = -1/B sum_i A_i sum_t m_it log pi(y_it | s_t)
"""

from pydantic import Field

from grape.algorithms.base import Algorithm, Credit, OnlineParams
from grape.maths.advantage import leave_one_out_advantage, weighted_reward
from grape.types import Loss


class RLOOParams(OnlineParams):
    scale: float = Field(1.0, gt=0, description="of the advantage")

    @property
    def compares(self) -> bool:
        return True


def credit(scores, batch, params, state):
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, batch.group)
    advantage = params.scale * leave_one_out_advantage(reward, known, batch.group)
    return Credit(batch.with_(advantage=advantage.unsqueeze(1) * batch.mask), known, state)


def loss(outputs, batch, params):
    weight = batch.mask.float()
    return Loss(-outputs.logp * batch.advantage, weight, weight.amax(1), {})


ALGORITHM = Algorithm(params=RLOOParams, data="rollouts", loss=loss, credit=credit, needs=lambda _: frozenset({"scores"}))
