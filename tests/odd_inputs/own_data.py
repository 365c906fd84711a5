"""Data of one's own, and rubrics for them, as files: what the odd ones are made from."""

from __future__ import annotations

import json
from typing import Any

RUBRICS = {
    "sums": "version: 1\ncategory: sums\nitems:\n  - {id: right, question: Is it right?, kind: verify, verifier: numeric}\n",
    "talk": "version: 1\ncategory: talk\nitems:\n  - {id: kind, question: Is it kind?, kind: critic}\n"
    "  - {id: short, question: Is it short?, kind: verify, verifier: length, options: {high: 50}}\n",
}
U, A = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}


def line(**row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def question(n: int, **more: Any) -> dict[str, Any]:
    return {"category": "sums", "prompt": [{"role": "user", "content": f"What is {n} + 1?"}], "answer": str(n + 1)} | more


def shown(n: int, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"What is {n} + 3?"}, {"role": "assistant", "content": str(n + 3)}]
    return {"category": "sums", "messages": turns} | more


def judged(**more: Any) -> dict[str, Any]:
    return {"category": "talk", "item": "kind", "prompt": [U], "response": "Four.", "label": 1} | more


FILES = {
    "prompts.jsonl": b"".join(line(**question(n)) for n in range(6)),
    "sft.jsonl": b"".join(line(**shown(n)) for n in range(6)),
    "validation.jsonl": b"".join(line(**question(n)) for n in range(23, 25)),
    "test.jsonl": b"".join(line(**question(n)) for n in range(20, 23)),
    "corpus.jsonl": line(text="Two and two is four."),
    "judgements.jsonl": line(**judged()),
}
