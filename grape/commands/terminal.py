"""What every command of `grape` has in common: the project it is for, and how it speaks. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from grape.errors import GrapeError

if TYPE_CHECKING:
    from grape.project import Project


class Commands(TyperGroup):
    """A user's mistake is one message and exit code 2, an interruption exit code 130; neither shows a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (GrapeError, OSError) as error:
            from grape import disk

            refusal = error if isinstance(error, GrapeError) else disk.refusal(error, Path.cwd())
            if refusal is None:
                raise
            typer.echo(f"grape: error: {refusal}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("grape: stopped; what is done stays done", err=True)
            raise typer.Exit(130) from interrupt


def speaks_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=not speaks_utf8()))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def show_as(value: object, lines: Iterable[str], as_json: bool) -> None:
    """The value for machines, or the lines that say the same to people."""
    if as_json:
        print_json(value)
    else:
        print_lines(lines)


def project() -> Project:
    """The one we are in; GrapeError outside one."""
    from grape.project import Project

    return Project.find()


def entered() -> Project:
    """The same, with the environment that its processes have: to be called before a library is imported that reads it."""
    found = project()
    found.enter()
    return found
