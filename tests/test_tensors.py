"""Records of tensors: shapes are checked by their declarations, and what was not computed is not there."""

from __future__ import annotations

import copy

import pytest
import torch

from grape.types import Batch, Rollouts, Scores
from tests import tiny


def test_a_shape_that_does_not_fit_is_refused_with_the_field_and_both_shapes() -> None:
    batch = tiny.batch()
    rows, length = batch.mask.shape
    with pytest.raises(ValueError, match=rf"Batch.advantage is \({rows}, {length + 1}\), expected \(B, T\) = \({rows}, {length}\)"):
        batch.with_(advantage=torch.zeros(rows, length + 1))
    with pytest.raises(ValueError, match=r"Batch.beta is \(2, 2\), expected \(B\)"):
        batch.with_(beta=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="units of 4"):
        batch.with_(unit=4)


def test_what_was_not_computed_is_not_there() -> None:
    batch = tiny.batch()
    assert batch.get("logp_ref") is None and "logp_ref" not in batch.tensors()
    with pytest.raises(AttributeError, match="Batch has no logp_ref: it was not computed"):
        _ = batch.logp_ref
    known = batch.with_(logp_ref=torch.zeros_like(batch.mask, dtype=torch.float32))
    assert known.logp_ref.sum() == 0 and known.with_(logp_ref=None).get("logp_ref") is None
    with pytest.raises(TypeError, match="logp_reff"):
        batch.with_(logp_reff=batch.mask)
    assert torch.equal(copy.deepcopy(known).logp_ref, known.logp_ref)


def test_selected_rows_keep_all_that_is_known_of_them_and_no_padding_that_nobody_needs() -> None:
    batch = tiny.batch(3, 6).with_(beta=torch.arange(6.0), advantage=tiny.batch(3, 6).mask.float())
    short = batch.mask.sum(1).argmin()
    chosen = batch.select(short.unsqueeze(0))
    assert chosen.beta.tolist() == [float(short)] and chosen.rows == 1
    assert chosen.mask.all() and chosen.prompt_mask.all() and chosen.advantage.shape == chosen.mask.shape
    assert chosen.tokens == int(batch.prompt_mask[short].sum() + batch.mask[short].sum())


def test_a_record_of_another_kind_takes_the_fields_both_have() -> None:
    rollouts = Rollouts.of(tiny.batch(), group=torch.zeros(6), finished=torch.ones(6, dtype=torch.bool), limit=9)
    batch = Batch.of(rollouts, advantage=rollouts.mask.float())
    assert batch.limit == 9 and batch.group is rollouts.group and "finished" not in batch.tensors()


def test_scores_join_and_are_replaced_row_by_row_with_what_was_counted() -> None:
    def scores(values: list[float], why: str, count: float) -> Scores:
        score = torch.tensor(values).unsqueeze(1)
        ones = torch.ones_like(score)
        return Scores(("a/b",), score, ones, ones.bool(), ones, tuple((why,) for _ in values), {"n": (count, 1.0)})

    first, fresh = scores([0.1, 0.2, 0.3], "old", 1.0), scores([0.9, 0.8], "new", 2.0)
    joined, replaced = first.join(fresh), first.replaced([2, 0], fresh)
    assert joined.score[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.9, 0.8])
    assert replaced.score[:, 0].tolist() == pytest.approx([0.8, 0.2, 0.9])
    assert replaced.reasons == (("new",), ("old",), ("new",)) and replaced.metrics == joined.metrics == {"n": (3.0, 2.0)}
    assert joined.select(slice(3, 5)).reasons == (("new",), ("new",)) and joined.select(slice(0, 1)).metrics == {}
    with pytest.raises(ValueError, match="cannot follow"):
        first.join(Scores(("a/c",), *(fresh.tensors()[n] for n in ("score", "confidence", "valid", "weight"))))
