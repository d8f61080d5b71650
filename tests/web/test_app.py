"""The studio over real HTTP and in a real browser (headless Chromium), with the model that ships.

The browser tests skip where there is none; with ACE_REQUIRE_BROWSER set, as in continuous integration, they fail.
"""

import io
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

import ace
from ace.conversation import recipe as recipes
from ace.conversation.chat import ChatSession
from ace.conversation.session import Session
from ace.web.actions import MAX_UPLOAD_BYTES, Studio
from ace.web.app import make_app
from ace.weights.sources import find_model

# Gradio's queue keeps statistics with an option that pandas 3 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")
HOW = "install one: `apt install chromium`, or `playwright install chromium`"
MINE = {"X-Ace-Studio": "1"}
# whether the top of a turn's picture can be seen, whatever the height of what is written under it
IN_SIGHT = """node => document.querySelector(`#turn-${node} .stage`).getBoundingClientRect().top
    >= document.querySelector(".talk").getBoundingClientRect().top"""


@pytest.fixture(scope="module")
def model():
    pipeline = ace.load_tiny()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, find_model("ace-tiny")


@contextmanager
def serving(folder: Path, model) -> Iterator[str]:
    """A studio on a port of this machine."""
    app = make_app(Studio(ChatSession(Session.open_or_create(folder), *model)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def address(model, tmp_path):
    with serving(tmp_path / "talk", model) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as started:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if found is None and Path(started.chromium.executable_path).exists():
            found = started.chromium.executable_path
        if found is None:
            (pytest.fail if os.environ.get("ACE_REQUIRE_BROWSER") else pytest.skip)(f"no browser here: {HOW}")
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def page_of(browser, address: str, width: int = 1440, height: int = 900, **options):
    """A fresh page of the studio; fails on errors in its script and on requests to anywhere else."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.set_default_timeout(120_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    left = re.compile("AbortError|Connection errored out")  # what Gradio says when a page is left while it streams
    page.on(
        "console", lambda said: wrong.append(said.text) if said.type == "error" and not left.search(said.text) else None
    )
    page.on(
        "request", lambda sent: None if sent.url.startswith((address, "data:", "blob:")) else wrong.append(sent.url)
    )
    page.goto(address)
    page.wait_for_selector("#say")
    page.wait_for_selector(".welcome, .turn")
    yield page
    context.close()
    assert not wrong


def set_steps(page, steps: int) -> None:
    page.click("#settings")
    page.fill("[data-setting=steps]", str(steps))
    page.press("[data-setting=steps]", "Escape")


def say(page, text: str, node: str) -> None:
    """Send a message and wait until node `node` is its answer."""
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.wait_for_selector(f"#turn-{node} .bar")
    page.wait_for_selector("#running", state="detached")


def head(page) -> str | None:
    current = page.query_selector('.tree [aria-current="true"]')
    return None if current is None else current.get_attribute("data-node")


def move_to(page, node: str) -> None:
    page.wait_for_selector(f'.tree [data-node="{node}"][aria-current="true"]')


# In the browser


def test_a_conversation_of_three_turns_with_a_mask_a_branch_undo_cancel_and_reload(browser, address, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, address) as page:
        set_steps(page, 2)
        say(page, "a red apple on a green background", "0001")

        page.click("#paint")
        board = page.locator(".easel canvas").bounding_box()
        x, y = board["x"], board["y"]
        page.mouse.move(x + board["width"] * 0.2, y + board["height"] * 0.3)
        page.mouse.down()
        page.mouse.move(x + board["width"] * 0.3, y + board["height"] * 0.6, steps=5)
        page.mouse.up()
        page.click("#use-mask")
        page.wait_for_selector(".tray .chip")
        say(page, "make it snow", "0002")
        assert "every pixel is the same" in page.inner_text("#turn-0002 .drift")
        mask = np.asarray(session.history("0002")[1].unit.masks[0]) > 0
        before, after = (np.asarray(session.answer(node).image) for node in ("0001", "0002"))
        assert 0.02 < mask.mean() < 0.5
        np.testing.assert_array_equal(after[~mask], before[~mask])

        page.type("#say", "make it look like @1")
        page.wait_for_selector('[role="option"][aria-selected="true"]')
        page.press("#say", "Enter")
        assert page.input_value("#say") == "make it look like @1 "
        say(page, page.input_value("#say"), "0003")
        node = session.node("0003")
        assert node.instruction.strip() == "make it look like {image1}"
        assert [one.node for one in node.inputs] == ["0002", "0001"]
        assert node.parents == ("0002",)

        page.click("#turn-0001 .branch")
        move_to(page, "0001")
        say(page, "make the background blue", "0004")
        assert session.node("0004").parents == ("0001",)
        assert page.query_selector("#turn-0003") is None
        page.wait_for_function(IN_SIGHT, arg="0004")
        assert page.evaluate("(tree => tree.scrollHeight <= tree.clientHeight)(document.querySelector('.tree'))")

        page.click("#undo")
        move_to(page, "0001")
        page.click("#redo")
        move_to(page, "0004")

        set_steps(page, 900)
        page.fill("#say", "this takes too long")
        page.press("#say", "Enter")
        page.wait_for_selector("#running .stage img")
        page.wait_for_selector(r"#progress >> text=/Step \d+ of 900 · about \d+ s/")
        page.reload()
        page.wait_for_selector("#running")
        page.click("#send")
        page.wait_for_selector(".notice >> text=Nothing was kept")
        assert len(session.node_ids()) == 4

        page.reload()
        page.wait_for_selector("#turn-0004")
        assert head(page) == "0004"
        assert page.locator(".tree button").count() == 4
        assert page.locator(".turn").count() == 2


def test_a_picture_is_added_compared_tried_again_and_saved_with_its_recipe(browser, address, tmp_path):
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(tmp_path / "photo.png")
    with page_of(browser, address) as page:
        set_steps(page, 1)
        page.set_input_files("#file", tmp_path / "photo.png")
        page.wait_for_selector(".tray .chip")
        say(page, "make the background blue", "0001")
        page.click("#turn-0001 .compare")
        slider = page.locator("#turn-0001 .stage input")
        slider.focus()
        slider.press("End")
        assert page.evaluate("getComputedStyle(document.querySelector('.stage')).getPropertyValue('--at')") == "100%"
        page.click("#turn-0001 .again")
        page.wait_for_selector("#turn-0002 .siblings")
        assert page.locator("#turn-0002 .siblings button").count() == 2
        for suffix in ("png", "jpg", "webp"):
            page.click("#turn-0002 summary[aria-label=Download]")
            with page.expect_download() as saved:
                page.click(f'#turn-0002 a[href$="answer.{suffix}"]')
            saved.value.save_as(tmp_path / f"saved.{suffix}")
            recipe = recipes.read(tmp_path / f"saved.{suffix}")
            assert recipe.instruction == "make the background blue"
            assert recipe.images[0].name == "photo.png"
            assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / f"saved.{suffix}").read_bytes()


def test_a_mask_can_be_painted_and_an_answer_extended_with_the_keyboard_alone(browser, address, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, address, 390, 844, color_scheme="dark") as page:
        set_steps(page, 1)
        page.keyboard.press("Escape")
        say(page, "a red apple", "0001")
        page.focus("#paint")
        page.keyboard.press("Enter")
        page.focus(".easel canvas")
        for key in ("ArrowLeft", "ArrowLeft", "Space"):
            page.keyboard.press(key)
        page.focus("#use-mask")
        page.keyboard.press("Enter")
        say(page, "make it snow", "0002")
        assert session.history("0002")[1].unit.masks[0].getbbox() is not None
        page.focus("#paint")
        page.keyboard.press("Enter")
        page.focus("#extend")
        page.keyboard.press("Enter")
        page.focus("[data-side=right]")
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        page.focus("#use-mask")
        page.keyboard.press("Enter")
        say(page, "fill it in", "0003")
        side = session.answer("0001").size[0]
        assert session.answer("0003").size == (side * 5 // 4, side)
        page.focus('.tree [data-node="0003"]')
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        move_to(page, "0002")
        page.keyboard.press("Control+z")
        move_to(page, "0001")
        page.keyboard.press("Control+Shift+z")
        move_to(page, "0002")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
        form = page.locator("form").bounding_box()
        assert form["x"] >= 0
        assert form["x"] + form["width"] <= 390
        assert form["y"] + form["height"] <= 844


def test_an_example_fills_the_composer_and_its_next_rounds_are_offered(browser, address):
    with page_of(browser, address) as page:
        set_steps(page, 1)
        page.click("#examples")
        assert page.locator("dialog .cards button").count() == 42
        assert "picture 1 before the backdrop picture 2" in page.inner_text('dialog [data-task="layer_editing/fusion"]')
        page.click('dialog [data-task="repainting/inpainting"]')
        page.wait_for_selector(".tray .chip:nth-child(2)")
        say(page, page.input_value("#say"), "0001")
        assert page.locator("#turn-0001 .shown .mask").count() == 1
        page.click("#examples")
        page.click('dialog [data-task="multi_turn/chain"]')
        page.wait_for_selector(".next button")
        say(page, page.input_value("#say"), "0002")
        page.click(".next button")
        say(page, page.input_value("#say"), "0003")


def test_words_of_people_are_never_markup(browser, address):
    with page_of(browser, address) as page:
        set_steps(page, 1)
        say(page, "<img src=x onerror=alert(1)> <b>bold</b>", "0001")
        assert "<b>bold</b>" in page.inner_text("#turn-0001 .asked")
        assert page.locator("#turn-0001 .asked img").count() == 0


# Over HTTP


def test_only_this_machine_and_its_own_page_may_ask(address):
    host = re.sub("^http://", "", address)
    for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.2", ""):
        assert httpx.get(address, headers={"Host": name}).status_code in (400, 403), name
    for origin in ("http://evil.example", "null", "http://localhost:1", f"https://{host}.evil.example"):
        sent = httpx.post(f"{address}/gradio_api/queue/join", headers={"Origin": origin}, json={})
        assert sent.status_code == 403, origin
    assert httpx.get(address, headers={"Origin": address}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["gradio_api/upload", "gradio_api/file=/etc/passwd", "gradio_api/proxy=http://127.0.0.1:1/", "gradio_api/mcp/sse"],
)
def test_gradios_routes_to_files_and_addresses_are_closed(address, path):
    assert httpx.get(f"{address}/{path}").status_code == 404
    assert httpx.post(f"{address}/{path}").status_code == 404


def test_pictures_go_by_id_and_never_by_path(address, model, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    for path in (
        "nodes/../x/image.png",
        "nodes/0001/..%2F..%2Fsession.json",
        "nodes/..%2F/image.png",
        "uploads/..%2Fx",
    ):
        answer = httpx.get(f"{address}/studio/{path}")
        assert answer.status_code in (404, 422), path
        assert b"secret" not in answer.content


def test_uploads_are_checked_before_they_are_read(address):
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(picture, "PNG")
    sent = {**MINE, "X-File-Name": "a%2Fb.png"}
    good = httpx.post(f"{address}/studio/uploads", content=picture.getvalue(), headers=sent)
    assert good.json()["name"] == "b.png"
    shown = httpx.get(f"{address}/studio/uploads/{good.json()['id']}")
    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)
    for body, headers, reason in (
        (picture.getvalue(), {}, "own page"),
        (b"no picture", MINE, "not a picture"),
        (picture.getvalue()[:400], MINE, "damaged"),
        (b"\0" * (MAX_UPLOAD_BYTES + 1), MINE, "too large"),
    ):
        answer = httpx.post(f"{address}/studio/uploads", content=body, headers=headers)
        assert answer.status_code == 422
        assert reason in answer.json()["error"]


def test_a_session_is_exported_and_imported_and_hostile_files_are_refused(address, model, tmp_path):
    exported = httpx.get(f"{address}/studio/session.zip")
    assert exported.headers["content-disposition"] == 'attachment; filename="talk.zip"'
    assert httpx.post(f"{address}/studio/session.zip", content=exported.content, headers=MINE).status_code == 200
    refused = httpx.post(f"{address}/studio/session.zip", content=b"PK no zip", headers=MINE)
    assert refused.status_code == 422
    assert "not a ZIP file" in refused.json()["error"]
