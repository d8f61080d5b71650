"""Teaching in the studio, in a real browser: from pairs to an edited picture that was not among them."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from ace.conversation.session import Session
from ace.data.world import World
from tests.web.test_app import browser, family, page_of, say, serving, set_steps, studio  # noqa: F401

STEPS = 30
PATIENCE_S = 1500  # on a machine that does other things as well


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), (40, 20, 8), (255, 236, 196))


def files_of(pictures: list[Image.Image]) -> list[dict]:
    found = []
    for number, picture in enumerate(pictures):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        found.append({"name": f"{number}.png", "mimeType": "image/png", "buffer": stream.getvalue()})
    return found


def error_to(picture: Image.Image, truth: Image.Image) -> float:
    same = picture.convert("RGB").resize(truth.size, Image.Resampling.LANCZOS)
    return float(np.abs(np.asarray(same, float) - np.asarray(truth, float)).mean())


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    """Lessons of a test have the priority of the test."""
    monkeypatch.setattr("ace.web.lessons._NICE", 0)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    world = World(128, "held_out")
    return [world.picture(100 + seed) for seed in range(11)]


def test_pairs_become_an_edit_in_the_browser_and_the_studio_stays_answered(
    browser,  # noqa: F811
    studio,  # noqa: F811
    pictures,
    tmp_path,
):
    with page_of(browser, studio) as page:
        page.set_default_timeout(1000 * PATIENCE_S)
        set_steps(page, 2)
        page.click("#teach")
        page.fill("#lesson-name", "sepia")
        page.fill("#lesson-steps", str(STEPS))
        page.set_input_files("#lesson-before", files_of(pictures[:10]))
        page.set_input_files("#lesson-after", files_of([sepia(picture) for picture in pictures[:10]]))
        page.wait_for_selector(".pairs >> text=10 pairs")
        page.click("#teach-now")
        page.wait_for_selector('[data-lesson="sepia"].running')
        page.keyboard.press("Escape")
        say(page, "a red apple", "0001")  # meanwhile
        page.wait_for_selector(
            ".notice >> text=sepia is taught: on the pair kept apart the error", timeout=1000 * PATIENCE_S
        )
        page.click(".notice >> text=Use it")
        page.wait_for_selector(".about >> text=with sepia")
        assert page.input_value("#say") == "sepia"

        set_steps(page, 10)
        page.click("#new")
        page.set_input_files("#file", files_of(pictures[10:]))
        page.wait_for_selector(".tray .chip")
        say(page, "sepia", "0002")
        page.click("#teach")
        with page.expect_download() as saved:
            page.click('[data-lesson="sepia"] >> text=File for ComfyUI')
        saved.value.save_as(tmp_path / "sepia-comfyui.safetensors")
        page.wait_for_selector('[data-lesson="sepia"] .look')
        page.click('[data-lesson="sepia"] .use')
        page.keyboard.press("Escape")
        assert "with sepia" not in page.inner_text(".about")

    session, truth = Session.open(tmp_path / "talk"), sepia(pictures[10])
    answer = session.answer("0002").image
    assert error_to(answer, truth) < error_to(pictures[10], truth) / 2
    (recorded,) = json.loads(str(session.node("0002").recipe.settings["adapters"]))
    lesson = json.loads((tmp_path / "adapters" / "sepia" / "lesson.json").read_text())
    assert (recorded["name"], recorded["sha256"], recorded["weight"]) == ("sepia", lesson["sha256"], 1.0)
    assert "adapters" not in session.node("0001").recipe.settings

    with studio.client() as http:  # the same picture again, with the adapter that its recipe names
        replay = http.post("/v1/sessions/studio/nodes/0002/replay", json={}).json()
        assert replay["same_pixels"], replay
        replay = http.post("/v1/sessions/studio/nodes/0001/replay", json={}).json()
        assert replay["same_pixels"], replay
        assert http.get("/v1/sessions/studio/nodes/0002").json()["adapters"] == ["sepia:1"]


def test_a_lesson_is_stopped_and_keeps_what_was_learnt_and_bad_pairs_are_answered(studio, pictures):  # noqa: F811
    def post(name: str, before: list[Image.Image], after: list[Image.Image], **fields):
        sides = (("before", before), ("after", after))
        sent = [(side, (one["name"], one["buffer"])) for side, side_of in sides for one in files_of(side_of)]
        return http.post("/lessons", data={"name": name, **fields}, files=sent)

    def lesson(name: str) -> dict:
        return next((one for one in http.get("/lessons").json()["data"] if one["name"] == name), {})

    def until(name: str, *states: str) -> dict:
        for _ in range(4 * PATIENCE_S):
            if (found := lesson(name)).get("status") in states:
                return found
            time.sleep(0.25)
        raise AssertionError(lesson(name))

    four, answers = pictures[:4], [sepia(picture) for picture in pictures[:4]]
    with studio.client() as http:
        assert post("bad/name", four, answers).status_code == 400
        assert post("odd", four, answers[:3]).status_code == 400
        assert post("few", four[:2], answers[:2]).status_code == 202
        assert post("old", four, answers, steps="100000").status_code == 202
        assert "is being taught already" in post("old", four, answers).json()["error"]["message"]
        assert "too few to teach an edit" in until("few", "failed")["message"]
        assert http.delete("/lessons/few").status_code == 204 and not lesson("few")
        for _ in range(4 * PATIENCE_S):
            if lesson("old").get("step", 0) >= 1:
                break
                time.sleep(0.25)
        assert http.delete("/lessons/old").status_code == 400
        assert http.post("/lessons/old/stop").status_code == 204
        found = until("old", "stopped", "failed")
        assert found["status"] == "stopped" and found["usable"]
        assert http.get("/lessons/old/preview").headers["content-type"] == "image/png"
        assert len(http.get("/lessons/old/file").content) > 1000
        turn = {"prompt": "make it old", "adapters": "old:0.5,nobody"}
        refused = http.post("/v1/sessions/studio/turns", json=turn)
        assert refused.status_code == 400 and "there is no adapter 'nobody' here: old" in refused.text
        assert http.delete("/lessons/old").status_code == 204 and not lesson("old")
