"""Sampling: prompts x G -> Responses. An engine writes tokens and says how likely each was to it; `sample` asks one and reads them.

Tokens come from the softmax of the logits divided by the temperature, over the whole vocabulary: no top-k, top-p or penalty,
because training computes log-probabilities of exactly that distribution. EOS is kept, draws are counted.

    draws       one uniform number per token, from what it is for; the token it means
    engine      what is wanted of an engine, and what it gives back
    own         the engine `grape`: the prompt once per group, a cache written in place, finished rows leave
    cache       that cache
    vllm        the engine `vllm`: a server of its own (vllm_server) that gets the weights every round (handover)
    responses   prompts to ids and ids to responses, whatever the engine
"""

from grape.sampling.draws import choose, uniforms
from grape.sampling.engine import RolloutEngine, Wanted, Written
from grape.sampling.own import Own, key_value_bytes, row_bytes, rows_that_fit
from grape.sampling.responses import answers, response_rows, sample

__all__ = [
    "Own", "RolloutEngine", "Wanted", "Written", "answers", "choose", "key_value_bytes", "response_rows", "row_bytes",
    "rows_that_fit", "sample", "uniforms",
]  # fmt: skip
