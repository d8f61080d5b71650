"""Teach a model one edit from about ten pairs of pictures: a LoRA with the settings that pairs need, and a look at it.

A lesson is a folder, which becomes the adapter: the two formats that `save_lora` writes, `preview.png`, `lesson.png`,
and `lesson.json`, which says how it stands after every step, so that another process can follow it (`ace/lesson.py`).
Its pairs, recipe and record lie in `lesson/` below. The last of six pairs or more is kept apart: the preview shows it,
and what the adapter learnt is measured on it. Stopped, it keeps the adapter as far as it came.

Not here: whether pairs can teach anything (`pairs.py`), the loop (`loop.py`), the studio's side of it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.data.world import World
from ace.diffusion import seeded_generator
from ace.files import hash_file
from ace.inference.pipeline import ACEPipeline, Request
from ace.lesson import PREVIEW, SHEET, Lesson
from ace.training.adapters import PEFT_FILE, save_lora
from ace.training.config import DataSource, Lora, ModelRecipe, TrainingStage, write_recipe
from ace.training.lock import held
from ace.training.loop import train
from ace.training.model import ModelRun, finished
from ace.training.pairs import FEW, Pair, check_pairs
from ace.training.start import start_pipeline
from ace.weights.sources import find_model

WORK = "lesson"
CELL_PX, GAP_PX, TITLE_PX = 224, 10, 22
MOST_SHOWN = 12  # pairs on a sheet


@dataclass(frozen=True)
class Look:
    """The picture that previews show. truth: what the edit makes of it, or None."""

    picture: Image.Image
    truth: Image.Image | None = None


def lesson_recipe(model: str, folder: Path, steps: int, rank: int, seed: int) -> ModelRecipe:
    """The training recipe of a lesson in `folder`."""
    stage = TrainingStage("teach", steps=steps, batch_size=4, lr=2e-3, warmup_steps=10, schedule="cosine")
    return ModelRecipe(
        (stage,),
        init=model,
        seed=seed,
        lora=Lora(rank),
        data=(DataSource("pairs", "jsonl", str(folder / WORK / "pairs")),),
        text_dropout=0.1,
        ema_decay=0.98,
        save_minutes=1,
        keep_checkpoints=1,
        preview_steps=max(steps // 6, 1),
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
        num_workers=0,
    )


def teach(
    pairs: Sequence[Pair],
    name: str,
    instruction: str,
    folder: Path,
    *,
    model: str | None = None,
    preview: Image.Image | None = None,
    steps: int = 200,
    rank: int = 16,
    seed: int = 0,
    quiet: bool = False,
    on_warning: Callable[[str], None] = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Lesson:
    """Train an adapter on pairs and write it to `folder`; an interrupted lesson of the same pairs goes on.

    preview: a picture to look at on the way, in place of a pair that is kept apart. stopped: asked after each step.
    Raises DataError for pairs that cannot teach, ConfigError for a model that cannot learn here."""
    check_pairs(pairs)
    if len(pairs) < FEW:
        on_warning(f"{len(pairs)} pairs are few: the edit may not carry over to other pictures, about ten are good")
    files = find_model(model)
    look, pairs = _look(pairs, preview, files.side_px)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        recipe = lesson_recipe(str(model or files.name), folder, steps, rank, seed)
        if _keep_pairs(pairs, instruction, recipe, folder / WORK):
            on_warning(f"{folder.name} held another lesson: it begins anew")
        lesson = Lesson(name, instruction, files.name, len(pairs), steps=steps).write(folder)
        try:
            lesson, answer = _train(recipe, lesson, look, folder, quiet, on_warning, stopped)
            draw_lesson(pairs, look, answer, folder / SHEET)
            return lesson.write(folder)
        except BaseException as error:
            words = str(error).splitlines()[0] if isinstance(error, Exception) and str(error) else "it was ended"
            dataclasses.replace(lesson, status="failed", message=words).write(folder)
            raise


def _look(pairs: Sequence[Pair], preview: Image.Image | None, side_px: int) -> tuple[Look, list[Pair]]:
    """What previews show, and the pairs that are trained on."""
    if preview is not None:
        return Look(preview), list(pairs)
    if len(pairs) >= FEW:
        return Look(pairs[-1].before, pairs[-1].after), list(pairs[:-1])
    return Look(World(side_px, "held_out").picture(0)), list(pairs)


def _keep_pairs(pairs: Sequence[Pair], instruction: str, recipe: ModelRecipe, work: Path) -> bool:
    """Write what is trained on and how; what was there of another lesson goes. Returns whether there was any."""
    new = work.with_name(".lesson.new")
    shutil.rmtree(new, ignore_errors=True)
    (new / "pairs").mkdir(parents=True)
    rows = []
    for number, pair in enumerate(pairs):
        names = f"{number:03d}-before.png", f"{number:03d}-after.png"
        pair.before.save(new / "pairs" / names[0])
        pair.after.save(new / "pairs" / names[1])
        rows.append(json.dumps({"instruction": instruction, "images": [names[0]], "target": names[1]}))
    (new / "pairs" / "list.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_recipe(recipe, new / "recipe.toml")
    if _same_files(new, work):
        shutil.rmtree(new)
        return False
    was_there = work.exists()
    shutil.rmtree(work, ignore_errors=True)
    new.rename(work)
    return was_there


def _same_files(new: Path, old: Path) -> bool:
    names = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
    return all((old / name).is_file() and (old / name).read_bytes() == (new / name).read_bytes() for name in names)


def _train(
    recipe: ModelRecipe,
    lesson: Lesson,
    look: Look,
    folder: Path,
    quiet: bool,
    on_warning: Callable[[str], None],
    stopped: Callable[[], bool],
) -> tuple[Lesson, Image.Image]:
    """Train and write the adapter; how it ended, and the last answer of the preview."""
    torch.manual_seed(recipe.seed)
    pipeline, recipe = start_pipeline(recipe)
    run = ModelRun(pipeline, recipe, folder / WORK)
    task = run.task()
    answers: list[Image.Image] = []

    def draw(step: int) -> Path:
        answers[:] = [_answer(finished(run.pipeline, recipe), look.picture, lesson.instruction)]
        return draw_sheet(look, answers[0], folder / PREVIEW)

    begun: list[tuple[int, float]] = []

    def on_step(done: int, total: int) -> bool:
        nonlocal lesson
        begun.append((done, time.monotonic()))
        (first, since), now = begun[0], begun[-1][1]
        eta_s = (now - since) / (done - first) * (total - done) if done > first else None
        lesson = dataclasses.replace(lesson, step=done, eta_s=eta_s).write(folder)
        return not stopped()

    draw(0)
    train(dataclasses.replace(task, preview=draw), recipe, folder / WORK, quiet, on_warning, on_step)
    draw(lesson.step)
    assert recipe.lora is not None
    save_lora(run.pipeline.transformer, recipe.lora, folder)
    shutil.rmtree(folder / WORK / "checkpoints", ignore_errors=True)  # a lesson that is done is not gone on with
    before = after = None
    if look.truth is not None:
        before, after = error_to(look.picture, look.truth), error_to(answers[0], look.truth)
    ended = dataclasses.replace(
        lesson,
        status="done" if lesson.step == lesson.steps else "stopped",
        eta_s=0.0,
        error_before=before,
        error_after=after,
        sha256=hash_file(folder / PEFT_FILE),
    )
    return ended, answers[0]


def _answer(pipeline: ACEPipeline, picture: Image.Image, instruction: str) -> Image.Image:
    unit = LongContextConditionUnit(ConditionUnit(instruction, (picture,)))
    return pipeline(requests=[Request(unit, generator=seeded_generator(0))]).images[0]


def error_to(picture: Image.Image, truth: Image.Image) -> float:
    """Mean absolute difference, 0 to 1, at the truth's size."""
    same = picture.convert("RGB").resize(truth.size, Image.Resampling.LANCZOS)
    return float(np.abs(np.asarray(same, np.float64) - np.asarray(truth.convert("RGB"), np.float64)).mean() / 255)


def draw_sheet(look: Look, answer: Image.Image, path: Path) -> Path:
    """Write the preview: before, what the adapter makes of it, and the true answer where there is one."""
    part = path.with_name(f".{path.name}")
    _row(_looked_at(look, answer)).save(part, "PNG")
    part.replace(path)  # whoever looks meanwhile sees a whole one
    return path


def draw_lesson(pairs: Sequence[Pair], look: Look, answer: Image.Image, path: Path) -> Path:
    """Write the whole lesson: the pairs that were trained on, each before over after, and the preview under them."""
    side = CELL_PX // 2
    few = pairs[:MOST_SHOWN]
    above = Image.new("RGB", (len(few) * (side + GAP_PX) + GAP_PX, 2 * (side + GAP_PX) + TITLE_PX + GAP_PX), "white")
    ImageDraw.Draw(above).text((GAP_PX, GAP_PX), f"{len(pairs)} pairs: before, after", fill="black")
    for column, pair in enumerate(few):
        for row, picture in enumerate((pair.before, pair.after)):
            place = GAP_PX + column * (side + GAP_PX), GAP_PX + TITLE_PX + row * (side + GAP_PX)
            above.paste(_fitted(picture, side), place)
    below = _row(_looked_at(look, answer))
    sheet = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height))
    sheet.save(path)
    return path


def _looked_at(look: Look, answer: Image.Image) -> list[tuple[str, Image.Image]]:
    shown = [("a picture that is not among the pairs", look.picture), ("as taught", answer)]
    return shown if look.truth is None else [*shown, ("the true answer", look.truth)]


def _row(shown: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    sheet = Image.new("RGB", (len(shown) * (CELL_PX + GAP_PX) + GAP_PX, CELL_PX + TITLE_PX + 2 * GAP_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, picture) in enumerate(shown):
        left = GAP_PX + column * (CELL_PX + GAP_PX)
        pen.text((left, GAP_PX), title, fill="black")
        sheet.paste(_fitted(picture, CELL_PX), (left, GAP_PX + TITLE_PX))
    return sheet


def _fitted(picture: Image.Image, side_px: int) -> Image.Image:
    scale = side_px / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
