"""The report: what it concludes, what it shows, what it refuses, and that it is the same twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grape.errors import GrapeError
from grape.report import conclusions, data, render, tables
from grape.track import Candidate
from tests.report.driver import KNOBS, Page, read, write

FILES = ("metrics.json", "report.md", "index.html")


def test_metrics_hold_sft_every_policy_and_every_algorithm(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo", "reinforce"])
    run = write(root, ["grpo", "reinforce"], [0, 1, 2], drawn=True)
    metrics = read(root)
    assert metrics["judge"] == "gold" and metrics["sft"]["gold"] == 0.55
    assert list(metrics["policies"]) == [f"{a}-{s}" for a in ("grpo", "reinforce") for s in (0, 1, 2)]
    first = metrics["policies"]["grpo-0"]
    assert (first["gold"], first["difference"]["gold"], first["difference"]["gold_low"]) == (0.83, 0.28, 0.25)
    assert first["categories"]["letters"]["n"] == 100 and first["kl_sequence"] == 1.16
    grpo = metrics["algorithms"]["grpo"]
    assert grpo["seeds"] == 3 and grpo["gold"] == pytest.approx(0.84)
    # three seeds 0.01 apart: t(2, 0.975) = 4.302653 times 0.01 / sqrt(3)
    assert grpo["gold_high"] - grpo["gold"] == pytest.approx(4.302653 * 0.01 / 3**0.5, abs=2e-6)
    assert run.numbers == {
        "sft/gold": 0.55,
        "grpo/gold": 0.84,
        "grpo/gold_difference": 0.29,
        "reinforce/gold": 0.58,
        "reinforce/gold_difference": 0.03,
        "alarms": 2.0,
    }
    assert {"reports/evaluate/grpo-0", "reports/test/grpo-0"} <= set(run.inputs)
    assert max(run.candidates, key=lambda c: c.mean) == Candidate("grpo-2", pytest.approx(0.3), pytest.approx(0.27))
    assert set(FILES) <= run.files.keys()
    assert {"plots/scores.png", "plots/learning.png", "plots/rewards.png", "plots/training.png"} <= run.files.keys()


def test_equal_inputs_give_equal_bytes(make_reports: Callable[..., Path]) -> None:
    root = make_reports(steps=10)
    write(root, ["grpo"], [0, 1, 2], drawn=True)
    first = {name: (root / "reports" / name).read_bytes() for name in FILES}
    for name in FILES:
        (root / "reports" / name).unlink()
    write(root, ["grpo"], [0, 1, 2], drawn=True)
    assert {name: (root / "reports" / name).read_bytes() for name in FILES} == first
    assert not list((root / "reports").glob("*.partial"))


def test_stale_folders_are_ignored(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo", "reinforce"], steps=5)
    (root / "reports" / "evaluate" / "ppo-0").mkdir()
    write(root, ["grpo"], [1])
    metrics = read(root)
    assert list(metrics["policies"]) == ["grpo-1"]
    assert metrics["algorithms"]["grpo"]["gold_low"] is None and metrics["algorithms"]["grpo"]["gold"] == 0.84
    assert "reinforce" not in (root / "reports" / "index.html").read_text()


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("evaluate/grpo-1/metrics.json", "evaluate@grpo-1"),
        ("evaluate/grpo-1/samples.jsonl", "evaluate@grpo-1"),
        ("test/grpo-1/metrics.json", "test@grpo-1"),
        ("train/rl/grpo-0.jsonl", "rl@grpo-0"),
        ("train/critic.jsonl", "critic"),
    ],
)
def test_a_missing_file_names_the_stage_to_run(make_reports: Callable[..., Path], path: str, stage: str) -> None:
    root = make_reports(steps=5)
    (root / "reports" / path).unlink()
    with pytest.raises(GrapeError, match=stage) as caught:
        write(root, ["grpo"], [0, 1])
    assert caught.value.where == f"reports/{path}" and f"grape run {stage}" in str(caught.value)
    assert not (root / "reports" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("evaluate/grpo-0/metrics.json", "{", "Invalid JSON"),
        ("evaluate/grpo-0/metrics.json", "{}", "split"),
        ("evaluate/grpo-0/samples.jsonl", '{"id": 1}\n[]\n', "line 2"),
        ("train/sft.jsonl", '{"loss": 1}\n', "no step"),
    ],
)
def test_a_broken_file_is_named(make_reports: Callable[..., Path], path: str, text: str, problem: str) -> None:
    root = make_reports(steps=5)
    (root / "reports" / path).write_text(text)
    with pytest.raises(GrapeError, match=problem) as caught:
        write(root, ["grpo"], [0])
    assert caught.value.where == f"reports/{path}"


def test_without_a_gold_judge_the_proxy_decides(make_reports: Callable[..., Path]) -> None:
    root = make_reports(gold=False, steps=5)
    run = write(root, ["grpo"], [0, 1])
    metrics = read(root)
    assert metrics["judge"] == "proxy" and metrics["sft"]["gold"] is None and metrics["sft"]["proxy"] == 0.6
    assert metrics["algorithms"]["grpo"]["gold"] is None
    assert metrics["algorithms"]["grpo"]["difference"] == pytest.approx(0.315)
    assert run.candidates[0] == Candidate("grpo-0", pytest.approx(0.31), pytest.approx(0.28))
    for name in ("index.html", "report.md"):
        assert "no gold judge" in (root / "reports" / name).read_text()


def test_the_page_is_self_contained_and_hostile_text_stays_text(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo"], steps=5)
    for kind in ("evaluate", "test"):
        metrics = root / "reports" / kind / "grpo-0" / "metrics.json"
        metrics.write_text(metrics.read_text().replace("courtesy", "a|b<img>"))
    write(root, ["grpo"], [0], drawn=True)
    page = Page(root)
    assert not {"script", "link", "iframe"} & set(page.tags) and page.tags.count("img") == 10
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "<script>alert('x')</script> & | `code` ```" in page.text
    markdown = (root / "reports" / "report.md").read_text()
    assert r"a\|b\<img\>" in markdown
    for block in markdown.split("\n\n"):  # every row of a table has as many cells as its head
        rows = [line.replace(r"\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def test_one_step_no_curves_and_no_samples_still_make_a_page(make_reports: Callable[..., Path]) -> None:
    root = make_reports(steps=0, samples=1)
    write(root, ["grpo"], [0], samples=0, drawn=True)
    page = Page(root)
    assert page.tags.count("img") == 5


@pytest.mark.parametrize(
    ("algorithm", "outcome", "sentence", "title"),
    [
        ("grpo", "beats", "better than SFT with each of 3 seeds", "grpo beats SFT"),
        ("reinforce", "mixed", "better than SFT with 1 of 3 seeds", "Some seeds beat SFT, no algorithm does with all of them"),
        ("trpo", "loses", "worse than SFT with each of 3 seeds", "No policy beats SFT"),
    ],
)
def test_the_verdict_counts_seeds(
    make_reports: Callable[..., Path], algorithm: str, outcome: str, sentence: str, title: str
) -> None:
    inputs = data.read(make_reports([algorithm], steps=1), [algorithm], [0, 1, 2])
    found = conclusions.conclusion(inputs, algorithm, 0.95)
    assert (found.outcome, found.sentence) == (outcome, sentence)
    assert render.context(inputs, 0.95, KNOBS, {})["title"] == title


def test_what_was_left_out_stands_in_the_report_by_stage_and_reason(make_reports: Callable[..., Path]) -> None:
    root = make_reports(("grpo",), (0,))
    train, evaluated = root / "reports/train", root / "reports/evaluate/grpo-0/metrics.json"
    for name, reason, count in (("prepare", "leakage", 3), ("preferences", "too_long", 2), ("sft", "too_long", 4)):
        first = {"step": 0, "rows/kept": 100.0, f"dropped/{reason}": float(count), "dropped/other": 0.0}
        path = train / f"{name}.jsonl"
        path.write_text(json.dumps(first) + "\n" + ("" if name == "prepare" else path.read_text()))
    evaluated.write_text(json.dumps(json.loads(evaluated.read_text()) | {"dropped": {"too_long": 5}}))
    rows = tables.left_out(data.read(root, ["grpo"], [0]))
    assert [(row["stage"], row["reason"], row["rows"]) for row in rows] == [
        ("prepare", "leakage", 3), ("preferences", "too long", 2), ("sft", "too long", 4), ("evaluate@grpo-0", "too long", 5),
    ]  # fmt: skip


def test_the_champion_is_chosen_by_validation_prompts_and_no_test_prompt_is_shown(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo", "ppo"], (0,), steps=5)
    for name, score in (("grpo", 0.1), ("ppo", 0.2)):  # on the test prompts grpo is the better one
        path = root / f"reports/evaluate/{name}-0/metrics.json"
        difference = {judge: {"mean": score, "low": score - 0.05, "high": score + 0.05} for judge in ("gold", "proxy")}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"difference": difference, "prompts": 90}))
    for path in (root / "reports/test").glob("*/samples.jsonl"):
        path.write_text(path.read_text().replace("Question", "Secret"))
    run = write(root, ["grpo", "ppo"], [0])
    assert max(run.candidates, key=lambda c: c.mean) == Candidate("ppo-0", 0.2, pytest.approx(0.15))
    assert read(root)["validation"]["ppo-0"]["gold"] == 0.2 and read(root)["splits"]["validation"]["prompts"] == 90
    for name in ("index.html", "report.md"):
        text = (root / "reports" / name).read_text()
        assert "Secret" not in text and "300 test prompts, looked at for the first time" in text and "by 90 validation" in text


def test_a_second_look_at_the_test_prompts_is_counted_and_shown(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo"], (0, 1), steps=5)
    seen = {"test": "md5 of test", "policy": "grpo-0", "at": "2026-01-02T03:04:05+00:00"}
    own = [seen | {"policy": f"grpo-{seed}", "weights": f"md5 of grpo-{seed}"} for seed in (0, 1)]
    (root / "inputs").mkdir()
    path = root / "inputs/looks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*own, seen | {"test": "another", "weights": "x"}]))
    write(root, ["grpo"], [0, 1])
    assert read(root)["splits"]["test"]["looks_at_others"] == 0
    path.write_text(path.read_text() + json.dumps(seen | {"weights": "before the knobs were turned"}) + "\n")
    run = write(root, ["grpo"], [0, 1])
    assert read(root)["splits"]["test"]["looks_at_others"] == 1 and "looked at before" in run.tags["grape.alarms"]
    for name in ("index.html", "report.md"):
        text = (root / "reports" / name).read_text()
        assert "looked at before for 1 other" in text and "last grpo-0, 2026-01-02" in text


def test_a_policy_that_was_tested_with_other_weights_is_refused(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo"], (0,), steps=5)
    path = root / "reports/evaluate/grpo-0/metrics.json"
    path.write_text(path.read_text().replace("md5 of grpo-0", "others"))
    with pytest.raises(GrapeError, match="other weights") as caught:
        write(root, ["grpo"], [0])
    assert "test@grpo-0" in str(caught.value.mend)


def test_the_table_shows_all_that_could_have_been_made_equal_and_says_what_was(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo", "ppo"], (0, 1), steps=5)
    write(root, ["grpo", "ppo"], [0, 1], budget={"tokens": 20000.0})
    row = read(root)["algorithms"]["ppo"]
    assert {unit: row[unit] for unit in ("samples", "tokens", "seconds", "updates")} == {
        "samples": 640, "tokens": 20400, "seconds": 6.2, "updates": 10}  # fmt: skip
    for name in ("index.html", "report.md"):
        assert "in which it had used 20000 tokens" in (root / "reports" / name).read_text()
    write(root, ["grpo", "ppo"], [0, 1])
    assert "with the same number of samples" in (root / "reports/report.md").read_text()


def test_samples_show_gains_losses_and_the_middle(make_reports: Callable[..., Path]) -> None:
    inputs = data.read(make_reports(seeds=(0,), steps=1), ["grpo"], [0])
    ((name, rows),) = tables.samples(inputs, 3, None)
    assert name == "grpo-0" and len(rows) == 9
    gains = [row.policy["score"] - row.sft["score"] for row in rows[:3]]
    assert [row.label for row in rows[:3]] == ["largest gain", "typical", "smallest gain or loss"]
    assert gains[0] == pytest.approx(0.6) and gains[2] == pytest.approx(-0.3) and gains[0] > gains[1] > gains[2]


def test_a_conversation_is_shown_turn_by_turn(make_reports: Callable[..., Path]) -> None:
    inputs = data.read(make_reports(seeds=(0,), steps=1, samples=1), ["grpo"], [0])
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    inputs.shown["grpo-0"][0] = inputs.shown["grpo-0"][0].model_copy(update={"prompt": turns})
    assert tables.samples(inputs, 3, None)[0][1][0].prompt == "user: Hello\nassistant: Hi"


JUDGED = {
    "agreement": 0.8,
    "ece": 0.1,
    "ece_floor": 0.05,
    "judged": 40.0,
    "courtesy/polite/agreement": 0.9,
    "courtesy/polite/judged": 30.0,
}


def test_the_judges_stand_beside_people_and_each_other(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=[0], steps=3)
    inputs = data.read(root, ["grpo"], [0])
    assert tables.judges(inputs) == [] and "Judges" not in render.markdown(render.context(inputs, 0.95, KNOBS, {}))
    who = {"backend": "local", "model": "some|model", "repeats": 1, "curves": 2, "numbers": {**JUDGED, "kappa": 0.61}}
    alone = {
        "name": "raw",
        "backend": "openai",
        "model": "m",
        "repeats": 3,
        "curves": 0,
        "numbers": {"judged": 0.0, "missing": 0.0},
    }
    given = {"judges": [{"name": "judge", **who}, alone], "statistic": "Cohen's kappa", "between": {"": 0.42}}
    (root / "reports/train/judges.json").write_text(json.dumps(given))
    inputs = data.read(root, ["grpo"], [0])
    assert [(row["name"], row["item"], row["judged"]) for row in tables.judges(inputs)] == [
        ("judge", "all", 40), ("judge", "courtesy/polite", 30), ("raw", "all", 0)
    ]  # fmt: skip
    context = render.context(inputs, 0.95, KNOBS, {})
    text, page = render.markdown(context), render.html(context)
    assert "| judge | some\\|model | all | 40 | 80 % | 0.61 | 0.10 (0.05) | calibrated | 0.42 |" in text
    assert "| raw | m | all | 0 | – | – | – (–) | its own, not calibrated | 0.42 |" in text
    assert "some|model" in page and "Cohen&#39;s kappa" in page and 'href="#judges"' in page
    (root / "reports/train/judges.json").write_text('{"judges": 3}')
    with pytest.raises(GrapeError, match="what stage critic writes"):
        data.read(root, ["grpo"], [0])
