"""Write the generated parts of the docs.

`cli.md` is the help of every verb; `images/rooms.svg` is the rooms of `ace/` with their imports; the table in
`index.md` counts what is in each room.

python docs/generate.py           write them
python docs/generate.py --check   say whether they are current; exit code 1 if not
"""

import os
import sys
from pathlib import Path

import house

# Read when typer and rich are imported: the same text on every terminal.
os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}

import typer
from typer.testing import CliRunner

from ace.cli import app

DOCS = Path(__file__).parent
INTRODUCTION = """# The command line

**Enters:** arguments. **Leaves:** one call of one door. `app` is the typer application, `main` the `ace` command.

Written by `make docs` from the program's own help."""


def verbs(command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every verb under a command, groups before what they hold."""
    found = [path]
    for name, child in sorted(getattr(command, "commands", {}).items()):
        found += verbs(child, (*path, name))
    return found


def render() -> str:
    """The page, from the command line itself."""
    sections = [INTRODUCTION]
    for arguments in verbs(typer.main.get_command(app)):
        result = CliRunner().invoke(app, [*arguments, "--help"], prog_name="ace")
        if result.exit_code != 0:
            raise SystemExit(f"`ace {' '.join(arguments)} --help` failed: {result.output}")
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        sections.append(f"## `{' '.join(['ace', *arguments])}`\n\n```text\n{text}\n```")
    return "\n\n".join(sections) + "\n"


def index() -> str:
    """`index.md` with its table of rooms as they are now."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- generated -->\n")
    _, _, after = rest.partition("<!-- end -->")
    return f"{before}<!-- generated -->\n{house.table()}<!-- end -->{after}"


def main() -> int:
    """Write the pages, or with `--check` compare them."""
    pages = {"cli.md": render(), "images/rooms.svg": house.picture(), "index.md": index()}
    stale = []
    for name, text in pages.items():
        path = DOCS / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    if stale and "--check" in sys.argv[1:]:
        print(f"{', '.join(stale)}: not what the code says; run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
