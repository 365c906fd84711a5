"""The directions of import that keep the parts apart (docs: the tree in the README)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("grape", "flows")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` counts as a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package: str) -> set[str]:
    return {name for name, path in MODULES.items() if any(_within(found, package) for found in imports(path))}


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_whole_tree_is_looked_at() -> None:
    assert {"grape.cli", "grape.maths.kl", "grape.pipeline", "flows.pipeline"} <= MODULES.keys()


def test_only_flows_imports_prefect() -> None:
    assert importers("prefect") == {"flows.pipeline", "flows.compare"}


def test_only_tracking_imports_mlflow() -> None:
    assert importers("mlflow") and all(_within(name, "grape.track") for name in importers("mlflow"))


def test_what_is_heavy_and_optional_is_imported_where_it_is_used() -> None:
    """PEFT takes seconds: one function imports it, which is called where there is an adapter."""
    for package, module in (("peft", "grape.models.lora"), ("bitsandbytes", "grape.models.quantise")):
        assert importers(package) == {module}
        top = [node for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
        assert not any(alias.name == package for node in top for alias in node.names)


def test_only_tuning_imports_optuna() -> None:
    assert importers("optuna") and all(_within(name, "grape.tune") for name in importers("optuna"))


def test_nothing_imports_dvc() -> None:
    """Its Python interface is undocumented; grape.dvc talks to the program."""
    assert importers("dvc") == set()


def test_the_maths_need_torch_only() -> None:
    for name, path in MODULES.items():
        if _within(name, "grape.maths"):
            outside = {found.split(".")[0] for found in imports(path)} - set(sys.stdlib_module_names)
            assert outside <= {"torch", "grape"}, name
            assert all(_within(found, "grape.maths") for found in imports(path) if _within(found, "grape")), name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("grape.reward", ("grape.sampling", "grape.training", "grape.algorithms")),
        ("grape.sampling", ("grape.reward",)),
        ("grape.training", ("grape.reward", "grape.track")),
        ("grape.algorithms", ("grape.reward", "grape.training", "grape.sampling", "grape.models", "grape.track")),
        ("grape.models", ("grape.reward", "grape.training", "grape.algorithms", "grape.track")),
        ("grape.sandbox", ("grape.reward", "grape.models", "grape.training", "grape.algorithms", "grape.track", "grape.stages")),
        ("grape.evaluation", ("grape.report", "grape.stages", "grape.track", "grape.training")),
    ],
)
def test_reward_and_policy_do_not_know_each_other(one: str, other: tuple[str, ...]) -> None:
    """`Scores` is the only thing that passes between them; algorithms know no models and no I/O, evaluation nobody who uses it."""
    for name, path in MODULES.items():
        if _within(name, one):
            bad = [found for found in imports(path) for part in other if _within(found, part)]
            assert not bad, f"{name} imports {bad}"


@pytest.mark.parametrize("package", ["grape.reward", "grape.sandbox"])
def test_no_file_imports_itself_by_way_of_others(package: str) -> None:
    below = {
        name: {found for found in imports(path) if found in MODULES and found != name and _within(found, package)}
        for name, path in MODULES.items()
        if _within(name, package)
    }
    while free := {name for name, others in below.items() if not others}:
        below = {name: others - free for name, others in below.items() if name not in free}
    assert not below, f"these import each other: {sorted(below)}"


# What renames beside grape.files, and why.
RENAMES = {
    "grape.pipeline.mend": "sets a damaged dvc.lock aside, and writes nothing",
    "grape.sandbox.canaries": "tries what no program in the sandbox may do",
}


def test_only_one_module_puts_files_in_their_place() -> None:
    """`grape.files.replacing` flushes what was written, and the folder's entry, which is forgotten elsewhere."""

    def renames(path: Path) -> bool:
        called = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = {ast.unparse(function) for function in called}
        return bool(names & {"os.replace", "os.rename", "os.renames", "shutil.move"}) or any(
            isinstance(function, ast.Attribute) and function.attr in ("rename", "renames") for function in called
        )

    found = {name for name, path in MODULES.items() if renames(path)}
    assert found == {"grape.files", *RENAMES}
    assert not importers("os.replace") | importers("os.rename") | importers("shutil.move")


def test_nobody_imports_the_world() -> None:
    """It is data: `prepare` and `evaluate` load it as the file that params.yaml names, training never sees its gold."""
    assert importers("grape.world") == set()


def test_nothing_below_imports_the_commands() -> None:
    below = {name for name in MODULES if not name.startswith(("grape.cli", "flows"))}
    assert not below & importers("grape.cli")
    assert all(name.startswith("grape.commands") for name in below & importers("grape.commands"))
    assert not below & (importers("flows") - {"grape.cli"})


def test_evaluate_and_report_share_one_record() -> None:
    assert {"grape.stages.held_out", "grape.report.data"} <= importers("grape.evaluation.record")


def test_stages_know_no_orchestrator() -> None:
    for name, path in MODULES.items():
        if _within(name, "grape.stages"):
            assert not any(_within(found, part) for found in imports(path) for part in ("grape.pipeline", "flows")), name


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["tune", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        f"import sys\nsys.argv = ['grape', *{arguments!r}]\nfrom grape.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'transformers', 'datasets', 'numpy', 'dvc', 'ruamel', 'rich', 'optuna'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_an_up_to_date_run_imports_neither_mlflow_nor_prefect() -> None:
    script = (
        "import sys\nimport grape.pipeline, grape.params, flows.server\n"
        "heavy = {'mlflow', 'prefect', 'transformers', 'datasets'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
