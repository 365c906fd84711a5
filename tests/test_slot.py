"""The slot: algorithms from outside, by `use` and by entry point; their knobs checked, their files seen by DVC."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from grape import slot
from grape.algorithms import ALGORITHMS, reinforce
from grape.commands import catalogue, league
from grape.errors import GrapeError
from grape.params import load, set_values
from grape.pipeline import preflight
from grape.project import Project
from grape.types import Outputs, Rollouts, Scores

USE = "algorithms.rloo.use=algorithms.rloo:ALGORITHM"


@pytest.fixture
def project(project_dir: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (project_dir / "algorithms").mkdir()
    for path in (root / "algorithms").glob("*.py"):
        (project_dir / "algorithms" / path.name).write_text(path.read_text())
    for name in [n for n in sys.modules if n == "algorithms" or n.startswith("algorithms.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Project(project_dir)


def test_an_algorithm_of_ones_own_is_selected_validated_and_listed(project: Project) -> None:
    set_values(project.params, [USE, "algorithms.rloo.scale=2.0", "rl.algorithms=[grpo, rloo]"])
    params = load(project.params)
    assert params.slot("rloo").data == "rollouts" and params.algorithm("rloo").scale == 2.0  # type: ignore[attr-defined]
    entry = next(e for e in catalogue.entries(project.root) if e["name"] == "rloo")
    assert entry["needs"] == ["group"] and entry["what"].startswith("RLOO (2402.14740)")
    assert any(line.startswith("    A_i = R_i") for line in catalogue.explain("rloo", project.root))
    with pytest.raises(GrapeError, match=r"algorithms.rloo.scale: .*greater than 0"):
        set_values(project.params, ["algorithms.rloo.scale=-1"])
    with pytest.raises(GrapeError, match="did you mean 'scale'"):
        set_values(project.params, ["algorithms.rloo.scalee=1"])


def test_the_worked_example_is_reinforce_with_leave_one_out(project: Project) -> None:
    rloo = slot.find("rloo", "algorithms.rloo:ALGORITHM", project.root)
    ones = torch.ones(4, 1)
    scores = Scores(("a/b",), torch.tensor([[0.1], [0.9], [0.4], [0.4]]), ones, ones.bool(), ones)
    ids, mask = torch.ones(4, 3, dtype=torch.long), torch.ones(4, 3, dtype=torch.bool)
    rollouts = Rollouts(ids[:, :1], mask[:, :1], ids, mask, group=torch.zeros(4, dtype=torch.long))
    gradients = []
    for algorithm in (rloo, reinforce.ALGORITHM):
        params = algorithm.params()
        given = algorithm.credit(scores, rollouts, params, {})  # type: ignore[misc]
        logp = torch.linspace(-2, -0.1, 12).reshape(4, 3).requires_grad_()
        loss = algorithm.loss(Outputs(logp=logp, entropy=torch.zeros(4, 3)), given.batch(rollouts), params)
        ((loss.value * loss.weight).sum() / loss.norm.sum()).backward()
        gradients.append(logp.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_an_installed_package_brings_one(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    point = metadata.EntryPoint("outside", "grape.algorithms.grpo:ALGORITHM", slot.GROUP)

    def points(group: str) -> list[metadata.EntryPoint]:
        return [point] if group == slot.GROUP else []

    monkeypatch.setattr(metadata, "entry_points", points)
    assert slot.find("outside") is ALGORITHMS["grpo"]
    assert "outside" in catalogue.known()
    card = slot.card("outside", None, root)
    assert card.startswith("# outside is grape.algorithms.grpo:ALGORITHM; the sha256 of its code, 5 files, is ")


@pytest.mark.parametrize(
    ("name", "use", "message"),
    [
        ("grp", None, "did you mean 'grpo'"),
        ("grpo", "algorithms.rloo:ALGORITHM", "one of grape's own"),
        ("mine", "algorithms.rloo", "names no algorithm"),
        ("mine", "algorithms.nothere:ALGORITHM", "cannot be imported"),
        ("mine", "algorithms.rloo:Nothing", "cannot be imported"),
        ("mine", "algorithms.rloo:credit", "is a function"),
        ("mine", "grape.algorithms.sft:ALGORITHM", "cannot be slotted"),
    ],
)
def test_what_cannot_be_slotted_is_refused(project: Project, name: str, use: str | None, message: str) -> None:
    with pytest.raises(GrapeError, match=message):
        slot.find(name, use, project.root)


def test_params_yaml_names_the_line_of_a_bad_use(project: Project) -> None:
    with pytest.raises(GrapeError, match=r"params.yaml:\d+: algorithms: 'algorithms.gone:X' cannot be imported"):
        set_values(project.params, ["algorithms.mine.use=algorithms.gone:X"])


def test_dvc_sees_a_file_for_every_selected_algorithm(project: Project) -> None:
    """The user's own file is left alone; what has no file gets a card; an unknown name gets none."""
    (project.root / "algorithms" / "grpo.py").unlink()
    set_values(project.params, [USE, "rl.algorithms=[grpo, rloo]"])
    mine = (project.root / "algorithms" / "rloo.py").read_text()
    preflight.algorithm_files(project)
    assert (project.root / "algorithms" / "grpo.py").read_text().startswith("# grpo is one of grape's own algorithms")
    assert (project.root / "algorithms" / "rloo.py").read_text() == mine
    text = project.params.read_text().replace("algorithms: [grpo, rloo]", "algorithms: [grpoo]")
    project.params.write_text(text)
    preflight.algorithm_files(project)
    assert not (project.root / "algorithms" / "grpoo.py").exists()


def test_in_a_checkout_the_files_are_links_to_grapes_own(root: Path) -> None:
    for name, algorithm in ALGORITHMS.items():
        link = root / "algorithms" / f"{name}.py"
        module = importlib.import_module(algorithm.loss.__module__)
        assert link.resolve() == Path(str(module.__file__)).resolve()


def test_compare_sets_what_it_runs(project: Project) -> None:
    set_values(project.params, [USE])
    assert league.assignments(project, "all", "0,1,2") == [
        'rl.algorithms=["rejection", "reinforce", "trpo", "ppo", "grpo", "dpo", "grape", "rloo"]',
        "rl.seeds=[0, 1, 2]",
    ]
    assert league.assignments(project, "grpo, rloo", None) == ['rl.algorithms=["grpo", "rloo"]']
    with pytest.raises(GrapeError, match="unknown algorithm 'grp'"):
        league.assignments(project, "grp", None)
    variant = 'algorithms.rar={"use": "grape.algorithms.grape:ALGORITHM", "exponent": 0.0}'
    before = project.params.read_text()
    assert league.assignments(project, "grape,rar", None, [variant]) == ['rl.algorithms=["grape", "rar"]']
    assert '"rar"]' in league.assignments(project, "all", None, [variant])[-1]
    assert project.params.read_text() == before
    with pytest.raises(GrapeError, match="integers with commas"):
        league.assignments(project, None, "0,x")


def test_the_league_table_has_the_best_first_and_no_interval_from_one_seed() -> None:
    def row(score: float, low: float | None) -> dict[str, Any]:
        return {
            "seeds": 1 if low is None else 3,
            "gold": score,
            "proxy": 0.6,
            "difference": score - 0.3,
            "difference_low": low,
            "difference_high": low and low + 0.1,
            "win_rate": 0.6,
            "kl_sequence": 2.0,
            "length": 9.0,
            "entropy": 0.3,
            "samples": 128.0,
            "seconds": 80.4,
            "updates": 2.0,
            "tokens": 12345.0,
            "memory_mb": 700.0,
        }

    own = {"algorithm": "dpo", "difference": {"gold_low": 0.01, "gold_high": 0.09}}
    metrics = {
        "judge": "gold",
        "sft": {"gold": 0.3},
        "policies": {"dpo-0": own},
        "algorithms": {"dpo": row(0.35, None), "grpo": row(0.5, 0.15)},
        "pairs": [],
    }
    lines = list(league.lines(metrics))
    assert [line.split()[0] for line in lines[3:]] == ["grpo", "dpo"]
    assert "+0.200 [+0.150, +0.250]" in lines[3] and "+0.050" in lines[4] and "+0.050 [" not in lines[4]
