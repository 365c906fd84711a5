"""How the commands are called that take something out of the project: export, push, trace, generate. Nothing heavy is imported
before one of them runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grape.commands.terminal import entered, show_as

if TYPE_CHECKING:
    from grape.export.checks import Order

app = typer.Typer()
STAGE = "base, sft, critic, reward, rl@grape-0..., or best: the policy with the highest score in the report"


class DtypeName(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


StageName = Annotated[str, typer.Argument(metavar="STAGE", help=STAGE)]
Dtype = Annotated[DtypeName | None, typer.Option(help="Of the weights. [default: float32]", show_default=False)]
Adapter = Annotated[bool, typer.Option("--adapter", help="The adapter alone, in PEFT's format, where the stage trained one.")]
Gguf = Annotated[bool, typer.Option("--gguf", help="A GGUF file beside the weights, by llama.cpp's convert_hf_to_gguf.py.")]
Replayed = Annotated[int | None, typer.Option("--replay", min=0, help="Greedy answers compared. [default: 8]", show_default=False)]
License = Annotated[str, typer.Option(help="For the card: an identifier of the hub's list, e.g. apache-2.0.")]
Base = Annotated[str | None, typer.Option(help="For the card and the adapter: the hub's name of the base model.")]


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _order(dtype: DtypeName | None, adapter: bool, gguf: bool, replay: int | None, license: str, base: str | None) -> Order:
    from grape.export.checks import Order

    return Order(None if dtype is None else dtype.value, adapter, gguf, replay, license, base)


@app.command()
def export(
    stage: StageName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    dtype: Dtype = None,
    adapter: Adapter = False,
    gguf: Gguf = False,
    replay: Replayed = None,
    license: License = "unknown",
    base: Base = None,
) -> None:
    """Write a stage's model as a folder that any program loads, with a card, its lineage and proof that it answers the same."""
    here = entered()
    from grape.commands import export as out

    out.export(here, out.named(here, stage), folder, _order(dtype, adapter, gguf, replay, license, base), _say)


@app.command()
def push(
    stage: StageName,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it a private repository.")] = False,
    dtype: Dtype = None,
    adapter: Adapter = False,
    gguf: Gguf = False,
    replay: Replayed = None,
    license: License = "unknown",
    base: Base = None,
) -> None:
    """Export a stage's model and upload it to the hub, with your token. Nothing else in grape uploads anything."""
    here = entered()
    from grape.commands import export as out

    out.push(here, out.named(here, stage), repo, _order(dtype, adapter, gguf, replay, license, base), private, _say)


@app.command()
def trace(
    what: Annotated[
        str, typer.Argument(metavar="PATH|STAGE|RUN", help="models/policy/grape-0, a stage, an MLflow run, an export.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout; messages go to stderr.")] = False,
) -> None:
    """Print the lineage back to every data set. Exit code 1 when something is no longer what the lineage names."""
    from grape.commands import trace as lineage

    found = lineage.trace(what)
    show_as(found, lineage.lines(found), as_json)
    raise typer.Exit(1 if found["problems"] else 0)


@app.command()
def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts: JSON Lines, JSON, CSV, Parquet, in any shape.")],
    stage: Annotated[str, typer.Option(help=STAGE)] = "best",
    out: Annotated[Path | None, typer.Option(help="JSON Lines. [default: stdout]", show_default=False)] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="[default: 0 for one answer, else evaluate.temperature]", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="[default: rl.max_new_tokens]", show_default=False)] = None,
) -> None:
    """Answer the prompts of a file by the model of a stage."""
    here = entered()
    from grape.commands import generate as batch
    from grape.commands.export import named

    batch.generate(here, file, named(here, stage), out, batch.Draws(samples, temperature, max_new_tokens), _say)
