"""`make bench`: both sides do what the table says they do, take turns, and a difference in their work is found."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import __main__ as speed
from benchmarks.speed import growth, machine, ours, tables, turns, work
from benchmarks.speed.gate import Gate
from grape.errors import GrapeError
from tests import tiny

STEPS = {"grpo": 2, "sft": 2, "dpo": 2, "reward": 2, "sampling": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("speed")
    work.prepare("tiny", None, made)
    return made


def told(run: Any, job: Any, steps: int) -> list[dict[str, Any]]:
    """What a side says of so many steps: all lines but the first, which says that it is ready."""
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        run(job, Gate(out, io.StringIO("\n" * steps)))
    assert ended.value.code == 0
    return [json.loads(line) for line in out.getvalue().splitlines()][1:]


def expected(given: work.Work, case: str) -> list[tuple[int, int]]:
    """(tokens, of them learned or written) of each step, counted from the work itself."""
    if case in ("sft", "dpo", "reward"):
        rows = given.rows if case == "sft" else given.pairs
        return [(sum(len(x) + len(y) for x, y in rows), sum(len(y) for _, y in rows))] * STEPS[case]
    asked, written = 8 * sum(len(ids) for _, ids in given.prompts), 4 * 8 * 32
    fixed = sum(map(len, given.completions))
    return [(written, written)] if case == "sampling" else [(asked + fixed, fixed), (asked + written, written)]


def test_the_work_is_what_the_page_says(folder: Path) -> None:
    given = work.Work.read(folder / "work.json")
    assert (len(given.prompts), len(given.completions), len(given.rows), len(given.pairs)) == (4, 32, 32, 32)
    lengths = [len(ids) for _, ids in given.prompts]
    assert len(set(lengths)) == 4 and all(40 <= n <= 60 for n in lengths)
    assert {len(y) for _, y in given.rows} == set(range(16, 33)) and all(y[-1] == 2 for _, y in given.rows)
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in zip(given.pairs[0::2], given.pairs[1::2], strict=True))
    far = [len(ids) for _, ids in work.Work.read(folder / work.LONG).prompts]
    assert all(85 <= n <= 105 for n in far)
    # 3 blocks of 4 attention matrices, 3 of an MLP and 2 norms; and the norm behind them.
    assert given.trunk == 3 * (4 * 96 * 96 + 3 * 96 * 256 + 2 * 96) + 96 and given.head == 100 * 96


@pytest.mark.parametrize("case", STEPS)
def test_our_side_does_the_given_work(folder: Path, case: str) -> None:
    found = told(ours.run, ours.Job(case, str(folder / "work.json"), "float32"), STEPS[case])
    assert [(step["tokens"], step["learned"]) for step in found] == expected(work.Work.read(folder / "work.json"), case)
    assert all(step["seconds"] > 0 and step["peak_mb"] > 0 for step in found)
    if case == "sampling":
        return
    assert all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in found)
    if case == "sft":
        assert found[0]["loss"] == pytest.approx(math.log(100), abs=0.2) and found[1]["loss"] < found[0]["loss"]
    if case == "dpo":
        assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and found[1]["loss"] < found[0]["loss"]


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_their_side_does_the_same(folder: Path, case: str) -> None:
    """In the environment of `make bench`: .venv-bench/bin/python -m pytest tests/test_speed.py."""
    pytest.importorskip("trl")
    from benchmarks.speed import theirs

    file = str(folder / "work.json")
    us = turns.Times("grape", {}, (), told(ours.run, ours.Job(case, file, "float32"), STEPS[case]))
    for name, parts in [("generate", 1), ("continuous", 1)] if case == "sampling" else [(case, 1), (case, 4)]:
        them = told(theirs.run, theirs.Job(name, file, "float32", parts), STEPS[case])
        assert turns.check(case, "float32", us, turns.Times(name, {}, (), them))


def test_growth_takes_a_step_of_every_shape(folder: Path) -> None:
    found = told(growth.run, growth.Job(str(folder / "work.json"), "float32"), len(growth.SHAPES))
    for shape, step in zip(growth.SHAPES, found, strict=True):
        prompts = work.Work.read(folder / (work.LONG if shape.prompt > 45 else "work.json")).prompts
        assert step["learned"] == shape.prompts * shape.samples * shape.new
        if shape.prompts >= len(prompts):  # else some of them, as they are drawn
            whole = sum(len(ids) for _, ids in prompts) * shape.prompts // len(prompts)
            assert step["tokens"] == step["learned"] + shape.samples * whole
    lines = tables.growth([{"source": 1.0 + i, "seconds": 3.0 + 2 * i} for i in range(len(growth.SHAPES))] * 2)
    assert lines[3].split(" | ")[4:] == ["100%", "2.00 s", "3.00 s", "1.00", "1.00 |"]  # the base
    assert lines[4].split(" | ")[4:] == ["100%", "3.00 s", "4.00 s", "1.50", "1.33 |"]
    assert lines[-1].split(" | ")[4] == "50%"


def test_a_model_is_cut_to_a_share_of_its_blocks_and_made_whole_again() -> None:
    model = tiny.model()
    ids, fit, ran = torch.tensor([[5, 6, 7]]), growth.cutter(model), list[int]()
    for i, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    whole = model(ids).logits
    fit(0.5)
    assert not torch.equal(model(ids).logits, whole)
    fit(1.0)
    assert torch.equal(model(ids).logits, whole) and ran == [0, 1, 0, 0, 1]


SIDE = """
import json, sys, time
from benchmarks.speed.gate import Gate
job = json.loads(sys.argv[1])
if job.get("fails"):
    sys.exit("it cannot run")
print("noise of a library")
gate = Gate.of_process()
print("more of it")
gate.wait()
for step in range(100):
    with open(job["log"], "a") as log:
        log.write(job["name"] + " ")
    gate.note(source=0.5)
    gate.wait(tokens=7, slow=job["slow"])
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> str:
    """The name of a side's module that writes down when it steps."""
    (tmp_path / "toy_side.py").write_text(SIDE.replace('print("noise of a library")\n', ""))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    return "toy_side"


def test_sides_step_in_turns_with_their_fastest_settings(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    jobs = [{"name": name, "slow": slow, "log": str(log)} for name, slow in (("a", 2), ("b", 1), ("c", 3))]
    monkeypatch.setattr(turns, "_tried", lambda worker: worker.job["slow"])
    sides = [
        turns.Side("grape", toy, jobs),
        turns.Side("other", toy, [{**jobs[0], "name": "o"}]),
        turns.Side("none", toy, [{"fails": True}], optional=True),
    ]
    times, absent = turns.contest(sides, tmp_path, 3)
    assert log.read_text().split() == ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["o"] * 2 + ["b", "o"] * 3
    assert [(t.side, t.job["name"], len(t.steps), t.source) for t in times] == [("grape", "b", 3, 0.5), ("other", "o", 3, 0.5)]
    assert list(absent) == ["none"] and "it cannot run" in absent["none"]
    with pytest.raises(GrapeError, match="it cannot run"):
        turns.contest([replace(sides[2], optional=False)], tmp_path, 1)


def times(side: str, seconds: Sequence[float], **said: Any) -> turns.Times:
    steps = [{"seconds": s, "peak_mb": 100.0, "tokens": 50, "learned": 20, "loss": 0.7, "grad_norm": 1.0, **said} for s in seconds]
    return turns.Times(side, {"case": "sft", "micro": 1024, "dtype": "float32"}, steps, steps)


def test_ratios_are_of_neighbouring_steps() -> None:
    assert turns.ratios(times("grape", [1.0, 2.0, 4.0]), times("TRL", [3.0, 2.0, 8.0])) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"tokens": 51}, "tokens"),
        ({"learned": 19}, "learned"),
        ({"loss": 0.701}, "loss"),
        ({"grad_norm": 1.01}, "grad_norm"),
        ({"loss": math.nan}, "loss"),
    ],
)
def test_a_difference_in_the_work_is_found(said: dict[str, float], message: str) -> None:
    us = times("grape", [1.0])
    assert turns.check("sft", "float32", us, times("TRL", [1.0], loss=0.70001))[0] == "50 tokens"
    with pytest.raises(GrapeError, match=f"not do the same work: {message}"):
        turns.check("sft", "float32", us, times("TRL", [1.0], **said))


def test_dpo_that_does_not_begin_at_ln_2_is_found() -> None:
    with pytest.raises(GrapeError, match="ln 2"):
        turns.check("dpo", "float32", times("grape", [1.0]), times("TRL", [1.0]))


def test_the_tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SIDE", 64), ("COPIED", 1 << 16), ("TRIES", 2)):
        monkeypatch.setattr(machine, name, value)
    peak = machine.measure()
    assert min(*peak.tflops.values(), peak.copy) > 0 and peak.versions.keys() >= {"torch", "transformers"}
    given, step = work.Work.read(folder / "work.json"), {"tokens": 10, "learned": 3}
    assert tables.flops(given, step) == 6 * (given.trunk * 10 + given.head * 3)
    assert tables.flops(given, step, 4) == 6 * (given.trunk * 6 + given.head * 3)
    result = tables.Result("tiny", "sft", "float32", [times("grape", [1.0, 1.0]), times("TRL", [2.0, 3.0])], {"it": "why"})
    line = tables.comparison([result])[2]
    assert "SFT, 32 rows | float32 | 1.00 s | TRL | 2.50 s | **2.50** [2.00, 3.00] | 100, 100 (1.00)" in line
    assert tables.comparison([result])[-1] == "it does not run here: why"
    assert f"| {tables.flops(given, result.times[0].steps[0]) / 1e12:.2f} |" in tables.bounds([result], given, peak)[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--scale tiny --model x", "no effect"),
        ("--model x/y.gguf", "no such folder"),
        ("--quick --turns 3", "not allowed with"),
        ("--only grpo --scale huge", "one of tiny, smollm2"),
        ("--only sfd", "did you mean 'sft'"),
        ("--turns 0", "at least 1"),
        ("--only growth --write README.md", "not marked"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    arguments: str, message: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    try:
        assert speed.main(arguments.split()) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert message in capsys.readouterr().err


def test_without_trl_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: None)
    assert speed.main(["--only", "sft"]) == 2
    assert "make bench" in capsys.readouterr().err
