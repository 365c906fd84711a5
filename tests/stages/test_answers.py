"""Answers are sampled once and kept by content, and no result depends on what was kept. Base, SFT and policy side by side,
data sets by name, and standard benchmarks."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import pytest

from grape import looks, needed
from grape import params as params_file
from grape.artifacts import PromptRow, as_row, read_prompts, read_rows, write_rows
from grape.errors import GrapeError
from grape.evaluation import harness
from grape.evaluation.kept import kept, key
from grape.evaluation.record import Evaluation
from grape.models.load import save_model
from grape.project import Project
from grape.reward.verdict import Undecidable
from grape.reward.verifiers.content import Contains
from grape.stages import answers
from tests import tiny
from tests.stages.test_stages import headline, run

RUBRIC = """version: 1
category: any
items:
  - {id: has_b, question: Is there a b?, weight: 1, kind: verify, verifier: contains, options: {texts: [b], need: any}}
"""
GOLD = "def gold(prompt, text):\n    return min(1.0, len(text) / 8)\n"
CHOICE = """task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}} "
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
WRITE = """task: tiny_write
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/write.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Three models of random weights, twelve prompts from two data sets, a verifier, a gold judge and two benchmarks."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path / name)
    for name in ("grape", "algorithms"):
        shutil.copytree(root / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in {
        "rubrics/any.yaml": RUBRIC,
        "mine/gold.py": GOLD,
        "tasks/choice.yaml": CHOICE,
        "tasks/write.yaml": WRITE,
        "tasks/choice.jsonl": lines(*({"question": f"a{i}", "choices": ["ab", "bc"], "label": i % 2} for i in range(8))),
        "tasks/write.jsonl": lines(*({"question": f"a{i}", "answer": "b"} for i in range(4))),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for seed, name in enumerate(("base", "sft", "policy/grpo-0", "policy/ppo-0")):
        save_model(tiny.model(seed=seed), tiny.tokenizer(), tmp_path / "models" / name)
    rows = [{"id": str(i), "category": "any", "prompt": [{"role": "user", "content": f"a{i}"}]} for i in range(12)]
    named = [row | {"dataset": ("one", "two")[i % 3 > 0]} for i, row in enumerate(rows)]
    write_rows(tmp_path / "data/prompts/test.jsonl", [PromptRow.model_validate(row) for row in named])
    other = [row | {"id": f"v{row['id']}"} for row in rows[:5]]
    write_rows(tmp_path / "data/prompts/validation.jsonl", [PromptRow.model_validate(row) for row in other])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".grape/datasets")
    changes = ["prepare.source=mine", "rl.algorithms=[grpo, ppo]", "rl.max_new_tokens=8", "model.positions=64", "seed=3"]
    params_file.set_values(tmp_path / "params.yaml", changes)
    needed.write(Project(tmp_path), needed.unneeded(Project(tmp_path)))
    return Project(tmp_path)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose answers were sampled, in order."""
    names: list[str] = []
    real: Callable[..., Any] = answers._sampled
    monkeypatch.setattr(answers, "_sampled", lambda s, model, *rest: names.append(model.name) or real(s, model, *rest))
    return names


def record(project: Project, policy: str = "grpo-0") -> Evaluation:
    return Evaluation.model_validate_json((project.root / f"reports/test/{policy}/metrics.json").read_text())


def written(project: Project, policy: str = "grpo-0") -> list[bytes]:
    return [(project.root / f"reports/test/{policy}/{name}").read_bytes() for name in ("metrics.json", "samples.jsonl")]


def files(project: Project) -> list[Path]:
    return sorted((project.root / ".grape/answers").glob("*.json"))


def test_sft_and_base_are_sampled_once_for_all_policies_and_nothing_depends_on_it(project: Project, sampled: list[str]) -> None:
    run(project, "test", "grpo", 0)
    assert sampled == ["base", "SFT", "grpo-0"]
    run(project, "test", "ppo", 0)
    assert sampled == ["base", "SFT", "grpo-0", "ppo-0"]
    first = written(project, "ppo-0")
    run(project, "test", "ppo", 0)
    assert sampled[4:] == [] and written(project, "ppo-0") == first
    for path in files(project)[::2]:  # one half is damaged: an end cut off, or a byte turned
        data = path.read_bytes()
        path.write_bytes(data[:-20] if len(data) % 2 else data.replace(b"0", b"1", 1))
    shutil.rmtree(project.root / "reports/test")
    run(project, "test", "ppo", 0)
    assert written(project, "ppo-0") == first
    shutil.rmtree(project.root / ".grape/answers")
    run(project, "test", "ppo", 0)
    assert written(project, "ppo-0") == first and sampled[-3:] == ["base", "SFT", "ppo-0"]


def test_what_decides_answers_samples_again_and_what_judges_them_does_not(project: Project, sampled: list[str]) -> None:
    run(project, "test", "grpo", 0)
    before = record(project)
    params_file.set_values(project.params, ["evaluate.confidence=0.5"])
    (project.root / "rubrics/any.yaml").write_text(RUBRIC.replace("[b]", "[a]"))
    (project.root / "mine/gold.py").write_text(GOLD.replace("8", "9"))
    run(project, "test", "grpo", 0)
    after = record(project)
    assert sampled == ["base", "SFT", "grpo-0"] and after.sft.length == before.sft.length
    assert after.sft.proxy.mean != before.sft.proxy.mean
    assert before.sft.gold and after.sft.gold and after.sft.gold.mean < before.sft.gold.mean
    save_model(tiny.model(seed=9), tiny.tokenizer(), project.root / "models/sft")
    run(project, "test", "grpo", 0)
    assert sampled[3:] == ["SFT", "grpo-0"], "the KL to SFT stands with the policy's answers"
    params_file.set_values(project.params, ["evaluate.temperature=0.5"])
    run(project, "test", "grpo", 0)
    assert sampled[5:] == ["base", "SFT", "grpo-0"]


@pytest.mark.parametrize("share", [3, 1])
def test_scores_that_are_missing_are_asked_for_again(
    project: Project, sampled: list[str], monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    """A judge that was away must not be away for good: every third time, or always, which leaves nothing to compare."""
    real, calls = Contains.score, count()

    def away(self: Contains, prompt: Any, text: str) -> Any:
        if text and next(calls) % share == 0:  # "" is what the rubric is tried on before anything is sampled
            raise Undecidable("away")
        return real(self, prompt, text)

    with monkeypatch.context() as broken:
        broken.setattr(Contains, "score", away)
        if share == 1:
            with pytest.raises(GrapeError, match="not one answer of base has a score: away"):
                run(project, "test", "grpo", 0)
            assert not (project.root / "reports/test").exists()
        else:
            run(project, "test", "grpo", 0)
            assert 0.2 < record(project).sft.items["any/has_b"].missing < 0.5 and len(files(project)) == 3
    run(project, "test", "grpo", 0)
    assert record(project).sft.items["any/has_b"].missing == 0
    assert sampled == ["base", "SFT", "grpo-0"] and len(files(project)) == 6


def test_evaluate_reads_validation_prompts_and_test_the_others_and_each_look_at_these_is_written_down(project: Project) -> None:
    test, validation = (project.root / f"data/prompts/{name}.jsonl" for name in ("test", "validation"))
    kept = test.read_bytes()
    test.unlink()
    run(project, "evaluate", "grpo", 0)
    found = Evaluation.model_validate_json((project.root / "reports/evaluate/grpo-0/metrics.json").read_text())
    assert (found.split, found.prompts, found.base) == ("validation", 5, None) and headline(project, "evaluate@grpo-0")
    assert headline(project, "evaluate@grpo-0").keys() >= {"validation/policy", "validation/difference"}
    assert looks.read(project.root) == []
    test.write_bytes(kept)
    validation.unlink()
    run(project, "test", "grpo", 0)
    run(project, "test", "grpo", 0)
    (look,) = looks.read(project.root)
    assert (record(project).split, record(project).prompts, look.policy) == ("test", 12, "grpo-0")
    assert (look.test, look.weights) == (record(project).data, record(project).weights)
    assert looks.others(project.root, look.test, {look.weights}) == [] == looks.others(project.root, "another split", ())
    shutil.copytree(project.root / "models/policy/ppo-0", project.root / "models/policy/grpo-0", dirs_exist_ok=True)
    run(project, "test", "grpo", 0)  # the knobs were turned after the first look
    assert [one.weights for one in looks.others(project.root, look.test, {record(project).weights})] == [look.weights]


def test_looks_that_cannot_be_read_are_refused_and_none_is_lost_when_stages_write_at_once(project: Project) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: looks.note(project, "split", f"grpo-{n % 12}", f"weights {n % 12}"), range(48)))
    assert sorted(look.weights for look in looks.read(project.root)) == sorted(f"weights {n}" for n in range(12))
    with (project.root / looks.FILE).open("a") as file:
        file.write('{"test": "split"}\n')
    with pytest.raises(GrapeError, match="policy") as caught:
        looks.note(project, "split", "ppo-0", "w")
    assert caught.value.where == f"{looks.FILE}:13"
    (project.root / looks.FILE).unlink()
    (project.root / looks.FILE).mkdir()
    with pytest.raises(GrapeError, match=r"looks\.jsonl"):
        looks.note(project, "split", "ppo-0", "w")


def test_base_stands_beside_sft_and_is_not_evaluated_twice_where_the_two_are_one(project: Project, sampled: list[str]) -> None:
    run(project, "test", "grpo", 0)
    found = record(project)
    assert found.base_side and found.base_side.gold != found.sft.gold
    assert headline(project, "test@grpo-0")["test/base"] == found.base_side.of("gold").mean
    params_file.set_values(project.params, ["sft.steps=0"])
    run(project, "test", "grpo", 0)
    assert sampled == ["base", "SFT", "grpo-0"] and record(project).base == "sft"
    assert record(project).base_side == record(project).sft


def test_every_data_set_has_its_numbers(project: Project) -> None:
    run(project, "test", "grpo", 0)
    found = record(project)
    assert {name: part.n for name, part in found.sft.datasets.items()} == {"one": 4, "two": 8}
    for side in (found.sft, found.policy, found.base_side):
        assert side and side.gold
        parts = [(part.n, part.gold.mean) for part in side.datasets.values() if part.gold]
        assert sum(n * mean for n, mean in parts) / 12 == pytest.approx(side.gold.mean, abs=1e-5)
    gains = {name: gain.of("gold") for name, gain in found.dataset_differences.items()}
    one, before = found.policy.datasets["one"].gold, found.sft.datasets["one"].gold
    assert one and before and gains["one"].mean == pytest.approx(one.mean - before.mean, abs=2e-6)
    assert gains["one"].low <= gains["one"].mean <= gains["one"].high
    assert found.difference.gold and (4 * gains["one"].mean + 8 * gains["two"].mean) / 12 == pytest.approx(
        found.difference.gold.mean, abs=2e-6
    )
    assert headline(project, "test@grpo-0")["test/dataset/two/difference"] == gains["two"].mean


def test_a_data_set_is_written_only_where_a_prompt_names_one(tmp_path: Path) -> None:
    row = {"id": "1", "category": "any", "prompt": [{"role": "user", "content": "a"}]}
    path = tmp_path / "prompts.jsonl"
    write_rows(path, [PromptRow.model_validate(row), PromptRow.model_validate(row | {"id": "2", "dataset": "one"})])
    assert [prompt.dataset for prompt in read_prompts(path)] == ["", "one"]
    assert ["dataset" in as_row(r) for r in read_rows(path, PromptRow)] == [False, True]


def test_benchmarks_are_paired_with_sft(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # asks pip, git and drivers: most of the time here
    params_file.set_values(
        project.params, ["evaluate.benchmarks.tasks=[tiny_choice, tiny_write]", "evaluate.benchmarks.folder=tasks"]
    )
    run(project, "test", "grpo", 0)
    rows = {row.task: row for row in record(project).benchmarks}
    assert {name: (row.metric, row.n, row.higher_is_better) for name, row in rows.items()} == {
        "tiny_choice": ("acc", 8, True), "tiny_write": ("exact_match", 4, True)}  # fmt: skip
    row = rows["tiny_choice"]
    assert row.base is not None and row.sft * 8 == round(row.sft * 8), "a share of eight documents"
    assert not isinstance(row.difference, float) and row.difference.mean == pytest.approx(row.policy - row.sft, abs=1e-6)
    assert headline(project, "test@grpo-0")["test/benchmark/tiny_choice/acc/sft"] == row.sft
    assert not list((project.root / "tasks").rglob("__pycache__"))
    known = set(files(project))
    data = project.root / "tasks/choice.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:5]))
    run(project, "test", "grpo", 0)
    assert {row.task: row.n for row in record(project).benchmarks}["tiny_choice"] == 5, "data that changed are read again"
    before = written(project)
    (set(files(project)) - known).pop().unlink()
    run(project, "test", "grpo", 0)
    assert written(project) == before, "the same a second time"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["tasks=[tiny_choise]", "folder=tasks"], "did you mean 'tiny_choice'"),
        (["tasks=[tiny_choice]", "folder=task"], "no such folder"),
        (["tasks=[tiny_choice]", "folder=broken"], "cannot be loaded"),
        (["tasks=[tiny_choice]", "folder=elsewhere"], "outside of the folder"),
        (["tasks=[from_the_hub]", "folder=hub"], "hub cannot be reached"),
        (["folder=tasks"], "folder has no effect where tasks is"),
        (["limit=3"], "limit has no effect"),
        (["chat=true"], "chat has no effect"),
        (["tasks=[a, a]"], "twice"),
    ],
)
def test_benchmarks_that_cannot_run_are_refused_with_what_to_mend(
    project: Project, changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "broken": CHOICE.replace("tasks/choice.jsonl", "broken/nothing.jsonl"),
        "elsewhere": CHOICE,
        "hub": CHOICE.replace("tiny_choice", "from_the_hub").replace("dataset_path: json", "dataset_path: some/where"),
    }.items():
        (project.root / name).mkdir()
        (project.root / name / "task.yaml").write_text(text)
    if "choise" in changes[0]:  # the harness's own ten thousand tasks take half a minute to read
        from lm_eval.tasks import TaskManager

        real = TaskManager.__init__
        monkeypatch.setattr(TaskManager, "__init__", lambda self, **given: real(self, **given | {"include_defaults": False}))
    with pytest.raises(GrapeError, match=message):
        params = params_file.set_values(project.params, [f"evaluate.benchmarks.{change}" for change in changes])
        harness.refuse(params.evaluate.benchmarks, project.root)


def test_a_missing_harness_is_named_with_its_extra(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """By prepare, which asks before anything is trained, and by evaluate."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(harness, "version", missing)
    knobs = params_file.set_values(project.params, ["evaluate.benchmarks.tasks=[tiny_choice]"]).evaluate.benchmarks
    with pytest.raises(GrapeError, match=r"grape\[eval\]"):
        harness.refuse(knobs, project.root)
    with pytest.raises(GrapeError, match=r"grape\[eval\]"):
        run(project, "test", "grpo", 0)
    assert not (project.root / "reports/test").exists()


def _slow(folder: Path, made: Any) -> None:
    def make() -> list[float]:
        with made.get_lock():
            made.value += 1
        return [float("nan"), 0.1]

    assert kept(folder / "a.json", make)[1] == 0.1


def test_of_two_processes_at_once_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    made = context.Value("i", 0)
    processes = [context.Process(target=_slow, args=(tmp_path, made)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert made.value == 1 and all(process.exitcode == 0 for process in processes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.lock"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]\n", lambda data: data[:-1], lambda data: data[:10], lambda data: data + b"x"])
def test_a_file_that_is_not_whole_is_made_again(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a.json"
    assert kept(path, lambda: {"a": 1}) == kept(path, lambda: {"a": 2}) == {"a": 1}
    path.write_bytes(damage(path.read_bytes()) if callable(damage) else damage)
    assert kept(path, lambda: {"a": 2}) == kept(path, lambda: {"a": 3}) == {"a": 2}


def test_a_key_follows_from_content_and_not_from_order() -> None:
    assert key({"a": 1, "b": [2]}) == key({"b": [2], "a": 1}) != key({"a": 1, "b": [3]})
