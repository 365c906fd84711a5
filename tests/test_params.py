"""params.yaml: what stands there is what runs, and a mistake is named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from grape import params
from grape.errors import GrapeError


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rl.stpes=1", "did you mean 'steps'"),
        ("rl.steps=-1", "greater than or equal to 1"),
        ("rl.steps=1.5", "valid integer"),
        ("rl.steps=ten", "valid integer"),
        ("rl.steps", "key=value"),
        ("seed=true", "valid integer"),
        ("algorithms.grpo.clip_lo=1", "did you mean 'clip_low'"),
        ("algorithms.grpo.clip_low=2", "less than 1"),
        ("rl.algorithms=[grop]", "did you mean 'grpo'"),
        ("rl.algorithms=[grpo, grpo]", "twice"),
        ("rl.seeds=[-1]", ">= 0"),
        ("rl.seeds=[]", "at least 1"),
        ("rl.importance_cap=3", "no effect where importance is null"),
        ("rl.importance=tokens", "'token' or 'sequence'"),
        ("rl.engine=vllm", "importance null: vLLM is another computation"),
        ("rl.engine=sglang", "'grape' or 'vllm'"),
        ("model.width=32", "multiple of 2 x heads"),
        ("model.dtype=float16", "float32"),
        ("rl.learning_rate=.nan", "finite"),
        ("prepare.heldout=8", "prepare.validation to choose by"),
        ("rl.budget={tokens: 100, seconds: 5}", "only one can be equal"),
        ("rl.budget={}", "say one of samples, tokens, seconds, updates"),
        ("rl.budget={token: 100}", "'samples', 'tokens', 'seconds' or 'updates'"),
        ("rl.budget={tokens: 0}", "greater than 0"),
        ("rl.budget=100", "dictionary"),
        ("rl.lora_rank=8", "it is model.lora.rank now"),
        ("model.micro_batch_tokens=512", "GRAPE_MICRO_BATCH_TOKENS"),
        ("model.lora.rank=-1", "greater than or equal to 0"),
        ("model.lora.alpha=16", "say nothing where rank is 0"),
        ("model.lora.targets=[q_proj]", "say nothing where rank is 0"),
        ("model.lora={rank: 2, alpha: null, targets: []}", "names no module"),
        ("model.lora={rank: 2, alpha: null, targets: all}", "all-linear"),
        ("model.lora={rank: 2, alpha: null, dropout: 0.1}", "unknown key model.lora.dropout"),
        ("model.lora={rank: 2, alpha: 0, targets: all-linear}", "greater than 0"),
        ("model.quantise=nf4", "quantised weights cannot be trained"),
        ("model.quantise=int8", "nf4"),
        ("rl=3", "dictionary"),
        ("rl.steps=[", "cannot read"),
        ("nothing=1", "unknown key"),
        ("prepare.files={prompts: {hub: a/b, splitt: test}}", "did you mean 'split'"),
        ("prepare.files={prompts: {hub: a/b}}", "needs its revision"),
        ("prepare.rows={promts: 3}", "promts"),
        ("prepare.rows={prompts: 0}", "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_refused_and_changes_nothing(project_dir: Path, assignment: str, message: str) -> None:
    path = project_dir / "params.yaml"
    before = path.read_bytes()
    with pytest.raises(GrapeError, match=re.escape(message)):
        params.set_values(path, [assignment])
    assert path.read_bytes() == before and [p.name for p in project_dir.glob("*.partial")] == []


def test_a_mistake_in_the_file_is_named_with_its_line(project_dir: Path) -> None:
    path = project_dir / "params.yaml"
    lines = path.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith("  steps: 60"))
    lines[number] = "  stepz: 60"
    path.write_text("\n".join(lines))
    with pytest.raises(GrapeError, match="stepz") as caught:
        params.load(path)
    assert f"params.yaml:{number + 1}" in str(caught.value)


def test_a_key_that_was_is_told_what_stands_in_its_place(project_dir: Path) -> None:
    path = project_dir / "params.yaml"
    path.write_text(path.read_text().replace("  max_missing:", "  lora_rank: 8\n  max_missing:"))
    with pytest.raises(GrapeError, match=r"unknown key rl.lora_rank\n.*model.lora.rank"):
        params.load(path)


@pytest.mark.parametrize("text", ["a: [", "just text", ""])
def test_a_file_that_is_no_mapping_is_refused(project_dir: Path, text: str) -> None:
    (project_dir / "params.yaml").write_text(text)
    with pytest.raises(GrapeError):
        params.load(project_dir / "params.yaml")


def test_set_keeps_every_comment(project_dir: Path) -> None:
    path = project_dir / "params.yaml"
    before = path.read_text()
    after = params.set_values(path, ["rl.steps=7", "rl.algorithms=[reinforce]", "algorithms.grpo.epochs=2"])
    assert after.rl.steps == 7 and after.rl.algorithms == ["reinforce"] and after.algorithm("grpo").model_dump()["epochs"] == 2
    assert re.findall(r"#.*", path.read_text()) == re.findall(r"#.*", before)
    assert "revision: null" in path.read_text()


def test_every_key_has_a_comment_with_its_meaning(root: Path) -> None:
    for line in (root / "params.yaml").read_text().splitlines():
        if re.match(r"\s+\w+: \S", line):
            assert "#" in line, line


def test_an_algorithm_without_an_entry_is_refused(project_dir: Path) -> None:
    path = project_dir / "params.yaml"
    path.write_text(
        path.read_text().replace(
            next(line for line in path.read_text().splitlines(keepends=True) if line.startswith("  reinforce:")), ""
        )
    )
    with pytest.raises(GrapeError, match="no entry"):
        params.set_values(path, ["rl.algorithms=[reinforce]"])


def test_what_set_writes_can_be_read_by_every_parser(project_dir: Path) -> None:
    """A mapping on one line with a colon in its values is YAML to some parsers and an error to others."""
    path = project_dir / "params.yaml"
    variant = 'algorithms.rar={"use": "grape.algorithms.grape:ALGORITHM", "exponent": 0.5}'
    params.set_values(path, [variant, "critic.judge.extra={a: [b:c]}"])
    found = YAML(typ="safe").load(path.read_text())
    assert found["algorithms"]["rar"] == {"use": "grape.algorithms.grape:ALGORITHM", "exponent": 0.5}
    assert found["critic"]["judge"]["extra"] == {"a": ["b:c"]}
    path.write_text(path.read_text() + "  other: {use: grape.algorithms.grape:ALGORITHM}\n")
    with pytest.raises(GrapeError, match="not valid YAML") as caught:
        params.load(path)
    assert str(caught.value.where).startswith("params.yaml:")


@pytest.mark.parametrize("name", ["SFT", "sft", "base"])
def test_no_algorithm_has_the_name_of_a_side_in_the_tables(tmp_path: Path, name: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((Path(__file__).resolve().parents[1] / "params.yaml").read_text())
    sets = [f'algorithms.{name}={{use: "grape.algorithms.grpo:ALGORITHM"}}', f"rl.algorithms=[{name}, grpo]"]
    with pytest.raises(GrapeError, match="as every report calls the model") as raised:
        params.edited(path, sets)
    assert "params.yaml:" in str(raised.value.where) and f"my-{name}" in str(raised.value.mend)
