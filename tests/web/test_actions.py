"""What the page can do, without a page: real sessions, the model that ships."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import ace
from ace.conversation.chat import ChatSession
from ace.conversation.session import Session
from ace.data.sample import TASKS
from ace.errors import AceError, ConfigError, ImageError, InputError, MaskError
from ace.web import actions
from ace.web.actions import Again, At, Extension, Said, Studio
from ace.weights.sources import find_model


@pytest.fixture(scope="module")
def model():
    pipeline = ace.load_tiny()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, find_model("ace-tiny")


@pytest.fixture
def studio(model, tmp_path):
    return Studio(ChatSession(Session.create(tmp_path / "talk"), *model))


def finished(studio):
    """The view once nothing runs any more."""
    *_, last = actions.watch(studio)
    return last


def said(text, **options):
    return Said(**{"text": text, "steps": 1, "seed": 5, **options})


def ask(studio, text, **options):
    actions.send(studio, said(text, **options))
    return finished(studio)


def photo(tmp_path, name="photo.png", size=(64, 64), seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(values).resize(size).save(tmp_path / name)
    return tmp_path / name


def strokes(box, size=(64, 64), colour=(63, 85, 198)):
    painted = Image.new("RGBA", size, (0, 0, 0, 0))
    painted.paste((*colour, 255), box)
    stream = io.BytesIO()
    painted.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def test_a_message_is_answered_and_the_page_follows_every_step(studio):
    actions.send(studio, said("a red apple", steps=3))
    views = list(actions.watch(studio))
    assert views[0]["running"]["text"] == "a red apple"
    assert views[-1]["running"] is None
    assert views[-1]["notice"] is None
    (node,) = views[-1]["nodes"]
    assert (node["id"], node["text"], node["seed"], node["steps"]) == ("0001", "a red apple", 5, 3)
    assert views[-1]["head"] == "0001"


def test_the_page_finds_everything_again_after_a_restart(studio, model):
    ask(studio, "a red apple")
    ask(studio, "make it night", start="0001", count=2)
    actions.go(studio, At(node="0001"))
    before = actions.view(studio)
    again = Studio(ChatSession(Session.open(studio.chat.session.folder), *model))
    after = actions.view(again)
    assert {**after, "version": 0} == {**before, "version": 0}
    assert after["head"] == "0001"
    assert [node["parents"] for node in after["nodes"]] == [[], ["0001"], ["0001"]]


def test_a_painted_mask_keeps_the_rest_and_the_page_says_so(studio, tmp_path):
    upload = actions.add_upload(studio, photo(tmp_path), "C:\\pictures\\photo.png")
    assert upload["name"] == "photo.png"
    view = ask(studio, "make it snow", uploads=[upload["id"]], mask=strokes((0, 0, 32, 64)))
    (node,) = view["nodes"]
    assert node["inputs"] == [
        {"node": None, "picture": "nodes/0001/input0.png", "mask": "nodes/0001/mask0.png"},
    ]
    assert view["drift"]["0001"] == "drift outside the mask: none, every pixel is the same"
    answer = np.asarray(studio.chat.session.answer("0001").image)
    np.testing.assert_array_equal(answer[:, 32:], np.asarray(Image.open(tmp_path / "photo.png"))[:, 32:])


def test_what_is_drawn_is_seen_by_the_model_and_what_is_hidden_is_not(studio, tmp_path):
    upload = actions.add_upload(studio, photo(tmp_path), "photo.png")
    red = strokes((8, 8, 24, 24), colour=(255, 0, 0))
    ask(studio, "a ball", uploads=[upload["id"]], mask=red, mask_mode="draw")
    ask(studio, "a ball", uploads=[upload["id"]], mask=red, mask_mode="hide")
    drawn, hidden = (studio.chat.session.source(node_id) for node_id in ("0001", "0002"))
    assert drawn.image.getpixel((10, 10)) == (255, 0, 0)
    assert hidden.image.getpixel((10, 10)) == (127, 127, 127)


def test_an_answer_is_extended_by_its_own_sides(studio):
    ask(studio, "a red apple")
    view = ask(studio, "fill it in", start="0001", extend=Extension(left=0.5, bottom=0.25))
    node = view["nodes"][1]
    side = studio.chat.model.side_px
    assert (node["width"], node["height"]) == (side * 3 // 2, side * 5 // 4)
    old, new = (np.asarray(studio.chat.session.answer(node_id).image) for node_id in ("0001", "0002"))
    np.testing.assert_array_equal(new[:side, side // 2 :], old)


def test_trying_again_gives_siblings_and_replay_says_that_nothing_differs(studio):
    ask(studio, "a red apple")
    actions.again(studio, Again(node="0001", count=2))
    view = finished(studio)
    assert [node["parents"] for node in view["nodes"]] == [[], [], []]
    assert len({node["seed"] for node in view["nodes"]}) == 3
    assert view["head"] == "0002"
    actions.replay(studio, At(node="0002"))
    view = finished(studio)
    assert view["notice"] == {"kind": "info", "text": "@2 made again: every pixel is the same."}
    assert len(view["nodes"]) == 3


def test_one_answer_at_a_time_and_stop_ends_it_without_a_trace(studio):
    actions.send(studio, said("a red apple", steps=200))
    with pytest.raises(ConfigError, match="an answer is being made"):
        actions.send(studio, said("another"))
    actions.stop(studio)
    view = finished(studio)
    assert view["nodes"] == []
    assert view["notice"]["text"] == "Stopped. Nothing was kept."
    assert ask(studio, "a red apple")["head"] == "0001"


def test_what_cannot_be_asked_is_refused_in_words(studio):
    with pytest.raises(MaskError, match="no picture to paint on"):
        actions.send(studio, said("x", mask=strokes((0, 0, 8, 8))))
    with pytest.raises(ImageError, match="no longer here"):
        actions.send(studio, said("x", uploads=["0" * 16]))
    with pytest.raises(InputError, match="the instruction is empty"):
        actions.send(studio, said(" "))
    ask(studio, "a red apple")
    for mask in ("data:image/png;base64,AAAA", "http://example.org/mask.png", strokes((0, 0, 8, 8), size=(32, 32))):
        with pytest.raises(MaskError, match="paint it again"):
            actions.send(studio, said("x", start="0001", mask=mask))
    assert studio.running is None


@pytest.mark.parametrize(
    "event",
    [
        None,
        {"text": "x", "start": "../0001"},
        {"text": "x", "uploads": ["/etc/passwd"]},
        {"text": "x", "path": "/etc/passwd"},
        {"text": "x", "count": 1000},
        {"text": "x", "guidance": float("nan")},
        {"text": "x", "steps": 10**9},
    ],
)
def test_an_event_that_no_page_sends_is_refused(event):
    with pytest.raises(ConfigError):
        actions.read_event(Said, event)


def test_a_damaged_node_is_named_and_the_rest_is_shown(studio):
    ask(studio, "a red apple")
    ask(studio, "a blue star")
    (studio.chat.session.folder / "nodes" / "0001" / "node.json").write_text("{}")
    view = actions.view(Studio(studio.chat))
    assert view["damaged"] == ["0001"]
    assert [node["id"] for node in view["nodes"]] == ["0002"]


def test_a_session_travels_as_one_file(studio, model, tmp_path):
    ask(studio, "a red apple")
    ask(studio, "make it night", start="0001")
    with open(tmp_path / "talk.zip", "wb") as file:
        studio.chat.session.write_archive(file)
    other = Studio(ChatSession(Session.create(tmp_path / "other"), *model))
    ask(other, "a blue star")
    actions.import_archive(other, tmp_path / "talk.zip", "talk.zip")
    view = actions.view(other)
    assert [(node["id"], node["parents"]) for node in view["nodes"]] == [("0001", []), ("0002", []), ("0003", ["0002"])]
    assert view["head"] == "0003"
    actions.replay(other, At(node="0003"))
    assert "every pixel is the same" in finished(other)["notice"]["text"]


def test_every_task_of_the_paper_has_an_example_that_can_be_asked(studio):
    assert {one.task for one in actions.EXAMPLES} == set(TASKS)
    for one in actions.EXAMPLES:
        given = actions.open_example(studio, one.task)
        message = said(given["texts"][0], uploads=[upload["id"] for upload in given["uploads"]], mask=given["mask"])
        try:
            studio.chat.open(actions._message(studio, message))
        except AceError as error:
            raise AssertionError(one.task) from error


def test_a_thumbnail_is_small_and_keeps_the_aspect():
    with Image.open(io.BytesIO(actions.thumbnail(Image.new("RGB", (640, 320), "red")))) as small:
        assert small.size == (160, 80)
        assert small.format == "WEBP"
