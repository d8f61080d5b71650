"""Jobs: what is opened for a request, and that a recipe opens the same again. No model runs here."""

import numpy as np
import pytest
from PIL import Image

from ace.conditions.units import ConditionUnit
from ace.conversation.edit import Job, Settings, in_batches, job_of_recipe, open_job
from ace.conversation.recipe import Environment, FileRef, Recipe, match_files
from ace.conversation.session import Session
from ace.errors import ConditionError, ImageError, MaskError
from ace.weights.sources import ModelFiles

SIZE = (24, 16)


def picture(seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("photo", 0), ("ref", 1)):
        picture(seed).save(tmp_path / f"{name}.png")
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 10, 10))
    mask.save(tmp_path / "mask.png")
    return tmp_path


def recipe_of(job: Job) -> Recipe:
    return Recipe(
        model="ace-tiny",
        model_sha256="0" * 64,
        instruction=job.unit.current.instruction,
        seed=job.settings.seed,
        num_inference_steps=10,
        guidance_scale=2.0,
        guidance_rescale=0.0,
        size_px=SIZE,
        images=job.images,
        masks=job.masks,
        history=job.rounds,
        environment=Environment.here(),
    )


@pytest.fixture
def session(folder) -> Session:
    """Two rounds: a photo with a mask, and one that goes on from its answer."""
    session = Session.create(folder / "talk")
    for number, photo in ((1, folder / "photo.png"), (2, None)):
        mask = folder / "mask.png" if photo is not None else None
        job = open_job(f"round {number}", Settings(number), photo=photo, mask=mask, session=session)
        session.add_node(job.unit.current, picture(10 + number), recipe_of(job), parents=job.parents)
    return Session.open(folder / "talk")


def frames(job: Job) -> list[tuple]:
    return [(f.instruction, f.round, f.image.tobytes(), f.mask and f.mask.tobytes()) for f in job.unit.frames()]


def test_pictures_come_in_the_order_photo_then_references(folder):
    job = open_job(
        "mix", Settings(1), photo=folder / "photo.png", references=[folder / "ref.png"], mask=folder / "mask.png"
    )
    assert [image.tobytes() for image in job.unit.current.images] == [picture(0).tobytes(), picture(1).tobytes()]
    assert [mask is not None for mask in job.unit.current.masks] == [True, False]
    assert job.images == (FileRef.of(folder / "photo.png"), FileRef.of(folder / "ref.png"))
    assert job.masks == (FileRef.of(folder / "mask.png"), None)


def test_a_session_goes_on_from_its_newest_answer_without_showing_it_twice(session):
    job = open_job("round 3", Settings(3), session=session)
    assert job.parents == ("0002",) and job.unit.current.images == ()
    assert job.source is session.answer("0002")
    assert [frame.image.tobytes() for frame in job.unit.frames()] == [
        p.tobytes() for p in (picture(0), picture(11), picture(12))
    ]
    assert [asked.instruction for asked in job.rounds] == ["round 1", "round 2"]


def test_a_mask_in_a_session_is_for_the_answer_it_starts_from(session, folder):
    job = open_job("round 3", Settings(3), session=session, start="0001", mask=folder / "mask.png")
    assert job.unit.current.images == (session.answer("0001").image,)
    assert [frame.mask is not None for frame in job.unit.frames()] == [True, True]
    assert [asked.instruction for asked in job.rounds] == ["round 1"]


def test_a_photo_in_a_session_begins_a_new_conversation_unless_a_node_is_named(session, folder):
    new = open_job("other", Settings(3), photo=folder / "ref.png", session=session)
    assert new.parents == () and new.unit.history == ()
    on = open_job("other", Settings(3), photo=folder / "ref.png", session=session, start="0002")
    assert on.parents == ("0002",) and len(on.unit.history) == 2
    assert on.source is not None and on.source.image.tobytes() == picture(1).tobytes()


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_recipe_opens_the_same_request_again(session, folder, with_mask):
    mask = folder / "mask.png" if with_mask else None
    job = open_job("round 3", Settings(3), session=session, references=[folder / "ref.png"], mask=mask)
    recipe = recipe_of(job)
    again = job_of_recipe(recipe, match_files(recipe, list(folder.rglob("*.png"))))
    assert frames(again) == frames(job)
    assert (again.images, again.masks, again.rounds) == (job.images, job.masks, job.rounds)
    assert again.unit.source_index == job.unit.source_index
    assert again.settings.seed == 3


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(ImageError, match="no such file"):
        open_job("x", Settings(1), photo=folder / "nope.png")
    with pytest.raises(MaskError, match="a mask needs the picture"):
        open_job("x", Settings(1), mask=folder / "mask.png")
    with pytest.raises(ConditionError, match="10 images"):
        open_job("x", Settings(1), photo=folder / "photo.png", references=[folder / "ref.png"] * 9)


@pytest.mark.parametrize(("budget", "largest"), [(64, 16), (1024, 4), (4096, 1), (20_000, 1)])
def test_packed_passes_hold_fewer_pictures_of_larger_models(folder, budget, largest):
    model = ModelFiles("m", folder, budget, 16, 20, 4.5)
    batches = list(in_batches(33, model))
    assert max(len(batch) for batch in batches) == largest
    assert [number for batch in batches for number in batch] == list(range(33))


def test_a_unit_is_not_opened_twice_for_one_file(folder):
    job = open_job("mix", Settings(1), photo=folder / "photo.png", references=[folder / "photo.png"])
    assert isinstance(job.unit.current, ConditionUnit)
    assert job.unit.current.images[0] is job.unit.current.images[1]
