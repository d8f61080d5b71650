"""`ace session`: look at a conversation, and carry it from one place to another as one file."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.making import check_session
from ace.cli.options import Json, Quiet
from ace.cli.terminal import Output, Verbs, count_of, short
from ace.errors import OutputError, SessionError

if TYPE_CHECKING:
    from ace.conversation.session import Node


class SessionVerbs(Verbs):
    """The verbs of sessions; without one, `ace session FOLDER` shows the folder."""

    def parse_args(self, ctx, args):
        """Take `show` for granted where no verb is named."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)


session = typer.Typer(
    cls=SessionVerbs,
    help="Look at a conversation, and carry it elsewhere as one file. `ace session FOLDER` shows its edits.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(help="A session folder.", show_default=False)]


@session.command()
def show(folder: Folder, json: Json = False) -> None:
    """Show the edits of a session as a tree: number, instruction, seed.

    \b
    ace session talk
    ace session show talk --json
    """
    from ace.conversation.session import Session

    output = Output(json)
    nodes = Session.open(folder).nodes()
    output.data(
        [
            {
                "node": node.id,
                "parents": node.parents,
                "instruction": node.instruction,
                "seed": node.recipe.seed,
                "file": str(node.answer_path),
            }
            for node in nodes
        ]
    )
    for depth, node in _as_tree(nodes):
        output.say(f"{'   ' * depth}{node.id}  {node.instruction}  (seed {node.recipe.seed})")
    if not nodes:
        output.say("no edits yet")


def _as_tree(nodes: Sequence[Node]) -> Iterator[tuple[int, Node]]:
    """(depth, node), each before its children, siblings from the oldest."""
    children: dict[str | None, list[Node]] = {}
    for node in nodes:
        children.setdefault(node.parents[0] if node.parents else None, []).append(node)
    todo = [(0, node) for node in reversed(children.get(None, []))]
    while todo:
        depth, node = todo.pop()
        yield depth, node
        todo += [(depth + 1, child) for child in reversed(children.get(node.id, []))]


@session.command("export")
def export_session(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="The ZIP file to write; replaced if it is there.", show_default=False)],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a session with its pictures, recipes and latents as one file.

    \b
    ace session export talk talk.zip
    """
    from ace.conversation.session import Session

    opened = Session.open(folder)
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            opened.write_archive(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except OSError as error:
        raise OutputError(f"{file.name} cannot be written ({_reason(error)}): choose another place") from None
    finally:
        part.unlink(missing_ok=True)
    output = Output(json, quiet)
    count = len(opened.node_ids())
    output.data({"file": str(file), "nodes": count, "bytes": file.stat().st_size})
    output.say(f"{short(file)}: {count_of(count, 'edit')} of {short(folder)}")


@session.command("import")
def import_session(
    file: Annotated[
        Path, typer.Argument(help="A file that `export`, the studio or a server wrote.", show_default=False)
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="The session that gets its edits, behind its own; made if missing. Default: the file's name.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add the edits of an exported session: all of them, or none if anything about the file is wrong.

    \b
    ace session import talk.zip             # makes the session talk
    ace session import talk.zip holiday     # adds them to another
    """
    target = Path(file.stem) if folder is None else folder
    numbers = _import(file, target)
    output = Output(json, quiet)
    output.data({"session": str(target), "nodes": numbers})
    where = f", {min(numbers.values())} to {max(numbers.values())}" if numbers else ""
    output.say(f"{short(target)}: {count_of(len(numbers), 'edit')} added from {file.name}{where}")


def _import(file: Path, folder: Path) -> dict[str, str]:
    """Old number → new number. A session that is not there yet appears whole or not at all.

    Raises SessionError or OutputError."""
    from ace.conversation.session import Session

    there = check_session(folder)
    with contextlib.ExitStack() as opened:
        try:
            stream = opened.enter_context(open(file, "rb"))
        except OSError as error:
            raise SessionError(f"{file.name} cannot be read ({_reason(error)}): check the path") from None
        if there is not None:
            return there.add_archive(stream, name=file.name)
        fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        opened.callback(shutil.rmtree, fresh, ignore_errors=True)
        try:
            numbers = Session.create(fresh).add_archive(stream, name=file.name)
            os.rename(fresh, folder)
        except OSError as error:
            raise OutputError(f"the session {folder.name} cannot be made ({_reason(error)}): choose another") from None
        return numbers


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
