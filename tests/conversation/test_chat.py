"""A conversation: messages, mentions, branches, variants, cancelling and making again, with the model that ships."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ace.conditions.images import normalise_image
from ace.conditions.rules import ImageRules
from ace.conversation import (
    ChatSession,
    Loading,
    Mask,
    Message,
    Node,
    Picture,
    Progress,
    Recipe,
    Session,
    Settings,
    make,
)
from ace.conversation.recipe import FIRST_RULES, hash_latents, match_files, read
from ace.conversation.replay import Replay, job_of_recipe
from ace.conversation.sketch import extend_canvas, hide_under, sketch_over
from ace.errors import ConditionError, ConfigError, InputError, MaskError, SessionError
from ace.families import find_family
from ace.families.ace import AceFamily

QUICK = Settings(seed=1, num_inference_steps=2)


@pytest.fixture(scope="module")
def family():
    found = find_family("ace-tiny")
    assert isinstance(found, AceFamily)
    found.load(Loading(device="cpu"))
    return found


@pytest.fixture
def chat(family, tmp_path):
    return ChatSession(Session.create(tmp_path / "talk"), family)


def photo(seed=0, size=(64, 64), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, len(mode)), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def picture(seed=0, name="photo", **options):
    return Picture.of_image(normalise_image(photo(seed, **options), name=name), name)


def half(size=(64, 64)):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def say(text, photo=None, *references, mask=None, settings=QUICK, **options):
    return Message(text, settings, photo, references, None if mask is None else Mask(mask), **options)


def answer(chat, message, start=None, **options):
    """The nodes of an answer."""
    return [event for event in chat.ask(message, start, **options) if isinstance(event, Node)]


# Turns


def test_three_turns_make_a_conversation_that_reads_back_as_it_was_said(chat):
    (first,) = answer(chat, say("a red apple"))
    (second,) = answer(chat, say("make the background blue"), first.id)
    (third,) = answer(chat, say("add a hat"), second.id)
    opened = Session.open(chat.session.folder)
    assert [turn.unit.instruction for turn in opened.history(third.id)] == [
        "a red apple",
        "make the background blue",
        "add a hat",
    ]
    assert [len(node.recipe.history) for node in opened.nodes()] == [0, 1, 2]
    # an edit that holds pixels of the picture before it goes on from itself, and the recipe says so
    assert opened.node(first.id).has_latents
    for before, after in ((first, second), (second, third)):
        goes_on = after.recipe.history[-1].latents is not None
        assert goes_on == opened.node(before.id).has_latents


def test_the_next_turn_goes_on_from_the_kept_latents_and_not_from_the_picture(chat):
    (first,) = answer(chat, say("a red apple"))
    encoded = chat.family.pipeline.latent_cache.num_encoded
    (second,) = answer(chat, say("make it night"), first.id)
    assert chat.family.pipeline.latent_cache.num_encoded == encoded
    latents = chat.session.latents(first.id)
    assert [asked.latents for asked in second.recipe.history] == [hash_latents(latents)]
    assert second.recipe.needs_latents
    job = chat.open(say("make it night"), first.id)
    np.testing.assert_array_equal(job.unit.kept_history[0].latents, latents)


def test_the_same_two_turns_are_the_same_bytes_twice_and_replay_exactly(family, tmp_path):
    folders = []
    for name in ("once", "twice"):
        chat = ChatSession(Session.create(tmp_path / name), family)
        (first,) = answer(chat, say("a red apple"))
        (second,) = answer(chat, say("make it night"), first.id)
        folders.append([node.answer_path.read_bytes() for node in (first, second)])
    assert folders[0] == folders[1]
    *_, replay = ChatSession(Session.open(tmp_path / "twice"), family).replay("0002")
    assert replay.same_pixels
    recipe = read(tmp_path / "twice" / "nodes" / "0002" / "image.png")
    files = match_files(recipe, [tmp_path / "twice" / "nodes" / "0001" / "image.png"])
    with pytest.raises(InputError, match="went on from latents that its session keeps"):
        job_of_recipe(recipe, files)
    kept = chat.session.latents("0001")
    job = job_of_recipe(recipe, files, [kept])
    np.testing.assert_array_equal(job.unit.kept_history[0].latents, kept)


def test_latents_of_another_model_are_left_alone(chat):
    (first,) = answer(chat, say("a red apple"))
    other = AceFamily(replace(chat.family.model, name="another"), chat.family.pipeline)
    other.model.__dict__["sha256"] = "0" * 64
    assert ChatSession(chat.session, other).open(say("make it night"), first.id).unit.history[0].latents is None


def test_with_no_history_the_last_answer_is_still_the_picture_that_is_edited(chat):
    (first,) = answer(chat, say("a red apple"))
    job = chat.open(say("make it night", max_history=0), first.id)
    assert job.unit.kept_history == ()
    assert job.unit.current.images == (chat.session.answer(first.id).image,)


def test_outside_the_mask_nothing_changes_and_alpha_survives_a_retry(chat):
    given = picture(3, mode="RGBA")
    (node,) = answer(chat, say("make it snow", given, mask=half()))
    (again,) = (event for event in chat.again(node.id, seed=7) if isinstance(event, Node))
    assert again.parents == node.parents
    for made in (node, again):
        result = np.asarray(Image.open(made.answer_path))
        np.testing.assert_array_equal(result[:, 32:, :3], np.asarray(given.opened.stored)[:, 32:])
        np.testing.assert_array_equal(result[..., 3], np.asarray(given.opened.alpha))
        drift = chat.drift(made.id)
        assert drift is not None
        assert drift.masked
        assert drift.max_difference == 0
    assert again.recipe.seed == 7


# Mentions


def test_mentions_become_the_images_that_they_name(chat):
    (first,) = answer(chat, say("a red apple"))
    (second,) = answer(chat, say("a blue star"))
    unit = chat.open(say("put the apple of @1 into it"), second.id).unit.current
    assert unit.instruction == "put the apple of {image1} into it"
    assert unit.images == (chat.session.answer(second.id).image, chat.session.answer(first.id).image)
    unit = chat.open(say("draw @b like @a and @1", picture(1), picture(2)), second.id).unit.current
    assert unit.instruction == "draw {image1} like {image} and {image2}"
    assert len(unit.images) == 3
    unit = chat.open(say("make @2 like @1, write to me@example.org"), second.id).unit.current
    assert unit.instruction == "make {image} like {image1}, write to me@example.org"
    assert len(unit.images) == 2
    with pytest.raises(SessionError, match="no node 0009"):
        chat.open(say("like @9"), second.id)


# Variants, cancelling, making again


def test_variants_are_siblings_with_consecutive_seeds(chat):
    (first,) = answer(chat, say("a red apple"))
    nodes = answer(chat, say("make it night"), first.id, count=3)
    assert [node.recipe.seed for node in nodes] == [1, 2, 3]
    assert {node.parents for node in nodes} == {(first.id,)}
    assert len({node.answer_path.read_bytes() for node in nodes}) == 3
    with pytest.raises(ConfigError, match="0 variants"):
        answer(chat, say("make it night"), first.id, count=0)


def test_progress_counts_every_step_and_shows_the_picture_growing(chat):
    events = list(chat.ask(say("a red apple", settings=replace(QUICK, num_inference_steps=4))))
    *progress, node = events
    assert isinstance(node, Node)
    assert [(event.step, event.total) for event in progress] == [(n, 4) for n in range(5)]
    assert progress[0].eta_s is None
    assert progress[-1].eta_s == 0
    shown = [event.previews[0] for event in progress if event.previews]
    assert len(shown) == 3
    assert len({image.tobytes() for image in shown}) == 3


def test_cancelling_stops_before_the_next_step_and_keeps_nothing(chat):
    steps: list[int] = []
    asked = say("a red apple", settings=replace(QUICK, num_inference_steps=50))
    for event in chat.ask(asked, cancelled=lambda: 2 in steps):
        assert isinstance(event, Progress)
        steps.append(event.step)
    assert steps == [0, 1, 2]
    assert chat.session.nodes() == ()
    assert answer(chat, say("a red apple")), "the next message is answered"


def test_every_kind_of_turn_is_made_again_to_the_pixel(chat):
    (first,) = answer(chat, say("make it snow", picture(3, mode="RGBA"), mask=half()))
    (second,) = answer(chat, say("make the background blue"), first.id)
    canvas, mask = extend_canvas(chat.session.answer(second.id), left=0.25)
    extended = Picture.of_image(canvas, "canvas")
    (third,) = answer(
        chat,
        say("fill it in", extended, mask=mask, settings=replace(QUICK, images=ImageRules(feather_px=0))),
        second.id,
    )
    (fourth,) = answer(chat, say("like @1", mask=half(canvas.size)), third.id)
    reopened = ChatSession(Session.open(chat.session.folder), chat.family)
    for node in (first, second, third, fourth):
        *_, replay = reopened.replay(node.id)
        assert isinstance(replay, Replay)
        assert replay.same_pixels, (node.id, replay)
        assert replay.differences == ()
    assert len(reopened.session.nodes()) == 4


def as_format_1(recipe: Recipe, **settings) -> Recipe:
    """What version 0.1 would have written of the same image."""
    written = json.loads(recipe.to_json())
    del written["family"], written["rules"]
    for asked in written["history"]:
        del asked["latents"]
    return Recipe.from_json(json.dumps({**written, "format_version": 1, "settings": settings}))


@pytest.mark.parametrize("kept", [True, False])
def test_a_session_of_format_1_is_made_again_from_what_it_went_on_from(family, tmp_path, kept):
    """The studio and the server went on from latents and said so in the settings; the command line did not."""
    session = Session.create(tmp_path / "talk")
    chat = ChatSession(session, family)
    old = replace(QUICK, rules=FIRST_RULES)
    (first,) = make(family, [chat.open(say("make it snow", picture(3), mask=half(), settings=old))])
    node = session.add_node(
        first.job.unit.current, first.image, as_format_1(first.recipe, batch_size=2), latents=first.latents
    )
    job = chat.open(say("make it night", settings=old), node.id)
    if not kept:
        (turn,) = job.unit.history
        job = replace(job, unit=replace(job.unit, history=(replace(turn, latents=None),)))
    (second,) = make(family, [job])
    settings = {"latents": "kept"} if kept else {}
    session.add_node(
        job.unit.current, second.image, as_format_1(second.recipe, **settings), parents=(node.id,), source=job.source
    )
    reopened = ChatSession(Session.open(session.folder), family)
    assert [one.recipe.format_version for one in reopened.session.nodes()] == [1, 1]
    for node_id in ("0001", "0002"):
        *_, replay = reopened.replay(node_id)
        assert replay.same_pixels, node_id
        assert all("noise schedule" in line for line in replay.differences)  # the one rule that is not made again


# Canvases and strokes


def test_a_larger_canvas_is_the_picture_with_grey_around_and_a_mask_of_the_new():
    given = normalise_image(photo(1))
    canvas, mask = extend_canvas(given, left=0.5, bottom=0.25)
    assert canvas.size == mask.size == (96, 80)
    np.testing.assert_array_equal(np.asarray(canvas.image)[:64, 32:], np.asarray(given.image))
    assert (np.asarray(canvas.image)[np.asarray(mask) == 255] == 127).all()
    assert (np.asarray(mask)[:64, 32:] == 0).all()
    with pytest.raises(ConfigError, match="no side grows"):
        extend_canvas(given)
    with pytest.raises(ConfigError, match="0 to 2 times"):
        extend_canvas(given, top=3)


def test_strokes_become_part_of_the_picture_and_its_mask():
    strokes = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    strokes.paste((255, 0, 0, 255), (8, 8, 24, 24))
    drawn, mask = sketch_over(normalise_image(photo(1)), strokes)
    assert drawn.image.getpixel((10, 10)) == (255, 0, 0)
    assert drawn.image.getpixel((40, 40)) == photo(1).getpixel((40, 40))
    assert mask.getbbox() == (8, 8, 24, 24)
    with pytest.raises(MaskError, match="nothing is drawn"):
        sketch_over(normalise_image(photo(1)), Image.new("RGBA", (64, 64), (0, 0, 0, 0)))


def test_what_is_hidden_is_grey():
    hidden = hide_under(normalise_image(photo(1)), half())
    assert (np.asarray(hidden.image)[:, :32] == 127).all()
    np.testing.assert_array_equal(np.asarray(hidden.image)[:, 32:], np.asarray(photo(1))[:, 32:])


# Refusals


def test_a_request_that_cannot_be_met_is_refused_before_anything_runs(chat):
    with pytest.raises(MaskError, match="a mask needs the image"):
        chat.open(say("make it night", mask=half()))
    with pytest.raises(MaskError, match="make the mask the size"):
        chat.open(say("make it night", picture(), mask=half((32, 32))))
    with pytest.raises(ConditionError, match="the instruction is empty"):
        chat.open(say("  "))
    with pytest.raises(ConfigError, match="works in steps of"):
        chat.open(say("a cat", settings=replace(QUICK, size=(63, 64))))
    with pytest.raises(SessionError, match="no node 0001"):
        chat.open(say("make it night"), "0001")
