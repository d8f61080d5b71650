"""The studio over real HTTP and in a real browser (headless Chromium), with the model that ships.

The browser tests skip where there is none; with ACE_REQUIRE_BROWSER set, as in continuous integration, they fail.
"""

import io
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image

from ace.conversation import recipe as recipes
from ace.conversation.family import Family, Loading
from ace.conversation.session import Session
from ace.families import find_family
from ace.server.engine import Engine
from ace.server.run import listen
from ace.web.app import HEADERS, StartLink, make_app, studio_settings

HOW = "install one: `apt install chromium`, or `playwright install chromium`"
# whether the top of a turn's picture can be seen, whatever the height of what is written under it
IN_SIGHT = """node => document.querySelector(`#turn-${node} .stage`).getBoundingClientRect().top
    >= document.querySelector(".talk").getBoundingClientRect().top"""


@pytest.fixture(scope="module")
def family() -> Family:
    found = find_family("ace-tiny")
    found.load(Loading(device="cpu"))
    return found


@dataclass
class Studio:
    """A studio that runs. address: without a secret; start: its link; key: what its cookie holds."""

    address: str
    start: StartLink
    key: str
    cookie: str

    def client(self) -> httpx2.Client:
        """A client that has the cookie."""
        return httpx2.Client(base_url=self.address, cookies={self.cookie: self.key}, timeout=120, trust_env=False)


@contextmanager
def serving(folder: Path, family: Family, port: int = 0, names: tuple[str, ...] = ()) -> Iterator[Studio]:
    """A studio on a port of this machine. names: by which others reach it."""
    listener = listen("127.0.0.1", port)
    settings = studio_settings(Session.open_or_create(folder).folder, listener.getsockname()[1], names=names)
    start = StartLink()
    engine = Engine(family, settings.limits)
    engine.start()
    app = partial(make_app, start=start)(engine, settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Studio(f"http://127.0.0.1:{settings.port}", start, settings.api_keys[0], settings.cookie or "")
    finally:
        engine.drain()
        server.should_exit = True
        thread.join()
        engine.stop()
        listener.close()


@pytest.fixture
def studio(family, tmp_path):
    with serving(tmp_path / "talk", family) as found:
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
def page_of(browser, studio: Studio, width: int = 1440, height: int = 900, may_fail: bool = False, **options):
    """A fresh page of the studio; fails on errors in its script and on requests to anywhere else. may_fail: requests
    may, because the server goes away or refuses."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.set_default_timeout(120_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    failed = re.compile("Failed to load resource" if may_fail else "(?!)")
    page.on(
        "console",
        lambda said: wrong.append(said.text) if said.type == "error" and not failed.search(said.text) else None,
    )
    own = (studio.address, "data:", "blob:")
    page.on("request", lambda sent: None if sent.url.startswith(own) else wrong.append(sent.url))
    page.goto(studio.address + studio.start.path)
    ready(page)
    yield page
    context.close()
    assert not wrong


def ready(page) -> None:
    page.wait_for_selector("#say")
    page.wait_for_selector(".welcome, .turn")


def set_steps(page, steps: int) -> None:
    page.click("#settings")
    page.fill("[data-setting=steps]", str(steps))
    page.press("[data-setting=steps]", "Escape")


def say(page, text: str, node: str) -> None:
    """Send a message and wait until node `node` is its answer."""
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.wait_for_selector(f"#turn-{node} .bar")
    page.wait_for_selector(".running", state="detached")


def head(page) -> str | None:
    current = page.query_selector('.tree [aria-current="true"]')
    return None if current is None else current.get_attribute("data-node")


def move_to(page, node: str) -> None:
    page.wait_for_selector(f'.tree [data-node="{node}"][aria-current="true"]')


def paint(page, *, across: tuple[float, float] = (0.2, 0.3), down: tuple[float, float] = (0.3, 0.6)) -> None:
    """One stroke in the open easel, in shares of the picture."""
    box = page.locator(".easel canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * across[0], box["y"] + box["height"] * down[0])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * across[1], box["y"] + box["height"] * down[1], steps=5)
    page.mouse.up()


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# In the browser


def test_a_conversation_of_three_turns_with_a_mask_a_branch_undo_cancel_and_reload(browser, studio, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, studio) as page:
        set_steps(page, 2)
        say(page, "a red apple on a green background", "0001")

        page.click("#paint")
        paint(page)
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
        page.wait_for_selector(".running .stage img")
        page.wait_for_selector(r".running .progress >> text=/Step \d+ of 900 · about \d+ s/")
        page.reload()
        page.wait_for_selector(".running")
        page.click("#send")
        page.wait_for_selector(".notice >> text=Nothing was kept")
        assert page.input_value("#say") == "this takes too long"  # what was stopped is written down again
        assert len(session.node_ids()) == 4

        page.reload()
        page.wait_for_selector("#turn-0004")
        assert head(page) == "0004"
        assert page.locator(".tree button").count() == 4
        assert page.locator(".turn").count() == 2


def test_a_picture_is_added_compared_tried_again_and_saved_with_its_recipe(browser, studio, photo, tmp_path):
    with page_of(browser, studio) as page:
        set_steps(page, 1)
        page.set_input_files("#file", photo)
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
        for suffix in ("png", "jpeg", "webp"):
            page.click("#turn-0002 summary[aria-label=Download]")
            with page.expect_download() as saved:
                page.click(f'#turn-0002 a[href$="format={suffix}"]')
            saved.value.save_as(tmp_path / f"saved.{suffix}")
            recipe = recipes.read(tmp_path / f"saved.{suffix}")
            assert recipe.instruction == "make the background blue"
            assert recipe.images[0].name == "photo.png"
            assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / f"saved.{suffix}").read_bytes()


def test_a_mask_can_be_painted_and_an_answer_extended_with_the_keyboard_alone(browser, studio, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, studio, 390, 844, color_scheme="dark") as page:
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


def test_an_example_fills_the_composer_and_its_next_rounds_are_offered(browser, studio):
    with page_of(browser, studio) as page:
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


def test_an_edit_has_the_pictures_size_or_is_the_models_own_as_it_is_set(browser, studio, tmp_path):
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(tmp_path / "large.png")
    with page_of(browser, studio) as page:
        set_steps(page, 2)
        page.set_input_files("#file", tmp_path / "large.png")
        page.wait_for_selector(".chip img")
        say(page, "make it night", "0001")
        page.wait_for_selector("#turn-0001 .drift:has-text('of the pixels kept')")
        page.click("#settings")
        page.select_option("[data-setting=detail]", "model")
        page.press("[data-setting=steps]", "Escape")
        say(page, "add a hat", "0002")
        session = Session.open(tmp_path / "talk")
        assert session.answer("0001").size == (300, 200)
        assert session.answer("0002").size != (300, 200)
        assert session.node("0002").recipe.settings["detail"] == "model"


def test_words_of_people_are_never_markup(browser, studio):
    with page_of(browser, studio) as page:
        set_steps(page, 1)
        say(page, "<img src=x onerror=alert(1)> <b>bold</b>", "0001")
        assert "<b>bold</b>" in page.inner_text("#turn-0001 .asked")
        assert page.locator("#turn-0001 .asked img").count() == 0


def test_what_is_not_sent_yet_outlives_a_reload(browser, studio, photo, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, studio) as page:
        set_steps(page, 1)
        say(page, "a red apple", "0001")
        page.set_input_files("#file", photo)
        page.wait_for_selector(".tray .chip:nth-child(1)")
        page.click("#paint")
        paint(page)
        page.click("#use-mask")
        page.wait_for_selector(".tray .chip:nth-child(2)")
        page.fill("#say", "make it like @a, in red")
        page.reload()
        ready(page)
        page.wait_for_selector(".tray .chip:nth-child(2)")
        say(page, page.input_value("#say"), "0002")
    node = session.node("0002")
    assert node.instruction == "make it like {image1}, in red"
    assert [one.node for one in node.inputs] == ["0001", None]
    assert session.history("0002")[1].unit.masks[0].getbbox() is not None


def test_a_server_that_stops_loses_nothing_and_the_page_goes_on_when_it_is_back(browser, family, photo, tmp_path):
    with serving(tmp_path / "talk", family) as studio:
        port = int(studio.address.rsplit(":", 1)[1])
        pages = page_of(browser, studio, may_fail=True)
        page = pages.__enter__()
        set_steps(page, 1000)
        page.set_input_files("#file", photo)
        page.wait_for_selector(".tray .chip")
        page.fill("#say", "make it blue")
        page.press("#say", "Enter")
        page.wait_for_selector(".running .progress >> text=/Step [1-9]/")
        assert page.locator(".tray .chip").count() == 0
    page.wait_for_selector(".notice >> text=The server does not answer")
    with serving(tmp_path / "talk", family, port) as studio:
        page.wait_for_selector(".notice >> text=was started again")
        page.goto(studio.address + studio.start.path)
        ready(page)
        page.wait_for_selector(".tray .chip")
        assert page.input_value("#say") == "make it blue"
        set_steps(page, 1)
        say(page, "make it blue", "0001")
        pages.__exit__(None, None, None)
    assert Session.open(tmp_path / "talk").node("0001").recipe.images[0].name == "photo.png"


def test_two_tabs_show_the_same_and_a_second_message_waits_for_the_first(browser, studio, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, studio) as page:
        other = page.context.new_page()
        other.set_default_timeout(120_000)
        other.goto(studio.address)
        ready(other)
        set_steps(page, 40)
        for text in ("a red apple", "a blue star"):
            page.fill("#say", text)
            page.press("#say", "Enter")
            page.wait_for_selector(f'.running >> text="{text}"')
        other.wait_for_selector('.running >> text="a blue star"')
        other.wait_for_selector('.tree [data-node="0002"]')
        page.wait_for_selector(".running", state="detached")
        assert {node.instruction for node in session.nodes()} == {"a red apple", "a blue star"}
        assert session.head() == "0002"
        other.click('.tree [data-node="0001"]')
        move_to(page, "0001")


def test_a_picture_is_a_reference_after_an_answer_and_can_be_edited_instead(browser, studio, photo, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, studio) as page:
        set_steps(page, 1)
        say(page, "a red apple", "0001")
        page.set_input_files("#file", photo)
        page.wait_for_selector(".about >> text=1 reference")
        say(page, "put {image1} into {image}", "0002")
        page.set_input_files("#file", photo)
        page.click(".tray .pick")
        page.wait_for_selector(".about >> text=Editing your picture")
        say(page, "make it blue", "0003")
    assert [one.node for one in session.node("0002").inputs] == ["0001", None]
    assert [one.node for one in session.node("0003").inputs] == [None]
    assert session.answer("0003").size[0] * 64 == session.answer("0003").size[1] * 96


def test_a_mask_is_painted_as_a_rectangle_near_by_and_undone(browser, studio, photo, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, studio) as page:
        set_steps(page, 1)
        page.set_input_files("#file", photo)
        page.wait_for_selector(".tray .chip")
        page.click("#paint")
        page.click("[data-tool=square]")
        paint(page, across=(0.25, 0.5), down=(0.25, 0.5))
        paint(page, across=(0.6, 0.9), down=(0.6, 0.9))
        page.keyboard.press("Control+z")
        page.click("#nearer")
        page.click("#whole")
        page.click("#use-mask")
        page.wait_for_selector(".tray .chip:nth-child(2)")
        say(page, "make it blue", "0001")
    left, top, right, bottom = session.history("0001")[0].unit.masks[0].getbbox()
    np.testing.assert_allclose([left, top, right, bottom], [24, 16, 48, 32], atol=1)


def test_escape_and_undo_work_wherever_the_focus_is(browser, studio):
    with page_of(browser, studio) as page:
        set_steps(page, 1)
        say(page, "a red apple", "0001")
        say(page, "make it night", "0002")
        page.click("#settings")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Escape")
        assert page.locator(".panel").is_hidden()
        page.keyboard.press("Control+z")
        move_to(page, "0001")
        page.click("#turn-0001 summary[aria-label=More]")
        menu, talk = page.locator("#turn-0001 details[open] > div").bounding_box(), page.locator(".talk").bounding_box()
        assert menu["y"] + menu["height"] <= talk["y"] + talk["height"]


def test_a_message_is_edited_and_sent_again_queued_named_and_deleted(browser, studio, photo, tmp_path):
    session = Session.open(tmp_path / "talk")
    with page_of(browser, studio) as page:
        set_steps(page, 1)
        page.set_input_files("#file", photo)
        page.wait_for_selector(".tray .chip")
        say(page, "make it blue", "0001")
        say(page, "make it night", "0002")

        page.click("#turn-0001 .resend")  # an earlier message: its picture comes along
        page.wait_for_selector(".tray .chip.edits")
        assert page.input_value("#say") == "make it blue"
        say(page, "make it red", "0003")
        assert session.node("0003").parents == () and session.node("0003").inputs[0].node is None

        set_steps(page, 60)  # the second message goes on from the answer to the first
        for text in ("make it snow", "add a tree"):
            page.fill("#say", text)
            page.press("#say", "Enter")
        page.wait_for_selector(".turn.waiting >> text=add a tree")
        page.wait_for_selector("#turn-0005 .bar")
        assert session.node("0004").parents == ("0003",) and session.node("0005").parents == ("0004",)

        page.click("#turn-0005 summary[aria-label=More]")
        page.click("#turn-0005 .rename")
        page.fill("dialog input.line", "the tree")
        page.keyboard.press("Enter")
        page.wait_for_selector('.tree [data-node="0005"][title="the tree"]')
        page.click("#turn-0004 summary[aria-label=More]")
        page.click("#turn-0004 .remove")
        page.click("#yes")
        page.wait_for_selector('.tree [data-node="0004"]', state="detached")
        assert page.locator("#turn-0005").count() == 1 and page.locator("#turn-0003").count() == 1
        page.click("#menu summary")
        page.click("#rename-session")
        page.fill("dialog input.line", "Holiday")
        page.keyboard.press("Enter")
        page.wait_for_selector(".where >> text=Holiday")
    again = Session.open(session.folder)
    assert again.shown_ids() == ("0001", "0002", "0003", "0005")
    assert [turn.unit.instruction for turn in again.history("0005")][-2:] == ["make it snow", "add a tree"]
    with studio.client() as http:
        assert http.delete("/v1/sessions/studio/nodes").status_code == 204
        assert http.get("/v1/sessions/studio").json()["nodes"] == []
    assert again.node_ids() == () and again.labels().last == 5


def test_a_click_selects_the_thing_that_is_there(studio):
    with studio.client() as http:
        if not http.get("/select").json()["available"]:
            pytest.skip(http.get("/select").json()["missing"])
        y, x = np.mgrid[:200, :300]
        disc = (x - 90) ** 2 + (y - 100) ** 2 < 50**2
        stream = io.BytesIO()
        Image.fromarray(np.where(disc[..., None], (210, 40, 30), (90, 140, 90)).astype(np.uint8)).save(stream, "PNG")
        sent = {"image": ("a.png", stream.getvalue())}
        answer = http.post("/select", data={"x": "0.3", "y": "0.5"}, files=sent)
        found = np.asarray(Image.open(io.BytesIO(answer.content))) > 0
        assert (found & disc).sum() / (found | disc).sum() > 0.9
        assert http.post("/select", data={"x": "3", "y": "0.5"}, files=sent).status_code == 400
        assert http.post("/select", data={"x": "0.3", "y": "0.5"}).status_code == 400


def test_a_wrong_message_is_refused_in_words_and_stays_written(browser, studio):
    with page_of(browser, studio, may_fail=True) as page:
        page.fill("#say", "put {image3} away")
        page.press("#say", "Enter")
        page.wait_for_selector(".notice.error")
        assert page.input_value("#say") == "put {image3} away"
        assert page.locator(".running").count() == 0


# Over HTTP


def test_the_start_link_works_once_and_the_key_is_in_no_address(studio):
    with httpx2.Client(base_url=studio.address, timeout=120, trust_env=False) as http:
        path = studio.start.path
        answer = http.get(path)
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Domain" not in cookie
        assert studio.key in cookie and studio.key not in path
        page = http.get("/")
        assert page.status_code == 200 and studio.key not in page.text and 'src="/page/studio.js"' in page.text
    for spent in (path, "/start/x", "/start/" + studio.key):
        answer = httpx2.get(studio.address + spent, trust_env=False)
        assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert studio.start.path != path


def test_without_the_cookie_nothing_is_told(studio):
    with httpx2.Client(base_url=studio.address, timeout=120, trust_env=False) as http:
        assert http.get("/").status_code == 401
        for path in ("/v1/models", "/v1/sessions", "/v1/sessions/studio", "/v1/sessions/studio/events", "/metrics"):
            assert http.get(path).status_code == 401, path
            assert http.get(path, headers={"Cookie": f"{studio.cookie}=wrong"}).status_code == 401, path
        assert http.post("/v1/sessions/studio/turns", json={"prompt": "a"}).status_code == 401


def test_only_this_machine_and_its_own_page_may_ask(studio):
    host = studio.address.removeprefix("http://")
    with studio.client() as http:
        for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.2"):
            assert http.get("/v1/models", headers={"Host": name}).status_code == 403, name
            assert http.get("/", headers={"Host": name}).status_code == 403, name
        for origin in ("http://evil.example", "null", "http://localhost:1", f"https://{host}.evil.example"):
            headers = {"Origin": origin}
            assert http.post("/v1/sessions/studio/turns", headers=headers, json={"prompt": "a"}).status_code == 403
        for site in ("cross-site", "same-site"):  # an image of ours in another page, or a page of another port
            assert http.get("/v1/sessions/studio", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert http.get("/v1/models", headers={"Origin": studio.address}).status_code == 200


def test_other_devices_reach_it_by_the_names_that_it_was_given_and_by_no_other(family, tmp_path):
    with serving(tmp_path / "talk", family, names=("192.168.7.7",)) as found, found.client() as http:
        for host, origin, status in (
            ("192.168.7.7:7860", "http://192.168.7.7:7860", 200),
            ("192.168.7.7:7860", "http://evil.example", 403),
            ("192.168.7.8:7860", "http://192.168.7.8:7860", 403),
        ):
            assert http.get("/v1/models", headers={"Host": host, "Origin": origin}).status_code == status
        bare = httpx2.get(found.address + "/v1/models", headers={"Host": "192.168.7.7"}, trust_env=False)
        assert bare.status_code == 401  # and with the key only


def test_every_answer_forbids_what_the_page_does_not_need(studio):
    with studio.client() as http:
        for path in ("/", "/page/studio.js", "/v1/models", "/nothing", "/page/examples/examples.json"):
            answer = http.get(path)
            for name, value in HEADERS.items():
                assert answer.headers[name.decode()] == value.decode(), path
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert "unsafe" not in answer.headers["content-security-policy"]
        page = http.get("/").text
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=|https?://", page)


def test_the_page_folder_is_all_that_is_served_by_name(studio, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    with studio.client() as http:
        for path in (
            "/page/../app.py",
            "/page/..%2Fapp.py",
            "/page/%2e%2e/app.py",
            "/v1/sessions/studio/nodes/..%2F..%2Fsession.json/image",
            "/v1/sessions/..%2F..%2Fsecret.png",
            "/v1/sessions/studio/nodes/0001/inputs/..%2F0",
        ):
            answer = http.get(path)
            assert answer.status_code in (400, 404, 422), path
            assert b"secret" not in answer.content and b"StartLink" not in answer.content


def test_a_session_is_exported_and_imported_and_hostile_files_are_refused(studio):
    with studio.client() as http:
        archive = http.get("/v1/sessions/studio/archive")
        assert archive.headers["content-disposition"] == 'attachment; filename="talk.zip"'
        assert http.post("/v1/sessions/studio/archive", content=archive.content).status_code == 201
        refused = http.post("/v1/sessions/studio/archive", content=b"PK no zip")
        assert refused.status_code == 400
        assert "not a ZIP file" in refused.json()["error"]["message"]
