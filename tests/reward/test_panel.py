"""Draws of one judge and several judges as one: what they say together, how sure that is, and how far they agree."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from grape import named, params
from grape.errors import GrapeError
from grape.models.load import save_model
from grape.project import Project
from grape.reward.critics import agreement as agreeing
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.judge import Judge, PanelJudge, load_critic
from grape.reward.critics.logits import LogitCritic
from grape.reward.critics.panel import PanelCritic, pooled
from grape.reward.rubric import Item, Rubric
from grape.reward.source import RubricReward
from grape.reward.verdict import Question, Verdicts
from grape.types import Response
from tests import tiny
from tests.reward.critic_server import Reply, answer_of, benches, chat, honest, judged, names, questions, verdict
from tests.reward.test_critic_local import critic as local

NAN = math.nan


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with benches(monkeypatch) as start:
        yield start


def drawn(bench: Any, repeats: int, certainty: Any = "margin", script: Any = honest, **more: Any) -> tuple[Any, Any]:
    """A server and a critic that asks it `repeats` times, one request after the other."""
    b = bench(script)
    critic = b.critic(temperature=0.7, certainty=certainty, concurrency=1, **more)
    critic.repeats = repeats
    return b, critic


def saying(*said: Any) -> Any:
    """A server that answers with these verdicts (score, confidence) in turn; None: not legibly."""
    turns = itertools.cycle(said)

    def script(body: Any, n: int) -> Reply:
        one = next(turns)
        return Reply(b"no", 400) if one is None else chat(verdict(body, *one, reason=f"said {one[0]}"))

    return script


# Agreement: identities and known numbers.


def test_agreement_of_scores_is_one_for_one_opinion_and_zero_for_the_widest_split() -> None:
    scores = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0.3, 0.3, 0.3, NAN], [0, 1, 1, 1], [NAN] * 4])
    found = agreeing.agreement(scores)
    assert found[:4].tolist() == pytest.approx([1, 0, 1, 1 - 2 * math.sqrt(3) / 4], abs=1e-6) and math.isnan(found[4])
    assert agreeing.mean_of(scores)[:4].tolist() == pytest.approx([1, 0.5, 0.3, 0.75])
    assert agreeing.mean_of(torch.tensor([[1.0, NAN], [1.0, 0.0]])).isnan().tolist() == [True, False], "half are not enough"


def test_kappa_has_the_numbers_of_the_books() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5
    a = torch.tensor([1] * 25 + [0] * 25)
    b = torch.tensor([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert (
        agreeing.kappa(a, b) == pytest.approx(0.4) and agreeing.kappa(a, a) == 1 and agreeing.kappa(a, 1 - a) == pytest.approx(-1)
    )
    assert all(math.isnan(agreeing.kappa(x, x)) for x in (torch.ones(3), torch.tensor([])))


def test_alpha_has_the_numbers_of_krippendorff() -> None:
    """Computing Krippendorff's Alpha-Reliability (2011), sections A and C."""
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert agreeing.alpha(torch.tensor([meg, owen]).float()) == pytest.approx(0.095, abs=5e-4)
    four = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]  # fmt: skip
    assert agreeing.alpha(torch.tensor(four)) == pytest.approx(0.743, abs=5e-4)
    assert math.isnan(agreeing.alpha(torch.ones(3, 5))) and agreeing.alpha(torch.tensor([[0.0, 1.0]] * 3)) == 1


def test_judges_are_compared_over_all_and_by_item_and_where_there_is_a_number() -> None:
    items = ["a/x"] * 4 + ["a/y"] * 2
    two = torch.tensor([[1, 0, 1, 0, 1, 1], [1, 0, 0, NAN, 1, 1]])
    found = agreeing.between(items, two)
    assert found.keys() == {"", "a/x"} and found["a/x"] == pytest.approx(0.4), "all alike: no number"
    assert found[""] == agreeing.kappa(two[0, [0, 1, 2, 4, 5]], two[1, [0, 1, 2, 4, 5]])
    three = agreeing.between(items, torch.cat([two, two[:1]]))
    assert three[""] == agreeing.alpha(torch.cat([two, two[:1]])) and agreeing.statistic(3).startswith("Krippendorff")


# Repeats: one judge that is asked again.


def test_a_server_that_says_something_else_each_time_is_averaged(bench: Any) -> None:
    b, critic = drawn(bench, 4, script=saying((1, 0.5), (0, 0.5), (1, 1), (1, 0)))
    verdicts = judged(critic, "tea", "tea")
    assert verdicts.score.tolist() == [0.75] * 2 and verdicts.confidence.tolist() == [0.5] * 2 and len(b.server.bodies) == 4
    belief = (0.75 + 0.25 + 1 + 0.505) / 4
    assert verdicts.evidence[0].item() == pytest.approx(math.log(belief / (1 - belief)), abs=1e-4)
    seeds = [body["seed"] for body in b.server.bodies]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**31 for seed in seeds) and verdicts.reasons[0] == "said 1"
    assert len({json.dumps(body["messages"]) for body in b.server.bodies}) == 1, "the same words, so that a server can reuse them"


def test_agreement_of_the_draws_is_the_confidence_until_people_say_what_it_is_worth(bench: Any) -> None:
    said = saying((1, 0.1), (1, 0.1), (0, 0.1))
    spread = 1 - 2 * math.sqrt(2 / 9)
    _, critic = drawn(bench, 3, "agreement", said)
    verdicts = judged(critic, "tea")
    assert verdicts.score.item() == pytest.approx(2 / 3) and verdicts.confidence.item() == pytest.approx(spread, abs=1e-5)
    belief = 0.5 + spread * (2 / 3 - 0.5)
    z = math.log(belief / (1 - belief))
    assert verdicts.evidence.item() == pytest.approx(z, abs=1e-4)
    _, critic = drawn(bench, 3, "agreement", said, calibration=Calibration({"": (2.0, 1.0)}))
    p = 1 / (1 + math.exp(-(2 * z + 1)))
    assert judged(critic, "tea").confidence.item() == pytest.approx(2 * p - 1, abs=1e-4)


def test_draws_that_fail_are_left_out_and_too_few_make_no_score(bench: Any) -> None:
    _, critic = drawn(bench, 3, "agreement", saying((1, 1), None, (0.5, 1)))
    verdicts = judged(critic, "tea")
    assert verdicts.score.item() == 0.75 and verdicts.confidence.item() == pytest.approx(0.5)
    _, critic = drawn(bench, 4, "agreement", saying((1, 1), None, (0.5, 1), None))
    verdicts = judged(critic, "tea")
    assert not verdicts.valid.any() and math.isnan(verdicts.evidence.item()) and critic.counts["missing"] == 1
    assert "2 of 4 draws" in verdicts.reasons[0] and "HTTP 400" in verdicts.reasons[0]


def test_the_cache_knows_draws_apart_and_more_repeats_ask_for_the_rest_alone(bench: Any, tmp_path: Path) -> None:
    counter = itertools.count()
    b, critic = drawn(bench, 1, script=lambda body, n: chat(verdict(body, score=next(counter) / 10)), cache=tmp_path)
    once = judged(critic, "tea")
    assert "seed" not in b.server.bodies[0] and once.score.item() == 0
    for repeats, requests, mean in ((3, 3, 0.1), (5, 5, 0.2), (3, 5, 0.1)):
        critic.repeats = repeats
        assert judged(critic, "tea").score.item() == pytest.approx(mean) and len(b.server.bodies) == requests
    assert len(list(tmp_path.rglob("*.json"))) == 5


def test_local_draws_are_those_of_the_probability_and_of_the_text_alone() -> None:
    asked = [Question("Is it polite?", "Ask for tea.", text) for text in ("tea", "x" * 40, "please")]
    z = local().judge(["a/b"] * 3, asked).evidence
    many = local(repeats=4000, temperature=2.0).judge(["a/b"] * 3, asked)
    torch.testing.assert_close(many.score, torch.sigmoid(z / 2), atol=0.03, rtol=0)
    few = local(repeats=5, temperature=2.0, certainty="agreement")
    one, back = few.judge(["a/b"] * 3, asked), few.judge(["a/b"] * 3, asked[::-1])
    assert one.score.tolist() == back.score.flip(0).tolist() and all((5 * s) % 1 < 1e-6 or (5 * s) % 1 > 0.999 for s in one.score)
    q = one.score
    assert one.confidence.tolist() == pytest.approx((1 - 2 * (q * (1 - q)).sqrt()).tolist(), abs=1e-5)
    calibrated = local(repeats=5, temperature=2.0, certainty="agreement", curves={"": (0.5, 1.0)}).judge(["a/b"] * 3, asked)
    p = torch.sigmoid(0.5 * one.evidence + 1)
    torch.testing.assert_close(calibrated.score, p)
    torch.testing.assert_close(calibrated.confidence, (2 * p - 1).abs())
    too_long = local(positions=1500, repeats=3, temperature=1.0).judge(["a/b"], [Question("?", "p", "x" * 2000)])
    assert not too_long.valid.any() and "longer than" in too_long.reasons[0]
    assert local(repeats=3, temperature=1.0).judge([], []).score.shape == (0,)


# A panel: several judges.


def said_by(score: list[float], confidence: list[float]) -> Verdicts:
    found = torch.tensor(score)
    return Verdicts(found, torch.tensor(confidence), tuple(f"why {s}" for s in score), torch.logit(found, eps=1e-3))


def test_a_panel_says_the_mean_and_is_sure_as_far_as_it_agrees() -> None:
    strict, kind = said_by([0.2, 0.9, NAN], [0.8, 0.6, NAN]), said_by([0.8, 0.9, 0.5], [0.4, 0.8, 1.0])
    found = pooled({"strict": strict, "kind": kind})
    assert found.score[:2].tolist() == pytest.approx([0.5, 0.9]) and found.confidence[:2].tolist() == pytest.approx([0.24, 0.7])
    assert (
        not found.valid[2]
        and found.reasons[2].startswith("1 of 2 judges could be had")
        and "kind 0.50: why 0.5" in found.reasons[2]
    )
    assert (
        found.metrics["judges/agreement"] == pytest.approx((0.4 + 1, 2))
        and found.reasons[0] == "strict 0.20: why 0.2; kind 0.80: why 0.8"
    )
    assert found.evidence[0].item() == pytest.approx(0, abs=1e-6)
    third = pooled({"strict": strict, "kind": kind, "more": said_by([0.2, 0.9, 0.7], [1, 1, 1])})
    assert bool(third.valid.all()) and third.score[2].item() == pytest.approx(0.6), "two of three are enough"
    order = pooled({"kind": kind, "strict": strict})
    torch.testing.assert_close(order.score, found.score, equal_nan=True)
    torch.testing.assert_close(order.confidence, found.confidence, equal_nan=True)


def test_a_panel_judges_a_rubric_and_survives_a_judge_that_is_gone(bench: Any) -> None:
    kind, strict = bench(lambda body, n: chat(verdict(body, 1, 1))), bench(lambda body, n: chat(verdict(body, 0, 1)))
    gone = bench(lambda body, n: Reply(b"", 401))
    panel = PanelCritic({"kind": kind.critic(), "strict": strict.critic(), "gone": gone.critic()})
    assert panel.explains
    items = (Item(id="polite", question="Is it polite?", kind="critic"),)
    prompt = tiny.prompt("Ask for tea.")
    reward = RubricReward({"any": Rubric(version=1, category="any", items=items)}, panel)
    scores = reward([Response(prompt, i, (), f"tea {i}", True) for i in range(3)])
    assert scores.score[:, 0].tolist() == [0.5] * 3 and bool(scores.valid.all()) and scores.confidence[:, 0].tolist() == [0.0] * 3
    assert scores.metrics["judges/agreement"] == (0.0, 3.0) and answer_of(kind.server.bodies[0]).startswith("tea")
    assert all(word in scores.reasons[0][0] for word in ("kind 1.00", "strict 0.00", "gone missing", "HTTP 401"))


def test_a_panel_is_loaded_as_the_stage_left_it(tmp_path: Path) -> None:
    made = local()
    folder = tmp_path / "critic"
    for name in ("one", "two"):
        save_model(made.model, made.prompts.tokenizer, tmp_path / name)
    first = Judge(backend="local", model=str(tmp_path / "one"))
    other = PanelJudge(name="other", backend="local", model=str(tmp_path / "two"), repeats=3, temperature=0.5)
    for place, judge, slope in ((folder, first, 0.5), (folder / "panel/other", other, 2.0)):
        place.mkdir(parents=True)
        judge.write(place)
        Calibration({"": (slope, 0.0)}).write(place)
    critic = load_critic(folder, tmp_path)
    assert isinstance(critic, PanelCritic) and list(critic.judges) == ["judge", "other"]
    one, two = critic.judges.values()
    assert isinstance(one, LogitCritic) and isinstance(two, LogitCritic) and one.repeats == 1
    assert (two.repeats, two.temperature, two.calibration.items) == (3, 0.5, {"": (2.0, 0.0)})
    alone = [judge.judge(names(1), questions("tea")).score.item() for judge in (one, two)]
    assert critic.judge(names(1), questions("tea")).score.item() == pytest.approx(sum(alone) / 2)


# What params.yaml may say.


@pytest.mark.parametrize(("given", "why"), [
    ({"repeats": 0}, "greater"), ({"repeats": 101}, "less"), ({"repeats": 1.5}, "integer"), ({"repeats": 3}, "trained"),
    ({"backend": "openai", "model": "m", "repeats": 3}, "temperature 0"),
    ({"backend": "local", "model": "m", "repeats": 3}, "temperature 0"),
    ({"backend": "openai", "model": "m", "confidence": "agreement", "temperature": 1.0}, "several draws"),
    ({"backend": "local", "model": "m", "temperature": 1.0}, "no effect"), ({"temperature": 1.0}, "no effect"),
    ({"backend": "openai", "model": "m", "repeats": 2, "temperature": 1.0, "extra": {"seed": 1}}, "extra.seed"),
    ({"backend": "openai", "model": "m", "repeats": 2, "temperature": 1.0, "extra": {"temperature": 0}}, "extra.temperature"),
])  # fmt: skip
def test_draws_that_make_no_sense_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Judge.model_validate(given)


SMALL = "{name: small, backend: local, model: m}"


@pytest.mark.parametrize(("panel", "why"), [
    ("[{name: a, backend: guess, model: m}]", "backend"), ("[{name: a, backend: trained}]", "backend"),
    ("[{backend: local, model: m}]", "name is missing"), ("[{name: a, model: m}]", "backend is missing"),
    (f"[{SMALL}, {SMALL}]", "'small' is that of two judges"), ("[{name: judge, backend: local, model: m}]", "critic.judge"),
    (f"[{SMALL}, {{name: big, backend: local, model: m, calibration: isotonic}}]", "once more"),
    (f"[{SMALL}, {{name: big, backend: local, model: m, score: verdict}}]", "once more"),
    ("[{name: A b, backend: local, model: m}]", "pattern"), ("[{name: a, backend: local, model: m, modle: x}]", "modle"),
    ("[{name: a, backend: local}]", "model"), ("{name: a}", "list"), ("[small]", "panel"),
])  # fmt: skip
def test_a_panel_that_makes_no_sense_is_refused_with_its_line(root: Path, tmp_path: Path, panel: str, why: str) -> None:
    path = tmp_path / "params.yaml"
    text = (root / "params.yaml").read_text()
    path.write_text(text)
    with pytest.raises(GrapeError, match=why) as caught:
        params.set_values(path, [f"critic.panel={panel}"])
    assert str(caught.value.where).startswith("params.yaml:") and path.read_text() == text


def test_a_judge_that_is_another_only_in_what_is_made_of_it_is_the_same(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((root / "params.yaml").read_text())
    one = ["critic.judge.model=m", "critic.judge.backend=local"]
    with pytest.raises(GrapeError, match="'judge' once more"):
        params.set_values(path, [*one, f"critic.panel=[{SMALL}]"])
    found = params.set_values(path, [*one, "critic.panel=[{name: small, backend: local, model: other}]"])
    assert found.critic.panel == [PanelJudge(name="small", backend="local", model="other")]


def test_the_card_of_the_judges_covers_all_of_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    tree: dict[str, Any] = {
        "critic": {"judge": {"model": "one"}, "panel": [{"name": "a", "model": "two"}, {"name": "b", "model": "hub/id"}]}
    }
    project = Project(tmp_path)
    key = "critic.judge.model"
    before = named.card(project, tree, key)
    assert before.count("md5") == 2 and "critic.panel.1.model names no file" in before
    (tmp_path / "two/weights").write_text("another")
    assert named.card(project, tree, key) != before
    alone = {"critic": {"judge": {"model": "one"}, "panel": []}}
    assert named.card(project, alone, key) == before.splitlines(keepends=True)[0]
    assert named.card(project, {"critic": {"judge": {"model": None}, "panel": 3}}, key) == f"# {key} names no file.\n"
