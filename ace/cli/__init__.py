"""COMMAND LINE → DOORS. Imports: all above.

In: arguments. Out: one call of one door, its result as files, text or JSON. Nothing heavy is imported before a verb has
checked what it was given.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ace.cli import (
    about,
    chat,
    convert,
    data,
    edit,
    evaluate,
    extract,
    fuse,
    quantize,
    replay,
    serve,
    sessions,
    teach,
    train,
)
from ace.cli.lean import own_process
from ace.cli.terminal import STOPPED, Verbs, hush_torchao

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Verbs,
    help="Create and edit images from instructions. `ace VERB --help` shows examples.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(edit.generate)
app.command()(edit.edit)
app.command()(chat.chat)
app.command()(extract.extract)
app.command()(replay.replay)
app.command()(about.demo)
app.command()(about.models)
app.command()(about.doctor)
app.command("serve")(serve.serve)
app.command("mcp")(serve.mcp)
app.command()(convert.convert)
app.command()(quantize.quantize)
app.command()(fuse.fuse)
app.command()(train.train)
app.command()(teach.teach)
app.add_typer(sessions.session, name="session")
app.add_typer(data.data, name="data")
app.add_typer(evaluate.evaluate, name="eval")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    """Create and edit images from instructions. `ace VERB --help` shows examples."""
    hush_torchao()
    if version:
        from ace import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The `ace` command."""
    own_process()
    try:
        app(prog_name="ace")
    except KeyboardInterrupt:
        sys.exit(STOPPED)
