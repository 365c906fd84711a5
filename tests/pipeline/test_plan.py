"""The graph as DVC prints it, and the reasons of a plan."""

from __future__ import annotations

from typing import Any

import pytest

from grape.dvc import Graph
from grape.errors import GrapeError
from grape.pipeline import closing, plan, schedule

DOT = """strict digraph {
"prepare";
"sft";
"rl@grpo-0";
"rl@grpo-1";
"report";
"prepare" -> "sft";
"sft" -> "rl@grpo-0";
"sft" -> "rl@grpo-1";
"rl@grpo-0" -> "report";
"rl@grpo-1" -> "report";
}
"""
GRAPH = Graph.from_dot(DOT)
LOCK: dict[str, Any] = {
    "prepare": {"cmd": "p", "outs": [{"path": "data", "md5": "a" * 32}]},
    "sft": {
        "cmd": "s",
        "deps": [{"path": "data", "md5": "a" * 32}],
        "outs": [{"path": "models/sft", "md5": "b" * 32}],
        "params": {"params.yaml": {"sft": {"steps": 60, "rate": 0.1}}},
    },
    "rl@grpo-0": {
        "cmd": "r",
        "deps": [{"path": "models/sft", "md5": "b" * 32}],
        "outs": [{"path": "models/policy/grpo-0", "md5": "c" * 32}],
        "params": {"params.yaml": {"algorithms.grpo": {"clip_low": 0.2, "clip_high": 0.2}, "rl.steps": 5}},
    },
    "rl@grpo-1": {"cmd": "r", "outs": [{"path": "models/policy/grpo-1", "md5": "d" * 32}]},
    "report": {"cmd": "t", "outs": [{"path": "reports/index.html", "md5": "e" * 32}]},
}
PARAMS = {"sft": {"steps": 60, "rate": 0.1}, "algorithms": {"grpo": {"clip_low": 0.1, "clip_high": 0.2}}, "rl": {"steps": 7}}


def draw(status: dict[str, Any], cached: bool = True, lock: dict[str, Any] = LOCK) -> dict[str, tuple[str, str]]:
    steps = plan.make(GRAPH, status, lock, PARAMS, lambda md5: cached).steps
    return {step.stage: (step.action, "; ".join(step.reasons)) for step in steps}


def test_the_graph_is_read_selected_and_ordered() -> None:
    assert GRAPH.needs["report"] == ("rl@grpo-0", "rl@grpo-1")
    assert list(GRAPH.select(["rl@grpo-1"]).needs) == ["prepare", "sft", "rl@grpo-1"]
    assert list(GRAPH.select(["rl"]).needs) == ["prepare", "sft", "rl@grpo-0", "rl@grpo-1"]
    backwards = Graph({"b": ("a",), "c": ("b",), "a": ()})
    assert backwards.order() == ["a", "b", "c"]
    with pytest.raises(GrapeError, match="no stage 'rl@grpo-7'"):
        GRAPH.select(["rl@grpo-7"])


def test_threads_depend_on_the_graph_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "cores", lambda: 8)
    assert GRAPH.beside() == {"prepare": 0, "sft": 0, "rl@grpo-0": 1, "rl@grpo-1": 1, "report": 0}
    assert schedule.threads(GRAPH, 4) == {"prepare": 8, "sft": 8, "rl@grpo-0": 4, "rl@grpo-1": 4, "report": 8}
    assert set(schedule.threads(GRAPH, 1).values()) == {8}


def test_nothing_changed() -> None:
    assert set(draw({}).values()) == {("ready", "")}


def test_a_parameter_is_told_with_its_old_and_new_value() -> None:
    changed = {"params.yaml": {"algorithms.grpo": "modified", "rl.steps": "modified"}}
    got = draw({"rl@grpo-0": [{"changed deps": changed}]})
    assert got["rl@grpo-0"] == ("run", "algorithms.grpo.clip_low 0.2 -> 0.1; rl.steps 5 -> 7")
    assert got["rl@grpo-1"] == ("ready", "")
    assert got["report"] == ("check", "after rl@grpo-0")


def test_a_parameter_that_came_or_went() -> None:
    lock = {**LOCK, "sft": {**LOCK["sft"], "params": {"params.yaml": {"sft": {"steps": 60, "old": 1}}}}}
    got = draw({"sft": [{"changed deps": {"params.yaml": {"sft": "modified"}}}]}, lock=lock)
    assert got["sft"][1] == "sft.rate (unset) -> 0.1; sft.old 1 -> (unset)"


def test_code_and_data() -> None:
    got = draw({"sft": [{"changed deps": {"grape/training": "modified", "data/own": "deleted"}}, "changed command"]})
    assert got["sft"] == ("run", "its command in dvc.yaml changed; grape/training changed; data/own is missing")
    assert got["rl@grpo-0"] == ("check", "after sft")


def test_a_new_stage_never_ran() -> None:
    lock = {name: entry for name, entry in LOCK.items() if name != "rl@grpo-1"}
    got = draw(
        {
            "rl@grpo-1": [
                {"changed deps": {"params.yaml": "new", "models/sft": "new"}},
                {"changed outs": {"models/policy/grpo-1": "deleted"}},
            ]
        },
        lock=lock,
    )
    assert got["rl@grpo-1"] == ("run", "it never ran here")


def test_what_the_cache_gives_back_disturbs_nobody() -> None:
    got = draw({"sft": [{"changed outs": {"models/sft": "deleted"}}], "rl@grpo-0": [{"changed deps": {"models/sft": "deleted"}}]})
    assert got["sft"] == ("restore", "models/sft is not here")
    assert got["rl@grpo-0"] == ("check", "after sft")
    assert got["rl@grpo-1"] == ("ready", "")


def test_a_truncated_model_is_told() -> None:
    got = draw({"sft": [{"changed outs": {"models/sft": "modified"}}]})
    assert got["sft"] == ("restore", "models/sft is damaged or was edited")


def test_what_the_cache_has_lost_is_made_again() -> None:
    got = draw({"sft": [{"changed outs": {"models/sft": "not in cache"}}]}, cached=False)
    assert got["sft"][0] == "run" and "not in DVC's cache" in got["sft"][1]
    assert got["rl@grpo-1"] == ("check", "after sft")


def test_a_change_dvc_has_no_words_for_still_runs() -> None:
    assert draw({"sft": [{"changed checksum": {"x": "y"}}]})["sft"][0] == "run"


def test_the_number_shown_of_a_report_is_what_was_gained() -> None:
    found = {"alarms": 0.0, "grape/gold": 0.527, "grape/gold_difference": 0.2243, "sft/gold": 0.303}
    assert closing.headline({"headline": found}) == "grape/gold_difference 0.2243"
    assert closing.headline({"headline": {"alarms": 1.0}}) == "alarms 1" and closing.headline(None) == ""
