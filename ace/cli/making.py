"""From checked plans to written images: what `ace generate` and `ace edit` share.

The model is loaded once for all images, which go through it in packed passes of a sensible size; with several images,
one that fails does not stop the rest. An image is written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ace.cli.lean import unused, without
from ace.cli.options import (
    Avoid,
    Compile,
    Control,
    Count,
    Detail,
    Device,
    Fast,
    Feather,
    Focus,
    FocusMargin,
    Guidance,
    Json,
    Lora,
    MaskMeans,
    MaskThreshold,
    MaxPixels,
    MaxSeqLength,
    Memory,
    Model,
    NoMetadata,
    NumberType,
    Out,
    OutDir,
    Quantize,
    Quiet,
    Refine,
    RefineStrength,
    Repaint,
    Rescale,
    SaveChangeMask,
    Seed,
    SessionFolder,
    Sign,
    Size,
    Steps,
    Transformer,
    check_fast,
    check_numbers,
    read_size,
)
from ace.cli.terminal import FAILED, Output, Tell, complain, count_of, quiet_libraries, short
from ace.errors import ConfigError, InputError, OutputError, SessionError

if TYPE_CHECKING:
    from ace.conditions.rules import ImageRules
    from ace.conversation import Family, Job, Loading, Made, Node, Progress, Session, Settings
    from ace.conversation.credentials import Signer
    from ace.conversation.media import Medium


@dataclass(frozen=True)
class Asked:
    """What `ace generate` and `ace edit` are asked for alike: each field is an option of both."""

    out: Out = None
    out_dir: OutDir = None
    count: Count = 1
    session: SessionFolder = None
    seed: Seed = None
    steps: Steps = None
    guidance: Guidance = None
    rescale: Rescale = None
    avoid: Avoid = ""
    size: Size = None
    detail: Detail = "full"
    save_change_mask: SaveChangeMask = False
    mask_means: MaskMeans = "auto"
    mask_threshold: MaskThreshold = None
    focus: Focus = "auto"
    focus_margin: FocusMargin = 0.5
    feather: Feather = None
    max_pixels: MaxPixels = "64MP"
    sign: Sign = None
    model: Model = None
    lora: Lora = None
    refine: Refine = None
    refine_strength: RefineStrength = None
    device: Device = "auto"
    dtype: NumberType = "auto"
    memory: Memory = "auto"
    fast: Fast = None
    compile_network: Compile = False
    no_metadata: NoMetadata = False
    json: Json = False
    quiet: Quiet = False
    repaint: Repaint = None
    control: Control = None
    max_seq_length: MaxSeqLength = None
    quantize: Quantize = None
    transformer: Transformer = None

    def output(self) -> Output:
        """Where this call speaks."""
        return Output(self.json, self.quiet)

    def loading(self) -> Loading:
        """How the model is loaded. Raises ConfigError."""
        from ace.conversation import Loading

        check_fast(self.fast)
        if self.refine_strength is not None and self.refine is None:
            raise ConfigError("--refine-strength belongs to --refine: name the refiner's model")
        return Loading(
            device=self.device,
            dtype=self.dtype,
            memory=self.memory,
            adapters=tuple(self.lora or ()),
            transformer=self.transformer,
            quantize=self.quantize,
            max_tokens=self.max_seq_length,
            fast=self.fast,
            compile=self.compile_network,
            refine=self.refine,
            refine_strength=self.refine_strength,
        )

    def signer(self) -> Signer | None:
        """Who signs the results. Raises ConfigError or MissingDependencyError."""
        from ace.conversation.credentials import Signer

        if self.sign is not None and self.no_metadata:
            raise ConfigError("both --sign and --no-metadata: a signature is metadata, leave one of them out")
        if self.sign is not None and self.out is None and self.out_dir is None and self.session is not None:
            raise ConfigError("--sign signs files, and a session keeps its own unsigned: name one with --out")
        return None if self.sign is None else Signer.of(self.sign)

    def images(self) -> ImageRules:
        """How images and masks are read, worked on and given back. Raises ConfigError."""
        from ace.conditions.rules import ImageRules, parse_pixels

        return ImageRules(
            mask_means=self.mask_means,  # type: ignore[arg-type]  # which it checks
            mask_threshold=self.mask_threshold,
            max_pixels=parse_pixels(self.max_pixels),
            feather_px=self.feather,
            focus=self.focus,
            focus_margin=self.focus_margin,
            detail=self.detail,  # type: ignore[arg-type]
        )

    def settings(self) -> list[Settings]:
        """How each of the `count` images is made, with consecutive seeds. Raises ConfigError."""
        from ace.conversation import Settings
        from ace.conversation.seeds import read_seed, seeds_of

        check_numbers(self.steps, self.guidance)
        own = {"repainting_scale": self.repaint, "control": self.control, "max_seq_length": self.max_seq_length}
        first = Settings(
            seed=read_seed(self.seed),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            guidance_rescale=self.rescale,
            negative_instruction=self.avoid,
            size=read_size(self.size),
            images=self.images(),
            options={name: value for name, value in own.items() if value is not None},
        )
        return [replace(first, seed=seed) for seed in seeds_of(first.seed, self.count)]


@dataclass(frozen=True)
class Plan:
    """One image to make: its name in messages, how its request is opened, where it goes (None: the session only)."""

    name: str
    open: Callable[[], Job]
    out: Path | None


def find_asked_family(asked: Asked) -> tuple[Family, Loading]:
    """The model asked for and how it is loaded, checked against each other. Raises InputError."""
    from ace.families import find_family

    loading = asked.loading()
    return find_family(asked.model, loading), loading


def check_count(count: int, out: Path | None, out_dir: Path | None, session: Path | None) -> None:
    """Raise ConfigError for a number of images that does not fit where they should go."""
    if not 1 <= count <= 10_000:
        raise ConfigError(f"{count} images: use 1 to 10000")
    if out is not None and out_dir is not None:
        raise ConfigError("both --out and --out-dir: use --out for one image, --out-dir for several")
    if count > 1 and out_dir is None:
        raise ConfigError(f"{count} images need a folder: use --out-dir")
    if out_dir is not None and session is not None:
        raise ConfigError("both --out-dir and --session: a session takes one image at a time")


def check_session(folder: Path | None, start: str | None = None) -> Session | None:
    """The session, None if there is none yet; nothing is made. Raises SessionError or OutputError."""
    from ace.conversation import Session

    if folder is None:
        if start is not None:
            raise SessionError(f"--from {start} needs a session: add --session FOLDER")
        return None
    if (folder / "session.json").exists():
        session = Session.open(folder)
        if start is not None:
            session.node(start)
        return session
    if start is not None:
        raise SessionError(f"there is no session {folder.name} yet: leave --from out to begin one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SessionError(f"{folder.name} holds other files: name a new or empty folder for the session")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"the folder of the session {folder.name} does not exist: create it first or choose another")
    return None


def out_of(asked: Asked, photo: Path | None, new: str, number: int | None) -> Path | None:
    """Where an image goes; None = into the session only. photo: what it is an edit of; new: its name without one;
    number: which of several variants, from 0."""
    if asked.out_dir is None:
        name = new if photo is None else f"{photo.stem}-edited.png"
        return asked.out if asked.out is not None or asked.session is not None else _free_name(name)
    name = Path(new if photo is None else _name_in_folder(photo))
    return asked.out_dir / (name if number is None else f"{name.stem}-{number + 1:03d}{name.suffix}")


def _free_name(name: str) -> Path:
    """The first free name in the current folder."""
    path, number = Path(name), 2
    while path.exists():
        path = Path(f"{Path(name).stem}-{number}.png")
        number += 1
    return path


def _name_in_folder(photo: Path) -> str:
    """What the result of editing a file is called in another folder: the same, in a format that can be written."""
    from ace.conversation.recipe import FORMATS

    return photo.name if photo.suffix.lower() in FORMATS else f"{photo.stem}.png"


def check_outputs(plans: Sequence[Plan], inputs: Sequence[Path], out_dir: Path | None, medium: Medium) -> None:
    """Raise OutputError for an output that cannot be written, is an input, or is there twice."""
    from ace.conversation.recipe import check_output

    outputs = [plan.out for plan in plans if plan.out is not None]
    if out_dir is not None:
        parent = out_dir.absolute()
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {out_dir.name} cannot be made or written to: choose another")
    else:
        for path in outputs:
            check_output(path, medium.formats)
    seen: set[str] = set()
    for path in outputs:
        if path.name in seen:
            raise OutputError(f"two results would be called {path.name}: edit them in separate runs")
        seen.add(path.name)
    refuse_inputs(outputs, inputs)


def check_change_masks(asked: Asked, plans: Sequence[Plan], inputs: Sequence[Path]) -> None:
    """Raise ConfigError or OutputError for change masks that cannot be written beside the results."""
    if not asked.save_change_mask:
        return
    outputs = [plan.out for plan in plans if plan.out is not None]
    if not outputs:
        raise ConfigError("--save-change-mask writes beside the result: name it with --out")
    refuse_inputs([change_mask_of(path) for path in outputs], [*inputs, *outputs])


def refuse_inputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise OutputError for an output that would replace an input."""
    originals = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.realpath(path) in originals:
            raise OutputError(f"{path.name} is one of the inputs: write the result somewhere else")


def load_family(family: Family, loading: Loading, output: Output, tell: Tell) -> None:
    """Load a model without what the libraries print; its notes and its progress are told. Raises as `Family.load`."""
    with without(unused(family, loading)), quiet_libraries():
        family.load(loading, output.say, lambda done, total: tell(done, total, "loading weights"))


class Maker:
    """Makes all images of one call, in packed passes, and writes them.

    session: the one that exists already, None if it is still to be made in `asked.session`."""

    def __init__(self, family: Family, loading: Loading, asked: Asked, session: Session | None = None) -> None:
        self.family, self.loading, self.asked, self.session = family, loading, asked, session
        self.output = asked.output()
        self.signer = asked.signer()
        self.results: list[dict] = []
        self.failures: list[dict] = []

    def make(self, plans: Sequence[Plan]) -> None:
        """Open, make and write every image. Raises InputError for the only one; exits with 1 if some of several
        failed."""
        loaded = False
        with self.output.progress(f"loading {self.family.name}") as tell:
            done = 0
            for batch in self._opened(plans):
                if not loaded:
                    load_family(self.family, self.loading, self.output, tell)
                    loaded = True
                for plan, made in self._make_each(batch, self._steps(tell, done, len(batch), len(plans)), len(plans)):
                    try:
                        self.results.append(self._write(plan, made))
                    except InputError as error:
                        self._failed(plan, error, len(plans))
                done += len(batch)
        self.output.data({"pictures": self.results, "failures": self.failures})
        if self.failures:
            complain(f"{len(self.results)} of {len(plans)} images made, {len(self.failures)} failed")
            raise typer.Exit(FAILED)

    def _opened(self, plans: Sequence[Plan]) -> Iterator[list[tuple[Plan, Job]]]:
        """The plans opened, as many at a time as one pass holds."""
        from ace.conversation.run import MOST_TOGETHER

        batch: list[tuple[Plan, Job]] = []
        for plan in plans:
            try:
                batch.append((plan, plan.open()))
            except InputError as error:
                self._failed(plan, error, len(plans))
                continue
            if len(batch) >= min(MOST_TOGETHER, self.family.most_together(batch[0][1].worked)):
                yield batch
                batch = []
        if batch:
            yield batch

    @staticmethod
    def _steps(tell: Tell, before: int, here: int, count: int) -> Callable[[Progress], None]:
        return lambda now: tell(before * now.total + here * now.step, now.total * count, "denoising")

    def _make_each(
        self, batch: list[tuple[Plan, Job]], on_progress: Callable[[Progress], None], count: int
    ) -> list[tuple[Plan, Made]]:
        """All together; if a request is refused, each by itself, so that only the wrong one fails."""
        from ace.conversation import make

        try:
            made = make(self.family, [job for _, job in batch], on_progress)
            return [(plan, one) for (plan, _), one in zip(batch, made, strict=True)]
        except InputError as error:
            if len(batch) == 1:
                self._failed(batch[0][0], error, count)
                return []
        return [pair for one in batch for pair in self._make_each([one], on_progress, count)]

    def _failed(self, plan: Plan, error: InputError, count: int) -> None:
        if count == 1:
            raise error
        self.failures.append({"input": plan.name, "error": str(error)})
        complain(str(error) if plan.name in str(error) else f"{plan.name}: {error}")

    def _write(self, plan: Plan, made: Made) -> dict:
        """Write an image to its file and its session; returns what `--json` says of it."""
        from ace.conversation import Session, keep
        from ace.conversation.media import write
        from ace.conversation.recipe import embed

        if plan.out is not None:
            try:
                plan.out.parent.mkdir(parents=True, exist_ok=True)
            except OSError:
                raise OutputError(f"the folder of {plan.out.name} cannot be made: choose another") from None
            made = write(made, plan.out, metadata=not self.asked.no_metadata, signer=self.signer)
        change_mask = None
        if self.asked.save_change_mask and made.delivered is not None and plan.out is not None:
            change_mask = change_mask_of(plan.out)
            embed(made.delivered.change_mask, change_mask)
        node = None
        if self.asked.session is not None:
            self.session = self.session or Session.open_or_create(self.asked.session)
            node = keep(self.session, made)
        report = _report(plan, made, node, self.output)
        return report if change_mask is None else {**report, "change_mask": str(change_mask)}


def change_mask_of(out: Path) -> Path:
    """Where the change mask of a result goes."""
    return out.with_name(f"{out.stem}-change.png")


def _report(plan: Plan, made: Made, node: Node | None, output: Output) -> dict:
    """Say where an image is and what came of it; returns what `--json` says of it."""
    recipe, job = made.recipe, made.job
    size = f"{made.image.width}x{made.image.height} px"
    where = short(node.answer_path if plan.out is None and node is not None else plan.out or Path())
    output.say(f"{where}  {size}, seed {recipe.seed}, {count_of(recipe.num_inference_steps, 'step')}, {recipe.model}")
    if node is not None:
        output.say(f"  session {short(node.folder.parent.parent)}, node {node.id}")
    for note in (
        *made.notes,
        *([str(made.drift)] if made.delivered is None and made.drift is not None and made.drift.telling else []),
    ):
        output.say(f"  {note}")
    canvas = recipe.settings.get("canvas_cells")
    return {
        "input": plan.name,
        "file": None if plan.out is None else str(plan.out),
        "size_px": list(made.image.size),
        "seed": recipe.seed,
        "num_inference_steps": recipe.num_inference_steps,
        "guidance_scale": recipe.guidance_scale,
        "model": recipe.model,
        "model_sha256": recipe.model_sha256,
        "session": None if node is None else str(node.folder.parent.parent),
        "node": None if node is None else node.id,
        "changes": None if made.delivered is None else made.delivered.as_dict(),
        "drift": None if made.drift is None else made.drift.as_dict(),
        "notes": list(made.notes),
        "num_dropped_rounds": job.unit.num_dropped_rounds,
        "converted": None if job.source is None else job.source.converted,
        **({} if canvas is None else {"canvas_cells": canvas}),
    }
