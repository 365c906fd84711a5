"""The engine `vllm` without vLLM: what is asked, how answers are read, what weights are handed over, and how a server fails. The
answer stands as vLLM 0.32 gave it; `tests/models/test_vllm_real.py` asks a real server."""

from __future__ import annotations

import copy
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from grape.errors import GrapeError
from grape.sampling import Own, Wanted, vllm_server
from grape.sampling.handover import hand_over
from grape.sampling.vllm import Vllm, request, responses
from grape.sampling.vllm_server import VARIABLE, VllmServer, executable
from tests import tiny

RECORDED = json.loads((Path(__file__).parent / "vllm_answer.json").read_text())
WANTED = Wanted([[5, 6, 7], [9] * 14], ["a", "b"], [6, 4], 2, 0.8, ("k", 1), frozenset({2}), 0)


def test_nothing_that_changes_a_draw_is_left_to_the_server() -> None:
    body, other = request(WANTED, 0, "it"), request(WANTED, 1, "it")
    assert body["prompt"] == [5, 6, 7] and body["max_tokens"] == 6 and body["n"] == 2 and body["temperature"] == 0.8
    assert body["top_p"] == 1 and body["top_k"] == -1 and body["min_p"] == 0 and body["repetition_penalty"] == 1
    assert body["ignore_eos"] and body["stop_token_ids"] == [2] and body["logprobs"] == 0 and body["return_token_ids"]
    assert body["seed"] == request(WANTED.part([0]), 0, "it")["seed"]  # whoever is asked beside it
    assert abs(body["seed"] - other["seed"]) > 2 and 0 <= body["seed"] < 2**62


def test_answers_are_read_in_the_order_of_their_seeds() -> None:
    rows = responses(RECORDED, WANTED, 0)
    turned = {**RECORDED, "choices": RECORDED["choices"][::-1]}
    assert responses(turned, WANTED, 0) == rows and len(rows) == 2
    for row, choice in zip(rows, RECORDED["choices"], strict=True):
        assert row.ids == choice["token_ids"] and row.logp == choice["logprobs"]["token_logprobs"]
        assert all(p <= 0 for p in row.logp) and len(row.ids) == 6
    stopped = copy.deepcopy(RECORDED)
    stopped["choices"][1] |= {"finish_reason": "stop", "token_ids": [7, 2], "logprobs": {"token_logprobs": [-2.9, -0.2]}}
    assert responses(stopped, WANTED, 0)[1] == ([7, 2], [-2.9, -0.2])  # what ended it is part of it


SPOILT: dict[str, Callable[[Any], Any]] = {
    "no choices": lambda a: a.pop("choices"),
    "one too few": lambda a: a["choices"].pop(),
    "no ids": lambda a: a["choices"][0].update(token_ids=None),
    "a log-probability too few": lambda a: a["choices"][0]["logprobs"]["token_logprobs"].pop(),
    "not a number": lambda a: a["choices"][0]["logprobs"]["token_logprobs"].__setitem__(0, float("nan")),
    "aborted": lambda a: a["choices"][0].update(finish_reason="abort"),
    "stopped at nothing": lambda a: a["choices"][0].update(finish_reason="stop", token_ids=[7], logprobs={"token_logprobs": [-1]}),
}


@pytest.mark.parametrize("how", SPOILT)
def test_an_answer_that_is_not_whole_is_refused(how: str) -> None:
    answer = copy.deepcopy(RECORDED)
    SPOILT[how](answer)
    with pytest.raises(ValueError):
        responses(answer, WANTED, 0)


@pytest.mark.parametrize("make", [tiny.model, lambda: tiny.model("gpt2"), lambda: tiny.model("qwen3"), tiny.adapted])
def test_what_is_handed_over_is_the_policy(make: Callable[[], Any], tmp_path: Path) -> None:
    model, ids = make(), torch.tensor([[5, 9, 11, 8, 30]])
    hand_over(model, tmp_path / "w", "float32")
    files = sorted(f.name for f in (tmp_path / "w").glob("*.safetensors"))
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert "lora" not in "".join(files) and config["tie_word_embeddings"] is False
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "w").eval()
    if "head.safetensors" in files:
        from safetensors.torch import load_file

        plain.load_state_dict(load_file(tmp_path / "w" / "head.safetensors"), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_answers_of_other_weights_are_refused_and_those_of_the_policy_pass() -> None:
    policy, other = tiny.model(), tiny.model(seed=5)
    engine = Vllm(SimpleNamespace(version="0"), policy, "float32")  # type: ignore[arg-type]
    own, foreign = ([rows[:2], rows[2:]] for rows in (Own(m).write(WANTED) for m in (policy, other)))
    with pytest.raises(GrapeError, match="does not draw from the policy"):
        engine._check(WANTED, foreign)
    assert not engine.checked
    engine._check(WANTED, own)
    assert engine.checked


@pytest.mark.parametrize(("given", "what"), [("", "is not set"), ("/nowhere/vllm", "no such file"), ("TEXT", "cannot be run")])
def test_a_program_that_is_none_is_named(given: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").write_text("no program")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "vllm") if given == "TEXT" else given)
    with pytest.raises(GrapeError, match=what):
        executable()


SERVER = """
import http.server, json, sys
words = sys.argv; port = int(words[words.index("--port") + 1]); name = words[words.index("--served-model-name") + 1]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"version": "9", "data": [{"id": name}]}).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        print("told to end", flush=True); import os; os._exit(3)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def program(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> VllmServer:
    """A server whose program is this one."""
    path = tmp_path / "vllm"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(path))
    return VllmServer(tmp_path / "weights", tmp_path / "place", tmp_path / "logs" / "vllm.log", "float32", 64, 1 << 20, True)


def of(tmp_path: Path) -> list[psutil.Process]:
    """What runs of it."""
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and any(str(tmp_path) in w for w in _words(p))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_server_that_dies_at_its_start_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import sys; print('Model architectures [Odd] are not supported'); sys.exit(1)"
    with pytest.raises(GrapeError, match=r"did not start(.|\n)*\[Odd\] are not supported"), program(tmp_path, text, monkeypatch):
        pass
    assert not of(tmp_path) and not (tmp_path / "place").exists()
    with pytest.raises(GrapeError, match="too little memory"):
        program(tmp_path, "raise SystemExit('torch: out of memory')", monkeypatch).__enter__()


def test_a_server_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "START_SECONDS", 1.0)
    monkeypatch.setattr(vllm_server, "GRACE", 0.2)
    text = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(GrapeError, match="did not answer within 1 s"), program(tmp_path, text, monkeypatch):
        pass
    assert not of(tmp_path)


def test_a_port_that_is_taken_is_not_taken_for_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], vllm_server.free_port()]
        monkeypatch.setattr(vllm_server, "free_port", lambda: ports.pop(0))
        with program(tmp_path, SERVER, monkeypatch) as server:
            assert server.version == "9" and not ports


def test_its_end_in_mid_run_and_an_error_of_ours_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GrapeError, match=r"ended in mid-run(.|\n)*told to end"), program(tmp_path, SERVER, monkeypatch) as server:
        server.post("/collective_rpc", {})
    with pytest.raises(KeyboardInterrupt), program(tmp_path, SERVER, monkeypatch):
        assert of(tmp_path)
        raise KeyboardInterrupt
    assert not of(tmp_path)
