"""From messages to jobs: what is edited, what is opened, and that a recipe opens the same again. No model runs here."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ace.conditions.units import ConditionUnit
from ace.conversation import Job, Mask, Message, Picture, Recipe, Session, Settings, open_message
from ace.conversation.family import Traits
from ace.conversation.recipe import Environment, FileRef, match_files
from ace.conversation.replay import job_of_recipe
from ace.conversation.run import batches
from ace.errors import ConditionError, ConfigError, ImageError, MaskError
from ace.families import find_family
from ace.families.ace import AceFamily
from ace.weights.sources import ModelFiles

SIZE = (24, 16)


@dataclass
class Room:
    """A folder with files, and the model whose messages are opened; it is never loaded."""

    folder: Path
    family: AceFamily

    def open(self, text, *, photo=None, references=(), mask=None, session=None, start=None, seed=1, **more) -> Job:
        files = [Picture.of_file(self.folder / name) for name in references]
        message = Message(
            text,
            Settings(seed),
            None if photo is None else Picture.of_file(self.folder / photo),
            tuple(files),
            None if mask is None else Mask.of_file(self.folder / mask),
            **more,
        )
        return open_message(self.family, message, session, start)


def picture(seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


@pytest.fixture
def room(tmp_path) -> Room:
    for name, seed in (("photo", 0), ("ref", 1), ("third", 2)):
        picture(seed).save(tmp_path / f"{name}.png")
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 10, 10))
    mask.save(tmp_path / "mask.png")
    family = find_family("ace-tiny")
    assert isinstance(family, AceFamily)
    return Room(tmp_path, family)


def recipe_of(job: Job) -> Recipe:
    return Recipe(
        model="ace-tiny",
        model_sha256="0" * 64,
        instruction=job.instruction,
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
def session(room) -> Session:
    """Two rounds: a photo with a mask, and one that goes on from its answer."""
    session = Session.create(room.folder / "talk")
    job = room.open("round 1", photo="photo.png", mask="mask.png", session=session)
    session.add_node(job.unit.current, picture(11), recipe_of(job), parents=job.parents)
    job = room.open("round 2", session=session, start="0001")
    session.add_node(job.unit.current, picture(12), recipe_of(job), parents=job.parents)
    return Session.open(room.folder / "talk")


def frames(job: Job) -> list[tuple]:
    return [(f.instruction, f.round, f.image.tobytes(), f.mask and f.mask.tobytes()) for f in job.unit.frames()]


def images(job: Job) -> list[bytes]:
    return [image.tobytes() for image in job.unit.current.images]


# What is edited: the photo, else the answer that the message follows, else the first reference


def test_the_photo_is_edited_whatever_else_there_is(room, session):
    for start in (None, "0002"):
        job = room.open("mix", photo="photo.png", references=["ref.png"], session=session, start=start)
        assert images(job) == [picture(0).tobytes(), picture(1).tobytes()]
        assert job.source is not None
        assert job.source.image.tobytes() == picture(0).tobytes()
        assert job.parents == (() if start is None else (start,))
        assert len(job.unit.history) == (0 if start is None else 2)


def test_else_the_answer_is_edited_and_references_follow_it(room, session):
    job = room.open("put {image1} into {image}", references=["ref.png"], session=session, start="0002")
    assert job.source is session.answer("0002")
    assert images(job) == [picture(12).tobytes(), picture(1).tobytes()]
    bare = room.open("make it night", references=["ref.png"], session=session, start="0002")
    assert images(bare) == images(job), "with or without names in the words"


def test_else_the_first_reference_is_edited(room, session):
    job = room.open("put {image1} into {image}", references=["ref.png", "third.png"], session=session)
    assert job.parents == ()
    assert job.source is not None
    assert job.source.image.tobytes() == picture(1).tobytes()
    assert images(job) == [picture(1).tobytes(), picture(2).tobytes()]
    masked = room.open("mix", references=["ref.png"], mask="mask.png")
    assert masked.mask is not None, "the mask is of the image that is edited"


def test_an_answer_is_not_shown_twice_where_the_conversation_shows_it(room, session):
    job = room.open("round 3", session=session, start="0002")
    assert job.unit.current.images == ()
    assert job.source is session.answer("0002")
    seen = [frame.image.tobytes() for frame in job.unit.frames()]
    assert seen == [image.tobytes() for image in (picture(0), picture(11), picture(12))]
    assert [asked.instruction for asked in job.rounds] == ["round 1", "round 2"]
    alone = room.open("round 3", session=session, start="0002", max_history=0)
    assert alone.unit.current.images == (session.answer("0002").image,)
    assert alone.rounds == ()


def test_a_mask_is_for_the_answer_that_the_message_follows(room, session):
    job = room.open("round 3", session=session, start="0001", mask="mask.png")
    assert job.unit.current.images == (session.answer("0001").image,)
    assert [frame.mask is not None for frame in job.unit.frames()] == [True, True]
    assert [asked.instruction for asked in job.rounds] == ["round 1"]


def test_a_model_that_edits_nothing_of_its_references_may_be_given_those_only(room, monkeypatch):
    traits = Traits(references_apart=True)
    monkeypatch.setattr(AceFamily, "traits", traits)
    job = room.open("her face", references=["ref.png"])
    assert job.source is None
    assert len(job.unit.current.images) == 1
    with pytest.raises(MaskError, match="a mask needs the image"):
        room.open("her face", references=["ref.png"], mask="mask.png")


def test_a_mention_is_the_image_that_it_names(room, session):
    job = room.open("draw @b like @a and @1", photo="photo.png", references=["ref.png"], session=session, start="0002")
    assert job.instruction == "draw {image1} like {image} and {image2}"
    assert images(job) == [picture(0).tobytes(), picture(1).tobytes(), picture(11).tobytes()]
    job = room.open("draw @a like @2", references=["ref.png"], session=session, start="0002")
    assert job.instruction == "draw {image1} like {image}"
    assert images(job) == [picture(12).tobytes(), picture(1).tobytes()]
    with pytest.raises(ConditionError, match="there is none: add --session"):
        room.open("like @1", photo="photo.png")


# The job


def test_images_masks_and_files_come_in_one_order(room):
    job = room.open("mix", photo="photo.png", references=["ref.png"], mask="mask.png")
    assert [mask is not None for mask in job.unit.current.masks] == [True, False]
    assert job.images == (FileRef.of(room.folder / "photo.png"), FileRef.of(room.folder / "ref.png"))
    assert job.masks == (FileRef.of(room.folder / "mask.png"), None)


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_recipe_opens_the_same_request_again(room, session, with_mask):
    mask = "mask.png" if with_mask else None
    job = room.open("round 3", seed=3, session=session, start="0002", references=["ref.png"], mask=mask)
    recipe = recipe_of(job)
    again = job_of_recipe(recipe, match_files(recipe, list(room.folder.rglob("*.png"))))
    assert frames(again) == frames(job)
    assert (again.images, again.masks, again.rounds) == (job.images, job.masks, job.rounds)
    assert again.unit.source_index == job.unit.source_index
    assert again.settings.seed == 3


def test_what_does_not_fit_is_refused(room):
    with pytest.raises(ImageError, match="no such file"):
        room.open("x", photo="nope.png")
    with pytest.raises(MaskError, match="a mask needs the image"):
        room.open("x", mask="mask.png")
    with pytest.raises(ConditionError, match="10 images"):
        room.open("x", photo="photo.png", references=["ref.png"] * 9)
    message = Message("x", replace(Settings(1), options={"repainting_scale": 1.0}))
    with pytest.raises(ConfigError, match="does not take a repainting scale"):
        open_message(room.family, message)


@pytest.mark.parametrize(("budget", "largest"), [(64, 16), (1024, 4), (4096, 1), (20_000, 1)])
def test_packed_passes_hold_fewer_images_of_larger_models(room, budget, largest):
    family = AceFamily(ModelFiles("m", room.folder, budget, 16, 20, 4.5))
    jobs = [room.open("a cat", seed=seed) for seed in range(33)]
    found = list(batches(family, jobs))
    assert max(len(batch) for batch in found) == largest
    assert [job.settings.seed for batch in found for job in batch] == list(range(33))


def test_one_picture_given_twice_is_one_object(room):
    twice = Picture.of_file(room.folder / "photo.png")
    job = open_message(room.family, Message("mix", Settings(1), twice, (twice,)))
    assert isinstance(job.unit.current, ConditionUnit)
    assert job.unit.current.images[0] is job.unit.current.images[1]
