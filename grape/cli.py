"""The command `grape`. Everything heavy is imported by the command that needs it, so that `grape --help` is instant."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grape.commands import leaving
from grape.commands.terminal import Commands, entered, print_json, print_lines, project, show_as, speaks_utf8
from grape.errors import GrapeError

if TYPE_CHECKING:
    from grape.pipeline import Result
    from grape.project import Project


# No rich: plain help takes a quarter of the time.
app = typer.Typer(
    name="grape",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a pre-trained language model to an instruction-following one, any algorithm slotted in.",
)
mlflow_app = typer.Typer(no_args_is_help=True, help="MLflow's records of this project.")
app.add_typer(mlflow_app, name="mlflow")
rubric_app = typer.Typer(no_args_is_help=True, help="The rubrics: check them, show them, try them on a response.")
app.add_typer(rubric_app, name="rubric")
data_app = typer.Typer(no_args_is_help=True, help="The data, as the model will see them.")
app.add_typer(data_app, name="data")
app.add_typer(leaving.app)


class EngineName(StrEnum):
    prefect = "prefect"
    dvc = "dvc"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; messages go to stderr.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"grape {version('grape')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None: ...


@app.command()
def run(
    what: Annotated[str, typer.Argument(help="pipeline, compare, or a stage with all it needs: sft, rl@grape-0")] = "pipeline",
    algorithms: Annotated[str | None, typer.Option(help="compare: names with commas, or all. [default: rl.algorithms]")] = None,
    seeds: Annotated[str | None, typer.Option(help="compare: e.g. 0,1,2. [default: rl.seeds]")] = None,
    sets: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Edit params.yaml first, e.g. --set rl.steps=10. Repeatable.")
    ] = [],  # noqa: B006 - Typer copies it
    engine: Annotated[
        EngineName, typer.Option(help="prefect: states and a server to watch; dvc: the same without it.")
    ] = EngineName.prefect,
    workers: Annotated[int | None, typer.Option(min=1, help="Stages side by side. [default: 2; GPU or compare: 1]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run; like `grape plan`.")] = False,
    rehearsal: Annotated[
        bool | None,
        typer.Option("--rehearsal/--no-rehearsal", help="Two rounds before rl begins. [default: where rl takes minutes]"),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Refuse, not queue, when a run is under way.")] = False,
    tuned: Annotated[bool, typer.Option("--tuned", help="compare: with the settings that `grape tune` found.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the pipeline, or one stage and what it needs, up to date."""
    comparing = what == "compare"
    _refuse(comparing, dry_run, bool(algorithms or seeds or tuned), bool(sets))
    targets = () if comparing or what == "pipeline" else (what,)
    if dry_run:
        _show_plan(targets, as_json)
        return
    from flows.server import PrefectEngine
    from grape.pipeline import Hooks, Request, Screen, Threads
    from grape.pipeline import run as run_pipeline

    here = project()
    if comparing:
        from grape.commands import league

        sets = [*sets, *(_tuned if tuned else league.assignments)(here, algorithms, seeds, sets)]
        workers = workers or 1  # two at once would spoil each other's seconds
    request = Request(targets, tuple(sets), workers, not no_wait, what if comparing else "pipeline", rehearsal)
    screen = Screen(sys.stderr if as_json else None)
    result = run_pipeline(here, request, PrefectEngine() if engine == "prefect" else Threads(), screen, Hooks())
    _tell(result, league.read(here) if comparing and result.exit_code == 0 else None, as_json)
    raise typer.Exit(result.exit_code)


def _tuned(here: Project, algorithms: str | None, seeds: str | None, sets: list[str]) -> list[str]:
    from grape.commands import tune

    more, words = tune.assignments(here, algorithms, seeds, sets)
    for line in words:
        typer.echo(line, err=True)
    return more


def _refuse(comparing: bool, dry_run: bool, compared: bool, sets: bool) -> None:
    """Options that do not go together; `compared`: what to compare was given."""
    if compared and not comparing:
        mend = "use --set rl.algorithms=... and --set rl.seeds=... here"
        raise GrapeError("--algorithms, --seeds and --tuned belong to `grape run compare`", mend=mend)
    if dry_run and (sets or compared):
        mend = "edit the file and use `grape plan`"
        raise GrapeError("this would edit params.yaml, and --dry-run must not", where="--dry-run", mend=mend)


def _tell(result: Result, table: dict[str, Any] | None, as_json: bool) -> None:
    """The result for machines; the league table, for people too."""
    if as_json:
        print_json(result.as_json() | ({"league": table["algorithms"]} if table else {}))
    elif table:
        from grape.commands import league

        typer.echo()
        print_lines(league.lines(table))


@app.command()
def rehearse(as_json: Json = False) -> None:
    """Sample and score two rounds as rl would, and say what is wrong with them. Exit code 2 where rl should not begin."""
    here = entered()
    from grape.commands import rehearse as rehearsals

    found = rehearsals.examine(here)
    show_as(rehearsals.rows(found), rehearsals.lines(found), as_json)
    raise typer.Exit(0 if all(one.passed for one in found) else 2)


@app.command()
def tune(
    algorithms: Annotated[str | None, typer.Option(help="names with commas, or all; or sft. [default: rl.algorithms]")] = None,
    trials: Annotated[int, typer.Option(min=1, help="of each algorithm; the first are the present settings")] = 8,
    budget: Annotated[float, typer.Option(metavar="SHARE", help="share of rl.steps that a trial has, up to 1")] = 0.25,
    seeds: Annotated[str, typer.Option(help="of every trial; `compare --tuned` then takes others")] = "1000",
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML: what is tried of which knobs, in place of ours")] = None,
    sets: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Edit params.yaml first, as for `grape run`. Repeatable.")
    ] = [],  # noqa: B006 - Typer copies it
    workers: Annotated[int | None, typer.Option(min=1, help="Trials side by side. [default: 2; GPU: 1]")] = None,
    as_json: Json = False,
) -> None:
    """Look for each algorithm's best settings, with as many trials for each, on the validation prompts."""
    here = project()
    from grape.commands import tune as tuning
    from grape.pipeline import Screen

    screen = Screen(sys.stderr if as_json else None)
    found = tuning.tune(here, algorithms, trials, budget, seeds, workers, space, sets, screen)
    show_as({name: entry.model_dump() for name, entry in found.items()}, ["", *tuning.lines(found)], as_json)


@app.command()
def plan(
    what: Annotated[str, typer.Argument(help="pipeline, or a stage with all it needs")] = "pipeline", as_json: Json = False
) -> None:
    """Say what would run, and why. Changes nothing."""
    _show_plan(() if what == "pipeline" else (what,), as_json)


def _show_plan(targets: tuple[str, ...], as_json: bool) -> None:
    from grape.pipeline import Hooks, Request, preflight
    from grape.pipeline import look as look_ahead
    from grape.pipeline.plan import left_out

    here = entered()
    preflight.initialised(here)
    drawn, left = look_ahead(here, Request(targets), Hooks()), Hooks().unneeded(here)
    found = {
        "up_to_date": drawn is None,
        "stages": drawn.as_json() if drawn else [],
        "not_needed": left,
        "notes": list(drawn.notes) if drawn else [],
    }
    show_as(found, drawn.lines() if drawn else ["everything is up to date", *left_out(left)], as_json)


@app.command()
def algorithms(as_json: Json = False) -> None:
    """List the algorithms, what they need, their knobs."""
    from grape.commands import catalogue

    entries = catalogue.entries(_root())
    show_as(entries, catalogue.lines(entries), as_json)


def _root() -> Path | None:
    """The project's folder, None outside one: algorithms can be read about anywhere."""
    try:
        return project().root
    except GrapeError:
        return None


@app.command()
def explain(name: Annotated[str, typer.Argument(help="an algorithm, sft or reward_model")]) -> None:
    """Print an algorithm's page: what it does and why, its equations, its knobs, its file."""
    from grape.commands import catalogue

    print_lines(catalogue.explain(name, _root()))


@app.command()
def ui(port: Annotated[int | None, typer.Option(min=1, max=65535, help="[default: a free one]")] = None) -> None:
    """Open the MLflow UI on this project's runs. Ctrl-C ends it."""
    from grape.commands import ui as mlflow_ui

    raise typer.Exit(mlflow_ui.serve(project(), port, typer.echo))


@app.command()
def doctor(
    fit: Annotated[bool, typer.Option(help="estimate each stage's memory instead, beside what there is")] = False,
    as_json: Json = False,
) -> None:
    """Look for what keeps grape from working, each with its mend. Exit code 1 when something is wrong."""
    from dataclasses import asdict

    if fit:
        from grape.commands import fit as memory

        needs = memory.rows(memory.examine(entered()))
        show_as(needs, memory.lines(needs), as_json)
        raise typer.Exit(0 if all(row["fits"] for row in needs) else 1)
    from grape.commands import doctor as checks

    found = checks.examine(project())
    show_as([asdict(check) for check in found], [check.line() for check in found], as_json)
    raise typer.Exit(1 if any(check.wrong for check in found) else 0)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="an empty or new folder")],
    preset: Annotated[
        list[str], typer.Option(metavar="NAME", help="For a model, a machine or a data set (`grape presets`). Repeatable.")
    ] = [],  # noqa: B006 - Typer copies it
    base: Annotated[
        str | None, typer.Option(help="model.base: a folder, a .gguf file or a hub id. [default: the preset's]")
    ] = None,
) -> None:
    """Make a working project in an empty folder."""
    from grape.commands import init as maker

    print_lines(maker.make(folder, preset, base))


@app.command()
def presets() -> None:
    """List what `grape init --preset` knows: for which machine, how long it takes, what to expect."""
    from grape.commands import init as maker
    from grape.commands import presets as known

    print_lines(known.lines(maker.template() / "presets"))


@app.command()
def chat(stage: Annotated[str | None, typer.Argument(help="base, sft, rl@grape-0... [default: the best policy]")] = None) -> None:
    """Talk to the model of a trained stage."""
    here = entered()
    from grape.commands.chat import chat as talk

    talk(here, stage)


@mlflow_app.command()
def sync(as_json: Json = False) -> None:
    """Deliver what could not be written while MLflow was away."""
    here = entered()
    from grape.track import sync as deliver

    names = deliver(here)
    show_as(names, [f"delivered: {', '.join(names)}" if names else "nothing was waiting"], as_json)


@rubric_app.command()
def check() -> None:
    """Check every rubric; a mistake is named with file and line."""
    from grape.commands import rubrics

    print_lines(rubrics.check(project()))


@rubric_app.command()
def show(category: Annotated[str | None, typer.Argument(help="[default: all]")] = None) -> None:
    """Show the items of a category and their share of the reward."""
    from grape.commands import rubrics

    print_lines(rubrics.show(project(), category))


@rubric_app.command("try")
def try_(
    category: str,
    prompt: str,
    response: str,
    answer: Annotated[str | None, typer.Option(help="What verifiers compare with.")] = None,
    as_json: Json = False,
) -> None:
    """Score a response item by item, with reasons."""
    here = entered()
    from grape.commands import rubrics

    found = rubrics.attempt(here, category, prompt, response, answer)
    show_as(found, rubrics.lines(found), as_json)


@data_app.callback()
def _data() -> None: ...


@data_app.command()
def preview(
    stage: Annotated[str, typer.Option(help="base, sft, critic, reward, rl or evaluate.")] = "sft",
    rows: Annotated[int, typer.Option(min=0, help="How many to show.")] = 2,
    as_json: Json = False,
) -> None:
    """Show what a stage's rows become: tokens, which of them are learned, lengths, what is left out."""
    here = entered()
    from grape.commands import data

    found = data.preview(here, stage, rows)
    show_as(found, data.lines(found, "\u2588" if speaks_utf8() else "#"), as_json)


def main() -> None:
    from grape.progress import any_terminal

    any_terminal()
    app()


if __name__ == "__main__":
    main()
