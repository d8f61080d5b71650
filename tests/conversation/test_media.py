"""An answer need not be an image: a family of animations goes through nodes, archives, recipes and replay."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps, ImageSequence
from typer.testing import CliRunner

import ace.conversation.media as media
from ace.cli import app
from ace.conditions.images import normalise_image
from ace.conversation import ChatSession, Loading, Mask, Message, Node, Picture, Session, Settings
from ace.conversation.media import IMAGE, FinishedAnswer, Medium, medium_of, read_recipe, write
from ace.conversation.recipe import xmp_packet
from ace.conversation.replay import Replay
from ace.errors import InputError, OutputError, SessionError
from ace.families.ace import AceFamily
from ace.weights.sources import find_model


class Animation(Medium):
    """Two frames in a GIF, which stores them exactly up to its 256 colours."""

    node_file = "animation.gif"
    formats = {".gif": "GIF"}
    mime_type = "image/gif"

    def finish(self, job, answer):
        frames = [IMAGE.finish(job, replace(answer, content=frame)).content for frame in answer.content]
        return FinishedAnswer(frames, answer.content)

    def drift(self, job, content):
        return IMAGE.drift(job, content[0])

    def still(self, content):
        return content[0]

    def encode(self, content, file_format, recipe=None):
        stream = io.BytesIO()
        comment = b"" if recipe is None else xmp_packet(recipe)
        content[0].save(stream, file_format, save_all=True, append_images=content[1:], comment=comment)
        return stream.getvalue()

    def as_written(self, made, data):
        return made

    def open(self, path, max_pixels=10**6):
        return normalise_image(self.load(path)[0], name=path.name)

    def load(self, path):
        try:
            with Image.open(path, formats=["GIF"]) as opened:
                return [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
        except (OSError, SyntaxError, ValueError):
            raise InputError(f"{path.name} is no animation: write it again") from None

    def size_px(self, path):
        return IMAGE.size_px(path)

    def format_of(self, path):
        return "GIF"

    def recipe_packet(self, path):
        with Image.open(path) as opened:
            return opened.info["comment"]

    def largest_difference(self, before, after):
        one, other = (
            np.asarray(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) for data in (before, after)
        )
        return int(np.abs(one.astype(int) - other).max())


ANIMATION = Animation()


class Mirrored(AceFamily):
    """The small model, whose answer is followed by its mirror image."""

    traits = property(lambda self: replace(super().traits, medium=ANIMATION))

    def finish(self, states):
        return [
            replace(answer, content=[answer.content, ImageOps.mirror(answer.content)])
            for answer in super().finish(states)
        ]


@pytest.fixture(scope="module")
def family():
    family = Mirrored(find_model("ace-tiny"))
    family.load(Loading(device="cpu"))
    return family


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(media, "MEDIA", (IMAGE, ANIMATION))


def ask(chat, text, start=None, **parts):
    message = Message(text, Settings(seed=3, num_inference_steps=2), **parts)
    return next(one for one in chat.ask(message, start) if isinstance(one, Node))


def test_a_node_of_another_medium_goes_on_travels_and_is_made_again(family, tmp_path):
    chat = ChatSession(Session.create(tmp_path / "talk"), family)
    first = ask(chat, "a red apple")
    assert first.answer_path.name == "animation.gif" and len(ANIMATION.load(first.answer_path)) == 2
    assert read_recipe(first.answer_path) == first.recipe
    second = ask(chat, "make it blue", first.id)
    with open(tmp_path / "talk.zip", "w+b") as stream:
        chat.session.write_archive(stream)
        stream.seek(0)
        copy = Session.create(tmp_path / "copy")
        copy.add_archive(stream)
    assert copy.node("0002").answer_path.read_bytes() == second.answer_path.read_bytes()
    *_, replay = ChatSession(copy, family).replay("0002")
    assert isinstance(replay, Replay) and replay.same_pixels


def test_every_frame_is_kept_outside_the_mask(family, tmp_path):
    source = Image.new("RGB", (64, 48), "teal")
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (0, 0, 32, 48))
    chat = ChatSession(Session.create(tmp_path / "talk"), family)
    photo = Picture.of_image(normalise_image(source, name="photo"), "photo")
    node = ask(chat, "make {image} red", photo=photo, mask=Mask(mask))
    for frame in ANIMATION.load(node.answer_path):
        np.testing.assert_array_equal(np.asarray(frame)[:, 40:], np.asarray(source)[:, 40:])
    assert chat.drift(node.id) is not None


def test_an_answer_is_written_in_formats_of_its_medium_only(family, tmp_path):
    from ace.conversation import make, open_message

    (made,) = make(family, [open_message(family, Message("a cat", Settings(seed=1, num_inference_steps=2)))])
    write(made, tmp_path / "cat.gif")
    assert read_recipe(tmp_path / "cat.gif") == made.recipe and medium_of("cat.gif") is ANIMATION
    with pytest.raises(OutputError, match=r"use \.gif"):
        write(made, tmp_path / "cat.png")


def test_a_session_with_an_unknown_medium_is_refused(family, tmp_path, monkeypatch):
    chat = ChatSession(Session.create(tmp_path / "talk"), family)
    node = ask(chat, "a red apple")
    monkeypatch.setattr(media, "MEDIA", (IMAGE,))
    with pytest.raises(SessionError, match="damaged"):
        Session.open(tmp_path / "talk").node(node.id)


def test_the_command_line_replays_a_node_of_another_medium(family, tmp_path, monkeypatch):
    chat = ChatSession(Session.create(tmp_path / "talk"), family)
    ask(chat, "a red apple")
    monkeypatch.setattr("ace.families.family_of_recipe", lambda *args: (family, Loading(device="cpu")))
    said = CliRunner().invoke(app, ["replay", str(tmp_path / "talk")])
    assert said.exit_code == 0 and "the same to the byte" in said.output
