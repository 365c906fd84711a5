"""Data files of every odd kind, a line a case: a wrong one is refused with file and line and nothing is written, what a right one
holds stands in data/ as it was."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from grape import params as params_file
from grape.artifacts import read_prompts
from grape.errors import GrapeError
from grape.project import NONCE, Project
from grape.stages import prepare
from grape.stages.inputs import resolved
from grape.stages.stage import Stage
from grape.track import StageRun
from tests.odd_inputs.own_data import FILES, A, U, judged, line, question, shown


def run(project: Project) -> dict[str, float]:
    """As `python3 -m grape.stages prepare` does, without MLflow; the headline."""
    params = params_file.load(project.params, [])
    with StageRun(project, "prepare", resolved(project, params, "prepare"), 0, deliver=False) as stage_run:
        prepare.run(Stage("prepare", "prepare", params, project, stage_run))
    found: dict[str, float] = json.loads(project.receipt("prepare").read_text())["headline"]
    return found


def chat(*turns: dict[str, Any]) -> bytes:
    return line(category="sums", messages=list(turns))


def asks(*turns: dict[str, Any], **more: Any) -> bytes:
    return line(**{"category": "sums", "prompt": list(turns), "answer": "4"} | more)


# Appended to the file as its next line: file, bytes, words of the refusal.
WRONG_LINES: list[tuple[str, bytes, str]] = [
    # no JSON object
    ("sft.jsonl", b"not json\n", "not a JSON object"), ("sft.jsonl", b'{"category": "sums"\n', "not a JSON object"),
    ("prompts.jsonl", b"[1, 2]\n", "a list, not an object"), ("prompts.jsonl", b"null\n", "not an object"),
    ("corpus.jsonl", b'"text"\n', "a str, not an object"), ("corpus.jsonl", b'{"text": NaN}\n', "NaN is no JSON"),
    ("corpus.jsonl", b'{"text": Infinity}\n', "Infinity is no JSON"), ("corpus.jsonl", b"{'text': 'x'}\n", "not a JSON object"),
    ("corpus.jsonl", b'{"text": "a"} {"text": "b"}\n', "not a JSON"), ("corpus.jsonl", b'{"text": "a",}\n', "not a JSON"),
    ("corpus.jsonl", b'{"text": "a", "text": "b"}\n', "stands twice"), ("corpus.jsonl", b'{"text": "a\nb"}\n', "not a JSON object"),
    ("corpus.jsonl", b"[" * 100_000 + b"\n", "nested too deeply"), ("corpus.jsonl", b'{"text": "\\x"}\n', "not a JSON object"),
    ("corpus.jsonl", b'// a comment\n', "not a JSON object"), ("corpus.jsonl", b'{"text": "a", "n": 1e999}\n', "too large"),
    # no text
    ("corpus.jsonl", '{"text": "Größe"}\n'.encode("latin-1"), "not UTF-8"), ("corpus.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
    ("corpus.jsonl", b'{"text": "\0"}\n', "NUL"), ("corpus.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
    ("corpus.jsonl", b'{"text": "\\udc00\\ud800"}\n', "surrogate"), ("sft.jsonl", b'{"category": "a\\ud83d"}\n', "surrogate"),
    ("corpus.jsonl", '{"text": "a\U000f0000b"}\n'.encode(), r"U\+F0000"),
    ("sft.jsonl", chat(U, {"role": "assistant", "content": "4\U000f0001"}), r"U\+F0000"),
    # columns
    ("corpus.jsonl", line(txt="a"), "column text"), ("corpus.jsonl", line(text=""), "column text"),
    ("corpus.jsonl", line(text=None), "column text"), ("corpus.jsonl", line(text=["a"]), "column text"),
    ("sft.jsonl", line(category="sums"), "column messages"), ("sft.jsonl", line(messages=[U, A]), "column category"),
    ("sft.jsonl", line(category="", messages=[U, A]), "column category"),
    ("sft.jsonl", line(category="sums", messages="hi"), "not a list of turns"),
    ("sft.jsonl", line(category="sums", messages=[U]), "column messages"),
    ("sft.jsonl", line(category="sums", messages=[]), "column messages"),
    ("sft.jsonl", line(category=1.5, messages=[U, A]), "column category"),
    ("sft.jsonl", line(id=True, category="sums", messages=[U, A]), "column id"),
    ("sft.jsonl", line(id=2.0, category="sums", messages=[U, A]), "column id"),
    ("prompts.jsonl", line(category="sums", prompt=4, answer="4"), "neither text nor turns"),
    ("prompts.jsonl", line(category="sums", prompt=[], answer="4"), "column prompt"),
    ("prompts.jsonl", asks(U, answer=0.1), "write it as text"), ("prompts.jsonl", asks(U, answer=["4"]), "column answer"),
    ("prompts.jsonl", asks(U, answer=True), "column answer"),
    ("judgements.jsonl", line(**judged(label=2)), "label"), ("judgements.jsonl", line(**judged(label="yes")), "column label"),
    ("judgements.jsonl", line(**judged(label=None)), "label"), ("judgements.jsonl", line(**judged(response=4)), "column resp"),
    ("judgements.jsonl", line(**judged(prompt=[U, A])), "must be the user's"),
    # turns
    ("sft.jsonl", chat(U, {"role": "assistant", "content": ""}), "content is empty"),
    ("sft.jsonl", chat(U, {"role": "assistant", "content": " \n"}), "content is empty"),
    ("sft.jsonl", chat(U, {"role": "assistant"}), "content is empty"),
    ("sft.jsonl", chat({"role": "user", "content": ""}, A), "content is empty"),
    ("sft.jsonl", chat(U, A, U), "must be the assistant's"), ("sft.jsonl", chat(A, U, A), "begins with the assistant"),
    ("sft.jsonl", chat(U, {"role": "model", "content": "4"}), "role"), ("sft.jsonl", chat(U, {"content": "4"}), "role"),
    ("sft.jsonl", chat(U, {"from": "gpt", "value": "4"}), "role: Field"), ("sft.jsonl", chat(U, A | {"weight": 0}), "no such key"),
    ("sft.jsonl", chat(U, {"role": "assistant", "content": ["4"]}), "content"),
    ("sft.jsonl", chat(U, {"role": "assistant", "content": 4}), "content"),
    ("sft.jsonl", chat(U | {"tool_calls": [{"name": "add"}]}, A), "only the assistant calls tools"),
    ("prompts.jsonl", asks(U, A), "must be"), ("prompts.jsonl", asks({"role": "system", "content": "Be kind."}), "must be"),
    # what the model's template does not say is not left out without a word
    ("sft.jsonl", chat(U, A | {"tool_calls": [{"function": {"name": "add", "arguments": {}}}]}), "tool_calls"),
    ("sft.jsonl", chat(U, A | {"reasoning_content": "2 and 2 ..."}), "reasoning_content"),
    ("sft.jsonl", chat(U | {"name": "Ann"}, A), "name"),
    ("sft.jsonl", chat(U, A | {"tool_calls": [{"function": {"name": "a", "arguments": {"\U000f0000": 1}}}]}), r"U\+F0000"),
    # ids
    ("prompts.jsonl", line(**question(1, id="a")) + line(**question(2, id="a")), "already stands at .*mine/prompts.jsonl:9"),
    ("prompts.jsonl", line(**question(1, id=7)) + line(**question(2, id="7")), "already stands"),
    ("sft.jsonl", line(**shown(1, id="a")) + line(**shown(2, id="a")), "already stands"),
    ("judgements.jsonl", line(**judged(id="a")) + line(**judged(id="a", label=0)), "already stands"),
    ("test.jsonl", line(**question(31, id="a")) + line(**question(31, id="a", answer="33")), "already stands"),
    # what no rubric or verifier can make anything of
    ("prompts.jsonl", asks(U, category="poems"), "no rubric for the category 'poems'"),
    ("test.jsonl", asks(U, category="poems"), "no rubric for the category 'poems'"),
    ("prompts.jsonl", asks(U, answer=None), "answer"), ("prompts.jsonl", asks(U, answer="four"), "four"),
    ("prompts.jsonl", asks(U, answer="4 apples"), "4 apples"), ("prompts.jsonl", asks(U, answer="3 or 4"), "3 or 4"),
    ("prompts.jsonl", asks(U, answer="1/0"), "1/0"), ("prompts.jsonl", asks(U, answer=""), "needs|answer"),
    ("prompts.jsonl", asks(U, answer="1,00"), "1,00"), ("prompts.jsonl", asks(U, answer="x = 4"), "x = 4"),
    ("test.jsonl", asks(U, answer="2 + 2"), r"2 \+ 2"),
    ("judgements.jsonl", line(**judged(category="poems")), "no rubric for the category 'poems'"),
    ("judgements.jsonl", line(**judged(item="warm")), "no item 'warm'"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "data", "words"), WRONG_LINES, ids=lambda x: repr(x)[:60])
def test_a_wrong_line(project: Project, file: str, data: bytes, words: str) -> None:
    path = project.root / "mine" / file
    before = FILES[file] + b"\n \t\n"  # blank lines count, and are no rows
    path.write_bytes(before + data)
    with pytest.raises(GrapeError, match=words) as caught:
        run(project)
    first = before.count(b"\n") + 1
    wrong = first + ("already stands" in words)
    if "already stands" in words:
        before = FILES[file]
    assert str(caught.value.where).startswith((f"mine/{file}:{wrong}", str(path) + f":{wrong}")), caught.value
    assert caught.value.mend and not (project.root / "data").exists() and not project.receipt("prepare").exists()


# The whole file: file, bytes, words of the refusal.
WRONG_FILES: list[tuple[str, bytes | None, str]] = [
    ("sft.jsonl", None, "missing"), ("prompts.jsonl", None, "missing"), ("corpus.jsonl", None, "no corpus"),
    ("corpus.jsonl", b"", "no corpus"), ("corpus.jsonl", b"PAR1\0\0\0", "Parquet"), ("corpus.jsonl", b"\x1f\x8b\x08", "gzip"),
    ("corpus.jsonl", b"PK\x03\x04", "ZIP"), ("corpus.jsonl", FILES["corpus.jsonl"].decode().encode("utf-16"), "UTF-16"),
    ("corpus.jsonl", FILES["corpus.jsonl"].decode().encode("utf-32"), "UTF-32|UTF-16|NUL"), ("corpus.jsonl", b"\0" * 4096, "NUL"),
    ("sft.jsonl", json.dumps([shown(1), shown(2)], indent=1).encode(), "not a JSON object|not an object"),
    ("sft.jsonl", FILES["sft.jsonl"][:-20], "not a JSON object"), ("prompts.jsonl", b"", "no training prompt"),
    ("prompts.jsonl", FILES["test.jsonl"], "no training prompt"), ("sft.jsonl", b"", "no demonstration"),
    ("test.jsonl", b"\n" * 9, "180 test prompts asked of 6 different"),
    ("validation.jsonl", b"\n" * 9, "90 validation prompts asked of 6 different"),
    ("validation.jsonl", FILES["test.jsonl"], "no validation prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "data", "words"), WRONG_FILES, ids=lambda x: repr(x)[:60])
def test_a_wrong_file(project: Project, file: str, data: bytes | None, words: str) -> None:
    path = project.root / "mine" / file
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(GrapeError, match=words) as caught:
        run(project)
    assert caught.value.where and caught.value.mend
    assert not (project.root / "data").exists()


def written(project: Project, name: str) -> list[dict[str, Any]]:
    text = (project.root / "data" / name).read_bytes().decode("utf-8")
    return [json.loads(row) for row in text.split("\n") if row]


def last(name: str, **columns: Any) -> Callable[[Project, dict[str, float]], bool]:
    """The last row of data/NAME has these columns."""
    return lambda project, _: {k: written(project, name)[-1][k] for k in columns} == columns


def rows(name: str, count: int) -> Callable[[Project, dict[str, float]], bool]:
    return lambda project, _: len(written(project, name)) == count


def count(name: str, value: float) -> Callable[[Project, dict[str, float]], bool]:
    return lambda _, headline: headline.get(name, 0.0) == value


SFT, TRAIN, HELD, CORPUS = "sft/train.jsonl", "prompts/train.jsonl", "prompts/test.jsonl", "corpus/train.jsonl"
SAYS = [U, {"role": "assistant", "content": "It is <|end|> of it."}]
# Appended to the file -> what must hold of data/ and the receipt.
RIGHT: list[tuple[str, bytes, Callable[[Project, dict[str, float]], bool]]] = [
    ("corpus.jsonl", '{"text": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"}\n'.encode().replace(b"\x0b", b"\\u000b")
     .replace(b"\x0c", b"\\u000c").replace(b"\x1c", b"\\u001c"), last(CORPUS, text="a\u2028b\u2029c\x85d\x0be\x0cf\x1cg")),
    ("corpus.jsonl", b'{"text": "a\\u2028b"}\r\n', last(CORPUS, text="a\u2028b")),
    ("corpus.jsonl", b'{"text": "no line feed"}', last(CORPUS, text="no line feed")),
    ("corpus.jsonl", b'\n\n   \n\t\n{"text": "after blanks"}\n\n', rows(CORPUS, 2)),
    ("corpus.jsonl", b'{"text": "\\ud83c\\udf47"}\n', last(CORPUS, text="\N{GRAPES}")),
    ("corpus.jsonl", '{"text": "e\u0301 \u00e9 \ufeff"}\n'.encode(), last(CORPUS, text="e\u0301 \u00e9 \ufeff")),
    ("corpus.jsonl", b'{"text": "\\\\ud800"}\n', last(CORPUS, text="\\ud800")),
    ("corpus.jsonl", line(text="x", n=2**80, m=[1, "a", None], o={"k": 1.5}), last(CORPUS, text="x")),
    ("prompts.jsonl", line(**question(7, answer=8)), last(TRAIN, answer="8")),
    ("prompts.jsonl", line(**question(7, id=12)), last(TRAIN, id="12")),
    ("prompts.jsonl", line(**question(7, id=None)), rows(TRAIN, 7)),
    ("prompts.jsonl", line(**question(7, answer="1/2")), last(TRAIN, answer="1/2")),
    ("prompts.jsonl", line(**question(7, answer=".5")), last(TRAIN, answer=".5")),
    ("prompts.jsonl", line(**question(7, answer="-3")), last(TRAIN, answer="-3")),
    ("prompts.jsonl", line(**question(7, answer="\u20133")), last(TRAIN, answer="\u20133")),
    ("prompts.jsonl", line(**question(7, answer="1,000,000")), last(TRAIN, answer="1,000,000")),
    ("prompts.jsonl", line(**question(7, answer="2.50")), last(TRAIN, answer="2.50")),
    ("prompts.jsonl", line(category="talk", prompt=[U]), last(TRAIN, answer=None, category="talk")),
    ("prompts.jsonl", line(**question(7, id="a")) + line(**question(7, id="a")), count("dropped/duplicate", 1)),
    ("prompts.jsonl", line(**question(7)) + line(**question(7, answer="9")), count("dropped/duplicate", 1)),
    ("prompts.jsonl", line(**question(20)), count("dropped/leakage", 1)),
    ("prompts.jsonl", asks(U, A, {"role": "user", "content": "Again?"}), rows(TRAIN, 7)),
    ("prompts.jsonl", line(category="sums", prompt=[{"role": "user", "content": "What is  21 + 1?  "}], answer="22"),
     count("dropped/leakage", 1)),
    ("sft.jsonl", chat({"role": "system", "content": "Be kind."}, U, A), last(SFT, category="sums")),
    ("sft.jsonl", chat(U, A, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}), rows(SFT, 7)),
    ("sft.jsonl", chat({"role": "user", "content": "What is 20 + 1?"}, A, U, A), count("dropped/leakage", 1)),
    ("sft.jsonl", chat({"role": "system", "content": "S"}, {"role": "user", "content": "What is 20 + 1?"}, A),
     count("dropped/leakage", 1)),
    ("sft.jsonl", line(category="sums", messages=SAYS), last(SFT, messages=SAYS)),
    ("sft.jsonl", line(category="sums", messages=[U, A], prompt="text", id=2**70), last(SFT, id=str(2**70))),
    ("sft.jsonl", line(category="sums", messages=[U | {"name": None}, A | {"tool_calls": None}]), last(SFT, messages=[U, A])),
    ("sft.jsonl", chat(U, {"role": "assistant", "content": "4" * 300}), count("too_long/sft", 1)),
    ("prompts.jsonl", line(**question(7, prompt=[{"role": "user", "content": "1 + " * 90}])), count("too_long/train", 1)),
    ("test.jsonl", line(**question(7, prompt=[{"role": "user", "content": "1 + " * 90}])), count("too_long/test", 1)),
    ("corpus.jsonl", line(text="long " * 99), count("too_long/corpus", 1)),
    ("judgements.jsonl", line(**judged(response="long " * 99)), count("too_long/judgements", 1)),
    ("sft.jsonl", chat({"role": "user", "content": "What is 2\u200b0 + 1?"}, A), count("dropped/leakage", 1)),
    ("test.jsonl", line(**question(20)), count("dropped/duplicate", 1)),
    ("test.jsonl", line(category="sums", prompt=[{"role": "user", "content": "Caf\u00e9?"}], answer="1"), rows(HELD, 4)),
    ("judgements.jsonl", line(**judged(label=0, response="")), rows("judgements/train.jsonl", 2)),
    ("judgements.jsonl", line(**judged(prompt=[{"role": "user", "content": "What is 20 + 1?"}])), count("dropped/leakage", 1)),
]  # fmt: skip


@pytest.mark.parametrize(("file", "data", "holds"), RIGHT, ids=lambda x: repr(x)[:60] if isinstance(x, (str, bytes)) else "")
def test_a_right_line(project: Project, file: str, data: bytes, holds: Callable[[Project, dict[str, float]], bool]) -> None:
    path = project.root / "mine" / file
    path.write_bytes(codecs.BOM_UTF8 + FILES[file] + data)
    headline = run(project)
    assert holds(project, headline), (headline, (project.root / "data").rglob("*.jsonl"))
    for name in (SFT, TRAIN, HELD):  # every row has the columns of its type, whatever the others lack
        assert len({tuple(row) for row in written(project, name)}) == 1


@pytest.mark.parametrize("table", ["sft", "prompts", "validation", "test", "corpus", "judgements"])
def test_what_is_too_long_may_be_refused(project: Project, table: str) -> None:
    long = "1 + " * 90
    row = {
        "sft": shown(1, messages=[U, {"role": "assistant", "content": long}]), "corpus": {"text": long},
        "judgements": judged(response=long),
    }.get(table, question(1, prompt=[{"role": "user", "content": long}]))  # fmt: skip
    with (project.root / "mine" / f"{table}.jsonl").open("ab") as file:
        file.write(line(**row))
    params_file.set_values(project.params, ["model.too_long=refuse"])
    with pytest.raises(GrapeError, match="1 of . rows are longer than model.positions") as caught:
        run(project)
    assert {"prompts": "train"}.get(table, table) in str(caught.value.where) and not (project.root / "data").exists()


def test_the_process_of_the_stage_ends_with_2_and_no_traceback(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from grape.stages.__main__ import main

    monkeypatch.setenv(NONCE, "1")  # as under `grape run`, which tells MLflow itself
    (project.root / "mine" / "sft.jsonl").write_bytes(FILES["sft.jsonl"] + b"\n" + line(category="sums", messages=[U]))
    assert main(["prepare"]) == 2
    shown = capfd.readouterr().err
    assert f"{project.root}/mine/sft.jsonl:8" in shown and "messages" in shown and " -> " in shown and "Traceback" not in shown
    assert not (project.root / "data").exists()


def test_a_question_in_a_system_turn_is_a_question(project: Project) -> None:
    def asked(n: int) -> bytes:
        turns = [{"role": "system", "content": f"What is {n} + 1?"}, {"role": "user", "content": "Answer."}]
        return line(**question(n, prompt=turns))

    (project.root / "mine/prompts.jsonl").write_bytes(b"".join(map(asked, range(5))) + asked(50))
    (project.root / "mine/test.jsonl").write_bytes(asked(50))
    assert run(project)["dropped/leakage"] == 1 and len(written(project, TRAIN)) == 5


def test_letters_composed_otherwise_are_the_same_question(project: Project) -> None:
    for name, text in (("test", "Caf\u00e9?"), ("prompts", "Cafe\u0301?")):
        row = line(category="sums", prompt=[{"role": "user", "content": text}], answer="1")
        (project.root / f"mine/{name}.jsonl").write_bytes(FILES[f"{name}.jsonl"] + row)
    assert run(project)["dropped/leakage"] == 1


@pytest.mark.parametrize(("name", "data", "words"), [
    ("mine/pairs.jsonl", None, "no such file"), ("mine/pairs.jsonl", b"not json\n", "not a JSON object"),
    ("mine/pairs.jsonl", line(category="sums", prompt=[U], chosen=[A], rejected=[A | {"content": "4 "}]), "are the same"),
    ("mine/pairs.jsonl", line(category="sums", prompt=[U], chosen=[A], rejected=[A | {"content": "5"}], chosen_score=1,
                         rejected_score=5), "lower score"),
    ("mine/gold.py", b"def gold(:\n", "gold.py"), ("mine/gold.py", b"import nothing_there\n", "gold.py"),
])  # fmt: skip
def test_what_later_stages_read_is_looked_at_before(project: Project, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        (project.root / name).write_bytes(data)
    if name == "mine/pairs.jsonl":
        params_file.set_values(project.params, ["prepare.files={preferences: pairs.jsonl}", "preferences.source=people"])
    with pytest.raises(GrapeError, match=words):
        run(project)
    assert not (project.root / "data").exists()


def test_a_world_that_ends_the_process_is_refused(project: Project) -> None:
    (project.root / "w.py").write_text("import sys\ndef build(params, seed):\n    sys.exit(0)\n")
    params_file.set_values(project.params, ["prepare.source=w.py"])
    with pytest.raises(GrapeError, match="SystemExit"):
        run(project)


@pytest.mark.parametrize(("files", "words"), [
    ("{prompts: ../prompts.jsonl}", "lies outside of prepare.source"), ("{prompts: /etc/hosts}", "lies outside"),
    ("{prompts: none.jsonl}", "prepare.files.prompts"), ("{sft: README.md}", "no such format"),
])  # fmt: skip
def test_a_file_that_cannot_be_a_table_is_refused(project: Project, files: str, words: str) -> None:
    (project.root / "mine/README.md").write_text("My data")
    (project.root / "prompts.jsonl").write_bytes(FILES["prompts.jsonl"])
    params_file.set_values(project.params, [f"prepare.files={files}"])
    with pytest.raises(GrapeError, match=words):
        run(project)
    assert not (project.root / "data").exists()


def test_gsm8k_as_it_comes(project: Project) -> None:
    """Rows of question and answer, for SFT and as prompts, a part of them, without a line of code."""
    rows = [
        {"question": f"What is {n} + 1?", "answer": f"It is {n} + 1 = <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(20)
    ]
    for name in ("sft.jsonl", "prompts.jsonl"):
        (project.root / "mine" / name).unlink()
    (project.root / "mine/gsm8k.json").write_text(json.dumps(rows))
    files = "{sft: gsm8k.json, prompts: gsm8k.json}"
    params_file.set_values(
        project.params, [f"prepare.files={files}", "prepare.category=sums", "prepare.rows={prompts: 8}", "prepare.test=2"]
    )
    run(project)
    demonstrations, prompts = written(project, "sft/train.jsonl"), written(project, TRAIN)
    assert len(prompts) == 8
    assert all(row["prompt"][0]["content"] == f"What is {int(row['answer']) - 1} + 1?" for row in prompts)
    assert [row["messages"][1]["content"] for row in demonstrations] == [row["answer"] for row in rows]


@pytest.mark.parametrize(("change", "words"), [
    (["prepare.columns={prompts: {answr: solution}}"], "prompts has no column answr"),
    (["prepare.columns={preferences: {chosen: good}}"], "there is no table preferences"),
    (["prepare.rows={preferences: 3}"], "there is no table preferences"),
    (["prepare.source=world.py", "prepare.rows={prompts: 3}"], "prepare.rows is for a directory of files"),
    (["prepare.source=world.py", "prepare.category=sums"], "prepare.category is for a directory of files"),
    (["prepare.source=world.py", "prepare.files={prompts: a.csv}"], "prepare.files is for a directory of files"),
])  # fmt: skip
def test_what_would_have_no_effect_is_refused(project: Project, change: list[str], words: str) -> None:
    (project.root / "world.py").write_text("def build(params, seed):\n    return {}\n")
    params_file.set_values(project.params, change)
    with pytest.raises(GrapeError, match=words):
        run(project)
    assert not (project.root / "data").exists()


def mixed(project: Project, *changes: str) -> dict[str, float]:
    params_file.set_values(project.params, list(changes))
    return run(project)


def test_a_mix_has_its_weights_and_every_row_its_source(project: Project) -> None:
    asked = [{"id": n, "question": f"What is {n} + 5?", "answer": str(n + 5)} for n in range(10)]
    (project.root / "mine/other.json").write_text(json.dumps(asked))
    other = "{file: other.json, weight: 1.5, category: sums, rows: 8}"
    mixed(project, f"prepare.files={{sft: [{{file: sft.jsonl, weight: 2}}, {other}]}}")
    rows = written(project, SFT)
    assert Counter(row["dataset"] for row in rows) == {"sft": 12, "other": 12}
    assert sorted(Counter(row["id"] for row in rows if row["dataset"] == "other").values()) == [1] * 4 + [2] * 4
    assert all(row["id"].startswith("other/") for row in rows if row["dataset"] == "other")
    before = (project.root / "data" / SFT).read_bytes()
    run(project)
    assert (project.root / "data" / SFT).read_bytes() == before


def test_held_out_prompts_are_taken_from_each_source_of_a_mix_by_its_share(project: Project) -> None:
    for name, numbers in (("a", range(100, 112)), ("b", range(200, 204))):
        (project.root / f"mine/{name}.jsonl").write_bytes(b"".join(line(**question(n)) for n in numbers))
    (project.root / "mine/test.jsonl").unlink()
    mixed(project, "prepare.files={prompts: [a.jsonl, {file: b.jsonl, name: second}]}", "prepare.test=4")
    assert Counter(row["dataset"] for row in written(project, HELD)) == {"a": 3, "second": 1}
    assert Counter(row["dataset"] for row in written(project, TRAIN)) == {"a": 9, "second": 3}


def test_a_validation_prompt_holds_no_test_question_and_no_training_row_holds_either(project: Project) -> None:
    before = [{"role": "user", "content": "What is 20 + 1?"}, {"role": "assistant", "content": "21"}]
    later = question(24, prompt=[*before, {"role": "user", "content": "What is 24 + 1?"}])
    (project.root / "mine/validation.jsonl").write_bytes(line(**later) + line(**question(23)))
    with (project.root / "mine/prompts.jsonl").open("ab") as file:
        file.write(line(**question(23)) + line(**question(21)) + line(**question(40)))
    headline = run(project)
    assert [row["answer"] for row in written(project, "prompts/validation.jsonl")] == ["24"]
    assert headline["dropped/leakage"] == 3 and len(written(project, TRAIN)) == 7
    (project.root / "mine/validation.jsonl").unlink()
    params_file.set_values(project.params, ["prepare.validation=2"])
    headline = run(project)
    aside = written(project, "prompts/validation.jsonl")
    assert len(aside) == 2 and len(written(project, TRAIN)) == 8 - 2
    assert headline["dropped/leakage"] == 1, "what is set aside is not left out"
    assert not {row["answer"] for row in aside} & {"21", "22", "23"}, "of test prompts none is set aside again"


def test_a_file_that_nobody_reads_is_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("heldout.jsonl", "dev.csv", "notes.txt", "more.jsonl"):
        (project.root / "mine" / name).write_bytes(line(**question(60)))
    mixed(project, "prepare.files={prompts: [prompts.jsonl, more.jsonl]}")
    assert "prepare.files names none of it: dev.csv, heldout.jsonl\n" in capsys.readouterr().out


def test_held_out_prompts_of_several_data_sets_keep_their_names(project: Project) -> None:
    (project.root / "mine/gsm8k-test.jsonl").write_bytes(line(**question(31, id="1")) + line(**question(32, id="2")))
    (project.root / "mine/more.jsonl").write_bytes(line(**question(33, id="1")))
    mixed(project, "prepare.files={test: [{file: gsm8k-test.jsonl, name: gsm8k}, more.jsonl]}")
    prompts = read_prompts(project.root / "data" / HELD)
    assert [(p.dataset, p.id) for p in prompts] == [("gsm8k", "gsm8k/1"), ("gsm8k", "gsm8k/2"), ("more", "more/1")]
    assert all(p.dataset == "" for p in read_prompts(project.root / "data" / TRAIN))  # of one source without a name


def test_unpaired_feedback_becomes_pairs_and_judgements(project: Project) -> None:
    said = b"".join(
        line(category="talk", prompt="Hi?", completion=text, label=good) for text, good in (("Ho", 1), ("No", 0), ("Yo", 1))
    )
    (project.root / "mine/liked.jsonl").write_bytes(said)
    files = "{preferences: liked.jsonl, judgements: {file: liked.jsonl, item: kind}}"
    headline = mixed(project, f"prepare.files={files}", "preferences.source=people")
    (pair,) = written(project, "labelled/train.jsonl")
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == ["Ho", "No"] and "label" not in pair
    assert headline["dropped/unpaired"] == 1 and headline["rows/preferences"] == 1
    assert [(row["item"], row["response"], row["label"]) for row in written(project, "judgements/train.jsonl")] == [
        ("kind", "Ho", 1), ("kind", "No", 0), ("kind", "Yo", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("files", "words"), [
    ("{sft: [sft.jsonl, sft.jsonl]}", "two sources are called sft"), ("{sft: []}", "at least 1 item"),
    ("{prompts: [{file: prompts.jsonl, weight: 2}]}", "every prompt stands once"),
    ("{judgements: {file: judgements.jsonl, weight: 1.5}}", "measured on"),
    ("{sft: {file: sft.jsonl, weight: 0}}", "weight"), ("{sft: {file: sft.jsonl, weight: -1}}", "weight"),
    ("{sft: {file: sft.jsonl, weight: .nan}}", "weight"), ("{sft: {file: sft.jsonl, weight: '2'}}", "weight"),
    ("{sft: {file: sft.jsonl, weight: 0.01}}", "no row of sft is left by its weight 0.01"),
    ("{sft: {file: sft.jsonl, item: kind}}", "an item is what judgements are about"),
    ("{sft: {file: sft.jsonl, name: a/b}}", "name"), ("{sft: {file: sft.jsonl, wieght: 2}}", "did you mean 'weight'"),
    ("{sft: [sft.jsonl, {file: prompts.jsonl, rows: 0}]}", "rows"), ("{sft: [sft.jsonl, none.jsonl]}", "no such file"),
    ("{sft: [sft.jsonl, prompts.jsonl]}", "prompts.jsonl:1"), ("{sft: [sft.jsonl, 3]}", "dictionary"),
    ("{sft: {file: sft.jsonl, columns: {mesages: talk}}}", r"files.sft.0.columns: sft has no column mesages"),
    ("{sft: {file: sft.jsonl, columns: {messages: talk}}}", "no row has the column talk"),
])  # fmt: skip
def test_a_mix_that_cannot_be_is_refused(project: Project, files: str, words: str) -> None:
    with pytest.raises(GrapeError, match=words):
        mixed(project, f"prepare.files={files}")
    assert not (project.root / "data").exists()


def test_columns_that_every_source_has_its_own_of_are_refused(project: Project) -> None:
    with pytest.raises(GrapeError, match="columns.sft has no effect"):
        mixed(project, "prepare.files={sft: {file: sft.jsonl, columns: {}}}", "prepare.columns={sft: {messages: talk}}")


def test_a_source_of_its_own_columns_and_a_limit_over_all(project: Project) -> None:
    (project.root / "mine/b.csv").write_text("q,a,from\n" + "".join(f"What is {n} + 9?,{n + 9},web\n" for n in range(5)))
    columns = "{question: q, answer: a, dataset: from}"
    files = f"{{sft: [sft.jsonl, {{file: b.csv, category: sums, columns: {columns}}}]}}"
    mixed(project, f"prepare.files={files}", "prepare.rows={sft: 7}")
    rows = written(project, SFT)
    assert len(rows) == 7 and {row["dataset"] for row in rows} <= {"sft", "web"}
