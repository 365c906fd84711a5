"""RLOO (2402.14740) as an algorithm of your own: REINFORCE, each response compared with the mean of the others.

The worked example of CONTRIBUTING.md. It is selected by `algorithms.rloo.use: algorithms.rloo:ALGORITHM` in params.yaml.

    A_i = R_i - 1/(G-1) sum_{j != i} R_j,      L = -1/B sum_i A_i sum_t m_it log pi(y_it | s_t)
"""

from pydantic import Field

from grape.algorithms.base import Algorithm, Credit, OnlineParams
from grape.maths.advantage import relative
from grape.types import Loss


class RLOOParams(OnlineParams):
    scale: float = Field(1.0, gt=0, description="of the advantage")


def needs(params):
    return frozenset({"group"})


def credit(scores, rollouts, params, state):
    reward, known = scores.reward(rollouts.group)
    advantage = params.scale * relative(reward, known, rollouts.group, "leave_one_out")
    return Credit(rollouts.per_token(advantage), known, state)


def loss(outputs, batch, params):
    weight = batch.mask.float()
    return Loss(-outputs.logp * batch.advantage, weight, weight.amax(1), {})


ALGORITHM = Algorithm(params=RLOOParams, data="rollouts", loss=loss, credit=credit, needs=needs)
