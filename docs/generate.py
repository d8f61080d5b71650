"""Write the generated part of the docs: `docs/cli.md`, the help of every verb of the command line.

python docs/generate.py           write it
python docs/generate.py --check   say whether it is current; exit code 1 if not
"""

import os
import sys
from pathlib import Path

# Read when typer and rich are imported: the same text on every terminal.
os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}

import typer
from typer.testing import CliRunner

from ace.cli import app

PAGE = Path(__file__).parent / "cli.md"
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


def main() -> int:
    """Write the page, or with `--check` compare it."""
    page = render()
    if "--check" in sys.argv[1:]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print("docs/cli.md is not what `ace --help` says: run `make docs`")
        return 1
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
