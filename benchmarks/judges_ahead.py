"""What asking a server's judge while the policy still writes saves: `python -m benchmarks.judges_ahead MODEL [SECONDS]`.

MODEL is a folder or a GGUF file. A judge on this machine answers after SECONDS (default 1) without computing anything, as one that
computes elsewhere does. 32 answers of up to 96 tokens to 4 prompts, one judged item each, 8 requests at a time; with and without,
in turns, on other draws each time; medians of three.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from grape.models.chat import Chat
from grape.models.load import load_language_model
from grape.reward.critics.openai import ServerCritic
from grape.reward.critics.transport import Endpoint
from grape.reward.rubric import load_rubric
from grape.reward.source import RubricReward
from grape.sampling import Own, answers
from grape.types import Prompt

RUBRIC = "version: 1\ncategory: any\nitems:\n  - {id: clear, question: Is it clear?, kind: critic}\n"
ASKED = tuple(
    f"{what} Answer in a few words." for what in ("What is tea?", "Where is Rome?", "Who was Bach?", "Why does ice float?")
)


def server(seconds: float) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            key = re.findall(r'key\\": \\"([0-9a-f]{16})', asked)[-1]
            time.sleep(seconds)
            said = json.dumps({"reason": "so it is", "score": 0.5, "confidence": 0.5, "key": key})
            body = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


def main(model_path: str, seconds: float) -> None:
    model, tokenizer = load_language_model(model_path)
    chat, engine = Chat(tokenizer), Own(model)
    prompts = [Prompt(str(i), "any", ({"role": "user", "content": text},)) for i, text in enumerate(ASKED)]
    taken: dict[bool, list[float]] = {True: [], False: []}
    lengths: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.yaml"
        path.write_text(RUBRIC, encoding="utf-8")
        address = f"http://127.0.0.1:{server(seconds).server_address[1]}/v1"
        for turn in range(8):
            critic = ServerCritic(Endpoint(address), "judge", cache=Path(folder) / "kept")
            source, early = RubricReward({"any": load_rubric(path)}, critic), turn % 2 == 0
            started = time.monotonic()
            with source.ahead() if early else nullcontext() as told:
                found = answers(
                    engine, chat, prompts, 8, temperature=1.0, max_new_tokens=96, positions=256, keys=("bench", turn), told=told
                )  # fmt: skip
            scores = source(found)
            if turn > 1:  # the first of each warm up
                taken[early].append(time.monotonic() - started)
                lengths += [len(one.ids) for one in found]
            assert bool(scores.valid.all())
    plain, ahead = (statistics.median(taken[which]) for which in (False, True))
    print(
        f"answers of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):g}; the judge takes {seconds:g} s"
    )
    print(f"a round, sampled and judged: {plain:.2f} s one after the other, {ahead:.2f} s with judging ahead, {plain / ahead:.2f}x")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
