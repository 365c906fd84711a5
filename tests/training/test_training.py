"""The loop, its sources and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grape.algorithms import grpo, sft
from grape.errors import GrapeError
from grape.models.forward import Dtype, batched_language, language
from grape.models.lora import LoRA, adapt, is_adapted
from grape.training.adam import Adam, AdamParams
from grape.training.assemble import assemble
from grape.training.batches import offline
from grape.training.checkpoint import MANIFEST, Checkpoints
from grape.training.loop import train
from grape.training.sampler import Sampling, draw
from grape.types import Response, Scores
from tests import tiny

Track = Callable[[int, Mapping[str, float]], None]


class Killed(Exception):
    pass


def silent(step: int, metrics: Mapping[str, float]) -> None:
    pass


def killer(at: int) -> Track:
    def track(step: int, metrics: Mapping[str, float]) -> None:
        if step == at:
            raise Killed

    return track


def score(responses: list[Response]) -> Scores:
    """The share of the letter a."""
    values = torch.tensor([[r.text.count("a") / max(len(r.text), 1)] for r in responses])
    ones = torch.ones_like(values)
    return Scores(("any/a",), values, ones, ones.bool(), ones)


def run_rl(
    model: Any, steps: int, track: Track, checkpoints: Checkpoints | None, dtype: Dtype = "float32"
) -> tuple[Any, list[dict[str, float]]]:
    """GRPO against the model as it was: a second one, or, where it has adapters, itself without them."""
    prompts = [tiny.prompt(text) for text in ("a", "bb", "ccc", "dd")]
    params = grpo.GRPOParams(epochs=2, mini_batches=2, beta=0.05)
    learner = assemble(grpo.ALGORITHM, params, model, AdamParams(1e-3, steps, warmup_steps=2, schedule="cosine", dtype=dtype))
    sampling = Sampling(4, 4, 1.0, 8, 64, 4096, 0.2, kl_every=2)
    reference = model if is_adapted(model) else tiny.model()
    source = learner.rollouts(tiny.chat(), prompts, score, sampling, ("t",), reference)
    return learner.optimiser, learner.train(source, steps, track, checkpoints, ("t",))


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "step_time"} for row in history]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_like_a_straight_one(tmp_path: Path, rank: int, dtype: Dtype) -> None:
    """With adapters they alone are kept: what is frozen comes from where it came from."""

    def begun(seed: int) -> Any:
        return adapt(tiny.model(), LoRA(rank=rank), seed) if rank else tiny.model(seed=seed)

    straight, checkpoints = begun(0), Checkpoints(tmp_path / "c", {"it": "same"}, 2)
    adam, history = run_rl(straight, 6, silent, None, dtype)
    with pytest.raises(Killed):
        run_rl(begun(0), 6, killer(5), checkpoints, dtype)
    (kept,) = (tmp_path / "c").glob("update-*/model.safetensors")
    assert load_file(kept).keys() == {name for name, p in straight.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in load_file(kept)) == (rank > 0)
    resumed, steps = begun(5), []
    again, replayed = run_rl(resumed, 6, lambda step, _: steps.append(step), checkpoints, dtype)
    assert torch.equal(weights(straight), weights(resumed))
    for a, b in zip(adam.optimizer.state.values(), again.optimizer.state.values(), strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"]) and torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
    assert without_time(history) == without_time(replayed) and steps == [1, 2, 3, 4, 5, 6]
    assert history[0]["kl"] != 0 or history[1]["kl"] != 0


def test_the_policy_without_its_adapters_is_the_reference_bit_for_bit() -> None:
    """Also after updates, and in rollouts as in rows that are looked up; adapters go on being trained."""
    policy, plain = adapt(tiny.model(), LoRA(rank=2), 0), tiny.model()
    run_rl(policy, 2, silent, None)
    learner = assemble(grpo.ALGORITHM, grpo.GRPOParams(beta=0.05), policy, AdamParams(1e-3, 1))
    prompts, sampling = [tiny.prompt(text) for text in ("a", "bb")], Sampling(2, 4, 1.0, 6, 64, 4096, 0.5)
    batches = [learner.rollouts(tiny.chat(), prompts, score, sampling, ("r",), of)(0, {}).batch for of in (policy, plain)]
    assert batches[0] is not None and batches[1] is not None
    assert torch.equal(batches[0].logp_ref, batches[1].logp_ref)
    now = batched_language(policy, batches[0], 1.0, 4096).logp
    assert not torch.equal(now, batches[0].logp_ref)
    assert {"lora_" in name for name, p in policy.named_parameters() if p.requires_grad} == {True}


def test_the_same_seed_gives_the_same_bits_twice() -> None:
    one, two = tiny.model(), tiny.model()
    assert without_time(run_rl(one, 3, silent, None)[1]) == without_time(run_rl(two, 3, silent, None)[1])
    assert torch.equal(weights(one), weights(two))


@pytest.mark.parametrize("damage", ["identity", "manifest", "weights", "missing"])
def test_a_checkpoint_that_is_not_whole_or_not_ours_is_not_there(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, {"it": "same"}, 2)
    run_rl(tiny.model(), 3, silent, checkpoints)
    folder = next(tmp_path.glob("update-*"))
    if damage == "manifest":
        (folder / MANIFEST).write_text('{"identity": "same"')
    elif damage == "weights":
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(bytes(data))
    elif damage == "missing":
        (folder / "optimiser.pt").unlink()
    said: list[str] = []
    now = {"rl.steps": "60", "grape/x.py": "0"} if damage == "identity" else {"it": "same"}
    other = Checkpoints(tmp_path, now, 2, say=said.append)
    model = tiny.model(seed=3)
    before = weights(model).clone()
    assert other.restore(model, Adam(model, AdamParams(1e-3, 3))) is None
    assert torch.equal(weights(model), before)
    why = "not used: grape/x.py changed; it same -> nothing; rl.steps nothing -> 60" if damage == "identity" else "is damaged"
    assert len(said) == 1 and why in said[0]


def test_every_epoch_sees_every_example_once_and_any_update_can_be_asked_for() -> None:
    seen = [i for update in range(5) for i in draw(10, 4, update, ("k",))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    assert draw(10, 4, 3, ("k",)) == seen[12:16] and draw(10, 4, 3, ("other",)) != seen[12:16]


def test_sft_learns_its_demonstrations_and_the_learning_rate_warms_up() -> None:
    model, rows = tiny.model(), tiny.rows(count=4)
    source = offline(rows, 0, 4, ("s",), torch.device("cpu"))
    adam = Adam(model, AdamParams(3e-3, 60, warmup_steps=5, schedule="cosine"))
    history = train(model, sft.ALGORITHM, sft.ALGORITHM.params(), source, partial(language, model), adam, steps=60, track=silent)
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert history[0]["learning_rate"] == 0 and history[5]["learning_rate"] == pytest.approx(3e-3)
    assert history[-1]["learning_rate"] == pytest.approx(3e-4, rel=0.1)


def test_the_first_update_of_stale_rollouts_is_refused() -> None:
    """log pi_old that does not come from these weights, temperature and positions is a bug, not a ratio."""
    model = tiny.model()
    batch = tiny.batch()
    old = language(model, batch).logp
    wrong = batch.with_(logp_old=old.detach() + 0.01 * batch.mask, advantage=batch.mask.float(), group=torch.arange(batch.rows))
    adam = Adam(model, AdamParams(1e-3, 1))
    with pytest.raises(GrapeError, match="off-policy"):
        adam.update(partial(language, model), lambda out, part: grpo.loss(out, part, grpo.GRPOParams()), wrong)


@pytest.mark.parametrize(
    ("dtype", "how", "caught"),
    [
        ("bfloat16", lambda b, m: b.logp_old, False),
        ("bfloat16", lambda b, m: b.logp_old + 0.02 * torch.where(torch.arange(b.mask.shape[1]) % 2 == 0, 1, -1), False),
        ("bfloat16", lambda b, m: language(m, b, temperature=0.5).logp, True),
        ("bfloat16", lambda b, m: language(tiny.model(seed=1), b).logp, True),
        ("bfloat16", lambda b, m: language(m, b).logp.roll(1, 1), True),
        ("bfloat16", lambda b, m: b.logp_old * torch.nan, True),
        ("float32", lambda b, m: b.logp_old * torch.nan, True),
        ("float32", lambda b, m: b.logp_old + 0.002, True),
    ],
)
def test_what_rounding_may_do_is_no_error_and_what_a_bug_does_is(dtype: str, how: Any, caught: bool) -> None:
    model = tiny.model()
    batch = tiny.batch()
    with torch.no_grad():
        batch = batch.with_(logp_old=language(model, batch).logp, advantage=batch.mask.float(), group=torch.arange(batch.rows))
        batch = batch.with_(logp_old=how(batch, model))
    adam = Adam(model, AdamParams(0.0, 1, dtype=dtype))  # type: ignore[arg-type]
    step = partial(adam.update, partial(language, model), lambda out, part: grpo.loss(out, part, grpo.GRPOParams()), batch)
    if caught:
        with pytest.raises(GrapeError, match="off-policy"):
            step()
    else:
        sums, _ = step()
        assert sums["logp_mismatch/max"][0] <= 0.021 and sums["ratio/max"] == (pytest.approx(1.02, abs=0.03), 1.0)


def test_bfloat16_trains_with_mini_batches() -> None:
    params = grpo.GRPOParams(epochs=2, mini_batches=2)
    model = tiny.model(width=64)
    sampling = Sampling(4, 4, 1.0, 8, 64, 64, 0.2)
    prompts = [tiny.prompt(text) for text in ("a", "bb", "ccc", "dd")]
    learner = assemble(grpo.ALGORITHM, params, model, AdamParams(1e-3, 3, micro_batch_tokens=64, dtype="bfloat16"))
    history = learner.train(learner.rollouts(tiny.chat(), prompts, score, sampling, ("t",)), 3, silent)
    learned = [row for row in history if row.get("frac_without_signal") != 1]  # where all rewards are equal nothing is computed
    assert len(history) == 3 and len(learned) >= 2
    assert all(row["ratio/max"] >= 1 and row["logp_mismatch"] < 0.05 for row in learned)


def test_weights_stay_when_the_gradient_is_not_finite() -> None:
    model = tiny.model()
    before = weights(model).clone()
    batch = tiny.batch().with_(advantage=torch.full(tiny.batch().mask.shape, torch.inf))
    with pytest.raises(GrapeError, match="not finite"):
        Adam(model, AdamParams(1e-3, 1)).update(
            partial(language, model), lambda out, part: grpo.loss(out, part, grpo.GRPOParams()), batch
        )
    assert torch.equal(weights(model), before)


def missing(share: float) -> Callable[[list[Response]], Scores]:
    def source(responses: list[Response]) -> Scores:
        given = score(responses)
        valid = given.valid.clone()
        valid[: int(len(responses) * share)] = False
        return given.with_(valid=valid, reasons=tuple(("the judge was away",) for _ in responses))

    return source


def rollout_of(share: float) -> Any:
    prompts = [tiny.prompt(text) for text in ("a", "bb")]
    learner = assemble(grpo.ALGORITHM, grpo.GRPOParams(), tiny.model(), AdamParams(1e-3, 1))
    return learner.rollouts(tiny.chat(), prompts, missing(share), Sampling(2, 4, 1.0, 6, 64, 4096, 0.5), ("m",))(0, {})


def test_rows_without_a_reward_leave_the_batch_and_too_many_stop_the_run() -> None:
    assert rollout_of(0).batch.rows == 8
    some = rollout_of(0.25)
    assert some.batch.rows == 6 and some.metrics["missing"] == (0.25, 1.0)
    with pytest.raises(GrapeError, match="the judge was away"):
        rollout_of(0.75)
