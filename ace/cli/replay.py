"""`ace replay`: making an image, or every image of a conversation, again."""

from __future__ import annotations

import dataclasses
import json as json_format
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.making import load_family, refuse_inputs
from ace.cli.options import Device, Json, Model, NumberType, Quiet
from ace.cli.terminal import FAILED, Output, complain
from ace.errors import ConfigError, InputError

if TYPE_CHECKING:
    from ace.conversation import Family, Job, Made, Session
    from ace.conversation.recipe import Recipe

ROUNDING_LEVELS = 4  # what other kernels were seen to move, see docs/reliability.md; more is another image
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".avif")
CLIP_SUFFIXES = (".mp4", ".mkv", ".mov", ".m4v", ".webm", ".avi", ".ts", ".mpg", ".ogv")


@dataclass(frozen=True)
class ReplayOptions:
    """How everything is made again. model, lora, transformer: where the weights are now; tolerance: levels of 255."""

    model: str | None
    lora: tuple[Path, ...]
    transformer: Path | None
    device: str
    dtype: str
    tolerance: int


def replay(
    picture: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE|SESSION",
            help="An image that ace made, or a session: its folder or its exported ZIP file, made again edit by edit.",
            show_default=False,
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="FILE|FOLDER",
            help="Where its inputs are now, by any name, or its session; repeatable. Its own folder is searched too.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Also write the new image.", show_default=False),
    ] = None,
    model: Model = None,
    lora: Annotated[
        list[Path] | None,
        typer.Option(
            "--lora",
            metavar="FILE",
            help="Where the adapters it was made with are now; repeatable.",
            show_default=False,
        ),
    ] = None,
    transformer: Annotated[
        Path | None,
        typer.Option(
            "--transformer",
            metavar="FILE",
            help="Where the transformer file is now that replaced the model's own (ACE++).",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        int,
        typer.Option(
            "--tolerance",
            metavar="LEVELS",
            help="Accept pixels that differ by up to this many of 255 levels.",
            min=0,
            max=255,
        ),
    ] = 0,
    device: Device = "auto",
    dtype: NumberType = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an image again from its recipe and compare it with the file, byte for byte.

    Exit code 0: the same bytes, or pixels within --tolerance; in a signed file the same pixels. 1: another image, or
    content credentials that are not valid; what differs is listed.

    \b
    ace replay out.png
    ace replay out.png --image photo.png --image mask.png
    ace replay out.png --image talk     # made in this session
    ace replay talk                     # every edit of a session
    ace replay talk/nodes/0002/image.png
    """
    output = Output(json, quiet)
    asked = ReplayOptions(model, tuple(lora or ()), transformer, device, dtype, tolerance)
    if picture.is_dir() or zipfile.is_zipfile(picture):
        if image or out is not None:
            raise ConfigError("a whole session is made again from itself: leave --image and --out out")
        with _session_at(picture) as session:
            _replay_session(session, asked, output)
        return
    _replay_one(picture, image or [], out, asked, output)


def _replay_one(picture: Path, given: Sequence[Path], out: Path | None, asked: ReplayOptions, output: Output) -> None:
    from ace.conversation import recipe as recipes
    from ace.conversation.credentials import check
    from ace.conversation.media import medium_of, read_recipe, write

    written = read_recipe(picture)
    family, make_it = _maker(written, asked, output)
    inputs: list[Path] = []
    at = _node_of(picture, written, given)
    if at is None:
        files = recipes.match_files(written, _candidates(written, picture, given))
        inputs = list(files.values())
        job = _job_of(written, files, family)
    else:
        from ace.conversation.replay import job_of_node

        job = job_of_node(*at, family.sha256)
    if out is not None:
        recipes.check_output(out, family.traits.medium.formats)
        refuse_inputs([out], [picture, *inputs])
    made = make_it(job)
    credentials, medium = check(picture.read_bytes()), medium_of(picture)
    remade = medium.encode(made.content, medium.format_of(picture), written)
    same = _compare(picture, remade, credentials is not None)
    differences = _differences(written, made.recipe, family.sha256)
    if out is not None:
        write(made, out)
    accepted = same.bytes or _within(same.largest, asked.tolerance)
    if credentials is not None:
        accepted = (accepted or same.largest == 0) and credentials.state != "invalid"
    output.data(
        {
            "same_bytes": same.bytes,
            "same_pixels": same.largest == 0,
            "largest_difference": same.largest,
            "accepted": accepted,
            "differences": differences,
            "credentials": None if credentials is None else dataclasses.asdict(credentials),
            "file": None if out is None else str(out),
        }
    )
    output.say(f"{picture.name}: made again, {same}")
    if credentials is not None:
        output.say(f"  {credentials}")
    if not same.bytes and not (same.signed and same.largest == 0):
        for line in differences or ["nothing that the recipe knows of differs: the file was changed since"]:
            output.say(f"  {line}")
        if not accepted and differences and 0 < same.largest <= ROUNDING_LEVELS:
            output.say(f"  rounding differs like that from machine to machine: --tolerance {same.largest} accepts it")
    if not accepted:
        raise typer.Exit(FAILED)


def _replay_session(session: Session, asked: ReplayOptions, output: Output) -> None:
    """Every node of a session made again, with a line each. Exits with 1 if one is not the same."""
    from ace.conversation.replay import job_of_node

    rows = []
    loaded: dict[str, tuple[Family, _Make]] = {}
    for node_id in session.node_ids():
        row = {"node": node_id, "same_bytes": False, "largest_difference": None, "differences": [], "error": None}
        rows.append(row)
        try:
            node = session.node(node_id)
            # how the weights are held is part of it: nodes with the same model but other adapters load it again
            key = json_format.dumps([node.recipe.family, node.recipe.model, _of_weights(node.recipe)])
            if key not in loaded:
                loaded = {key: _maker(node.recipe, asked, output)}
            family, make_it = loaded[key]
            made = make_it(job_of_node(session, node_id, family.sha256))
            same = _compare(node.answer_path, made.medium.encode(made.content, made.medium.node_format, node.recipe))
            row |= {"same_bytes": same.bytes, "largest_difference": same.largest}
            row["differences"] = [] if same.bytes else _differences(node.recipe, made.recipe, family.sha256)
            output.say(f"{node_id}  {same}  {node.instruction}")
            for line in row["differences"]:
                output.say(f"        {line}")
        except InputError as error:
            row["error"] = str(error)
            complain(f"node {node_id}: {error}")
    good = [
        r
        for r in rows
        if r["same_bytes"] or (r["error"] is None and 0 <= r["largest_difference"] <= asked.tolerance > 0)
    ]
    output.data(rows)
    output.say(f"{len(good)} of {len(rows)} edits made again")
    if len(good) < len(rows):
        raise typer.Exit(FAILED)


def _within(largest: int | None, tolerance: int) -> bool:
    """Whether a difference is accepted; without a tolerance only the same bytes are."""
    return largest is not None and tolerance > 0 and largest <= tolerance


class _Make:
    """Makes jobs with one family, which is loaded at the first."""

    def __init__(self, family: Family, loading, output: Output) -> None:
        self.family, self.loading, self.output, self.loaded = family, loading, output, False

    def __call__(self, job: Job) -> Made:
        from ace.conversation import make, open_job

        job = open_job(self.family, job)
        with self.output.progress(f"loading {self.family.name}") as tell:
            if not self.loaded:
                load_family(self.family, self.loading, self.output, tell)
                self.loaded = True
            (made,) = make(self.family, [job], lambda now: tell(now.step, now.total, "denoising"))
        return made


def _maker(recipe: Recipe, asked: ReplayOptions, output: Output) -> tuple[Family, _Make]:
    """The model of a recipe, and what makes its images. Says before anything is loaded that weights are others."""
    from ace.families import family_of_recipe

    family, loading = family_of_recipe(recipe, asked.model, asked.lora, asked.transformer, asked.device, asked.dtype)
    if family.sha256 != recipe.model_sha256:
        output.say(f"the weights of {family.name} are not those that made it: expect another image")
    return family, _Make(family, loading, output)


def _job_of(recipe: Recipe, files: dict[str, Path], family: Family) -> Job:
    from ace.conversation.replay import job_of_recipe

    return job_of_recipe(recipe, files, references_apart=family.traits.references_apart)


@contextmanager
def _session_at(path: Path) -> Iterator[Session]:
    """A session's folder, or an exported one unpacked for as long as it is needed. Raises SessionError."""
    from ace.conversation import Session

    if path.is_dir():
        yield Session.open(path)
        return
    with tempfile.TemporaryDirectory(prefix="ace-replay-") as folder, open(path, "rb") as stream:
        session = Session.create(Path(folder) / "session")
        session.add_archive(stream, name=path.name)
        yield session


def _node_of(picture: Path, recipe: Recipe, given: Sequence[Path]) -> tuple[Session, str] | None:
    """The session and the node that an image is the answer of: it lies there, or the session is among the given
    folders. Raises ConfigError for inputs that the session does not need."""
    from ace.conversation import Session
    from ace.conversation.media import medium_of

    folder, is_answer = picture.absolute().parent, picture.name == medium_of(picture).node_file
    if is_answer and folder.parent.name == "nodes" and (folder / "node.json").is_file():
        if given:
            raise ConfigError("the image lies in its session, which keeps its inputs: leave --image out")
        return Session.open(folder.parent.parent), folder.name
    for path in given:
        if (path / "session.json").is_file():
            session = Session.open(path)
            for node_id in session.node_ids():
                if session.node(node_id).recipe == recipe:
                    return session, node_id
    return None


@dataclass(frozen=True)
class Sameness:
    """Whether an image file and its remake are equal: to the byte, and else by how many of 255 levels at most. signed:
    it holds a signature, which differs every time."""

    bytes: bool
    largest: int
    signed: bool = False

    def __str__(self) -> str:
        if self.bytes:
            return "the same to the byte"
        if self.largest == 0:
            more = "is signed" if self.signed else "was written differently"
            return f"every pixel is the same; the file {more}"
        return f"pixels differ by up to {self.largest} of 255 levels"


def _compare(picture: Path, remade: bytes, signed: bool = False) -> Sameness:
    """The file as it is, against the bytes that a remake would be."""
    from ace.conversation.media import medium_of

    before = picture.read_bytes()
    if remade == before:
        return Sameness(True, 0)
    from ace.conditions.rules import MOST_PIXELS

    medium = medium_of(picture)
    medium.open(picture, MOST_PIXELS)  # says what is wrong with a damaged one
    return Sameness(False, medium.largest_difference(before, remade), signed)


def _of_weights(recipe: Recipe) -> list[str]:
    """How the weights were held, as far as it changes the image."""
    from ace.conversation.recipe import OF_THE_WEIGHTS

    return [f"{name}={recipe.settings[name]}" for name in OF_THE_WEIGHTS if name in recipe.settings]


def _differences(then: Recipe, now: Recipe, model_sha256: str) -> list[str]:
    """What was otherwise when an image was made than when it was made again, a line each."""
    from ace.conversation import recipe as recipes

    found = [*recipes.compare(then, now.environment, model_sha256=model_sha256), *recipes.changed_settings(then, now)]
    batch = then.settings.get("batch_size", 1)
    if batch != 1:
        found.append(f"made together with {int(batch) - 1} others then, alone now")
    if then.format_version == 1 and then.needs_latents and not now.needs_latents:
        found.append("went on from latents that its session keeps then, from the answers' files now")
    if then.settings.get("refine"):
        found.append(f"refined then ({_refiner_of(then)}), not now")
    return found


def _refiner_of(recipe: Recipe) -> str:
    """The name of the model that refined an image."""
    try:
        return str(json_format.loads(str(recipe.settings["refine"]))["model"])
    except (ValueError, KeyError, TypeError):
        return "by an unknown model"


def _candidates(recipe: Recipe, picture: Path, given: Sequence[Path]) -> list[Path]:
    """The files that may be the recipe's inputs, if anything is needed: those given, and images beside the output."""
    if not recipe.files():
        return []
    suffixes = (*PICTURE_SUFFIXES, *CLIP_SUFFIXES)
    found: list[Path] = []
    for path in (*given, picture.absolute().parent):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
            if "clip" in recipe.settings:  # a folder of frames may be an input itself
                found += [path, *(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))]
        else:
            found.append(path)
    return found
