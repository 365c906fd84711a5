"""The command `grape`. Everything heavy is imported by the command that needs it, so that `grape --help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from grape.errors import GrapeError

# No rich: plain help takes a quarter of the time.
app = typer.Typer(name="grape", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
                  help="From a pre-trained language model to an instruction-following one, any algorithm slotted in.")
mlflow_app = typer.Typer(no_args_is_help=True, help="MLflow's records of this project.")
app.add_typer(mlflow_app, name="mlflow")
rubric_app = typer.Typer(no_args_is_help=True, help="The rubrics: check them, show them, try them on a response.")
app.add_typer(rubric_app, name="rubric")


class EngineName(StrEnum):
    prefect = "prefect"
    dvc = "dvc"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; messages go to stderr.")]


@contextmanager
def _messages() -> Iterator[None]:
    """A user's mistake is one message and exit code 2, an interruption exit code 130; neither shows a traceback."""
    try:
        yield
    except GrapeError as error:
        typer.echo(f"grape: error: {error}", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        from grape import disk

        refusal = disk.refusal(error, Path.cwd())
        if refusal is None:
            raise
        typer.echo(f"grape: error: {refusal}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as interrupt:
        typer.echo("grape: stopped; what is done stays done", err=True)
        raise typer.Exit(130) from interrupt


def _print_json(value: object) -> None:
    import json

    readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(value, indent=2, ensure_ascii=not readable))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"grape {version('grape')}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                   help="Print the version.")] = False) -> None: ...


@app.command()
def run(
    what: Annotated[str, typer.Argument(help="pipeline, compare, or a stage with all it needs: sft, rl@grape-0")]
    = "pipeline",
    algorithms: Annotated[str | None, typer.Option(help="compare: names with commas, or all. [default: rl.algorithms]")]
    = None,
    seeds: Annotated[str | None, typer.Option(help="compare: e.g. 0,1,2. [default: rl.seeds]")] = None,
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE",
                                            help="Edit params.yaml first, e.g. --set rl.steps=10. Repeatable.")] = [],  # noqa: B006 - Typer copies it
    engine: Annotated[EngineName, typer.Option(help="prefect: states and a server to watch; dvc: the same without it.")]
    = EngineName.prefect,
    workers: Annotated[int | None, typer.Option(min=1, help="Stages side by side. [default: 2; GPU or compare: 1]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run; like `grape plan`.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Refuse, not queue, when a run is under way.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the pipeline, or one stage and what it needs, up to date."""
    with _messages():
        comparing = what == "compare"
        if not comparing and (algorithms or seeds):
            raise GrapeError("--algorithms and --seeds belong to `grape run compare`",
                             mend="use --set rl.algorithms=... and --set rl.seeds=... here")
        targets = () if comparing or what == "pipeline" else (what,)
        if dry_run:
            if sets or algorithms or seeds:
                raise GrapeError("this would edit params.yaml, and --dry-run must not", where="--dry-run",
                                 mend="edit the file and use `grape plan`")
            _show_plan(targets, as_json)
            return
        from flows.server import PrefectEngine
        from grape.pipeline import Hooks, Request, Screen, Threads
        from grape.pipeline import run as run_pipeline
        from grape.project import Project

        project = Project.find()
        if comparing:
            from grape import compare

            sets = [*sets, *compare.assignments(project, algorithms, seeds, sets)]
            workers = workers or 1  # two at once would spoil each other's seconds
        request = Request(targets, tuple(sets), workers, wait=not no_wait, name=what if comparing else "pipeline")
        screen = Screen(sys.stderr if as_json else None)
        result = run_pipeline(project, request, PrefectEngine() if engine == "prefect" else Threads(), screen, Hooks())
        table = compare.read(project) if comparing and result.exit_code == 0 else None
        if as_json:
            _print_json(result.as_json() | ({"league": table["algorithms"]} if table else {}))
        elif table:
            typer.echo()
            for line in compare.league(table):
                typer.echo(line)
        raise typer.Exit(result.exit_code)


@app.command()
def plan(what: Annotated[str, typer.Argument(help="pipeline, or a stage with all it needs")] = "pipeline",
         as_json: Json = False) -> None:
    """Say what would run, and why. Changes nothing."""
    with _messages():
        _show_plan(() if what == "pipeline" else (what,), as_json)


def _show_plan(targets: tuple[str, ...], as_json: bool) -> None:
    from grape.pipeline import Hooks, Request, preflight
    from grape.pipeline import look as look_ahead
    from grape.project import Project

    project = Project.find()
    project.enter()
    preflight.initialised(project)
    drawn = look_ahead(project, Request(targets), Hooks())
    if as_json:
        _print_json({"up_to_date": drawn is None, "stages": drawn.as_json() if drawn else []})
    elif drawn is None:
        typer.echo("everything is up to date")
    else:
        for line in drawn.lines():
            typer.echo(line)


@app.command()
def algorithms(as_json: Json = False) -> None:
    """List the algorithms, what they need, their knobs."""
    with _messages():
        from grape import catalogue

        entries = catalogue.entries(_root())
        if as_json:
            _print_json(entries)
        else:
            for line in catalogue.lines(entries):
                typer.echo(line)


def _root() -> Path | None:
    """The project's folder, None outside one: algorithms can be read about anywhere."""
    from grape.project import Project

    try:
        return Project.find().root
    except GrapeError:
        return None


@app.command()
def explain(name: Annotated[str, typer.Argument(help="an algorithm, sft or reward_model")]) -> None:
    """Print an algorithm's page: what it does and why, its equations, its knobs, its file."""
    with _messages():
        from grape import catalogue

        for line in catalogue.explain(name, _root()):
            typer.echo(line)


@app.command()
def ui(port: Annotated[int | None, typer.Option(min=1, max=65535, help="[default: a free one]")] = None) -> None:
    """Open the MLflow UI on this project's runs. Ctrl-C ends it."""
    with _messages():
        from grape import ui as mlflow_ui
        from grape.project import Project

        raise typer.Exit(mlflow_ui.serve(Project.find(), port, typer.echo))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look for what keeps grape from working, each with its mend. Exit code 1 when something is wrong."""
    with _messages():
        from grape import doctor as checks
        from grape.project import Project

        found = checks.examine(Project.find())
        if as_json:
            _print_json([check.as_json() for check in found])
        else:
            for check in found:
                typer.echo(check.line())
        raise typer.Exit(1 if any(check.wrong for check in found) else 0)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="an empty or new folder")]) -> None:
    """Make a working project in an empty folder."""
    with _messages():
        from grape import init as maker

        for line in maker.make(folder):
            typer.echo(line)


@app.command()
def chat(stage: Annotated[str | None, typer.Argument(help="base, sft, rl@grape-0... [default: the best policy]")] = None
         ) -> None:
    """Talk to the model of a trained stage."""
    with _messages():
        from grape.project import Project

        project = Project.find()
        project.enter()
        from grape.chat import chat as talk

        talk(project, stage)


@mlflow_app.command()
def sync(as_json: Json = False) -> None:
    """Deliver what could not be written while MLflow was away."""
    with _messages():
        from grape.project import Project

        project = Project.find()
        project.enter()
        from grape.track import sync as deliver

        names = deliver(project)
        if as_json:
            _print_json(names)
        else:
            typer.echo(f"delivered: {', '.join(names)}" if names else "nothing was waiting")


@rubric_app.command()
def check() -> None:
    """Check every rubric; a mistake is named with file and line."""
    with _messages():
        from grape import rubrics
        from grape.project import Project

        for line in rubrics.check(Project.find()):
            typer.echo(line)


@rubric_app.command()
def show(category: Annotated[str | None, typer.Argument(help="[default: all]")] = None) -> None:
    """Show the items of a category and their share of the reward."""
    with _messages():
        from grape import rubrics
        from grape.project import Project

        for line in rubrics.show(Project.find(), category):
            typer.echo(line)


@rubric_app.command("try")
def try_(
    category: str, prompt: str, response: str,
    answer: Annotated[str | None, typer.Option(help="What verifiers compare with.")] = None, as_json: Json = False,
) -> None:
    """Score a response item by item, with reasons."""
    with _messages():
        from grape.project import Project

        project = Project.find()
        project.enter()
        from grape import rubrics

        found = rubrics.attempt(project, category, prompt, response, answer)
        if as_json:
            _print_json(found)
        else:
            for line in rubrics.attempt_lines(found):
                typer.echo(line)


def main() -> None:
    from grape.progress import any_terminal

    any_terminal()
    app()


if __name__ == "__main__":
    main()
