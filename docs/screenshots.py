"""Take the pictures of the studio in `docs/images`, in a real headless Chromium over the model that ships.

python docs/screenshots.py [FOLDER]     default: docs/images

At 1440 and 390 px, light and dark: a conversation with a comparison, a mask being painted, variants on their way, the
gallery. Look at them afterwards. Needs `ace-allround[web]`, playwright, and a Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from ace.conversation.family import Loading
from ace.conversation.session import Session
from ace.families import find_family
from ace.server import Engine
from ace.server.run import listen
from ace.web import StartLink, make_app, studio_settings

WIDE, NARROW = ViewportSize(width=1440, height=900), ViewportSize(width=390, height=844)
STEPS = 12
PATIENCE_MS = 300_000


@contextmanager
def studio_in(folder: Path) -> Iterator[Callable[[], str]]:
    """A studio on a free port; its start link, anew for each use."""
    family = find_family("ace-tiny")
    family.load(Loading())
    listener = listen("127.0.0.1", 0)
    settings = studio_settings(Session.create(folder).folder, listener.getsockname()[1])
    start = StartLink()
    engine = Engine(family, settings.limits)
    engine.start()
    app = make_app(engine, settings, start=start)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield lambda: f"http://127.0.0.1:{settings.port}{start.path}"
    finally:
        engine.drain()
        server.should_exit = True
        thread.join()
        engine.stop()


def open_page(
    browser: Browser, address: Callable[[], str], size: ViewportSize, colours: Literal["light", "dark"]
) -> Page:
    """The studio in a window of its own."""
    page = browser.new_context(viewport=size, color_scheme=colours, device_scale_factor=1).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address())
    page.wait_for_selector(".welcome, .turn")
    return page


def shoot(page: Page, path: Path) -> None:
    """Once everything that is shown has loaded and come to rest."""
    page.wait_for_function("() => [...document.images].every((one) => one.complete || one.loading === 'lazy')")
    page.wait_for_timeout(800)
    page.screenshot(path=path)
    print(path.name, flush=True)


def settle(page: Page) -> None:
    """Leave the pointer and the focus where they light nothing up."""
    page.mouse.move(1, 1)
    page.evaluate("document.activeElement.blur()")


def say(page: Page, text: str, node: str) -> None:
    """Send a message and wait until node `node` is its answer."""
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.wait_for_selector(f"#turn-{node} .bar")
    page.wait_for_selector(".running", state="detached")


def set_up(page: Page) -> None:
    """Steps and a seed, so that the pictures come out the same."""
    page.click("#settings")
    page.fill("[data-setting=steps]", str(STEPS))
    page.fill("[data-setting=seed]", "7")
    page.press("[data-setting=seed]", "Escape")


def converse(page: Page) -> None:
    """An example, and two ways to go on from it."""
    page.click("#examples")
    page.click('dialog [data-task="semantic_editing/background"]')
    page.wait_for_selector(".tray .chip")
    say(page, page.input_value("#say"), "0001")
    say(page, "make it night", "0002")
    page.click("#turn-0001 .branch")
    page.wait_for_selector('.tree [data-node="0001"][aria-current="true"]')
    say(page, "make the background blue", "0003")


def paint(page: Page) -> None:
    """Open the easel and draw a stroke."""
    page.click("#paint")
    board = page.locator(".easel canvas").bounding_box()
    assert board is not None
    page.mouse.move(board["x"] + board["width"] * 0.32, board["y"] + board["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(board["x"] + board["width"] * 0.6, board["y"] + board["height"] * 0.35, steps=8)
    page.mouse.up()


def take_all(browser: Browser, address: Callable[[], str], folder: Path) -> None:
    """All of them."""
    page = open_page(browser, address, WIDE, "light")
    settle(page)
    shoot(page, folder / "studio-welcome.png")
    page.click("#examples")
    page.wait_for_selector("dialog .cards button")
    settle(page)
    shoot(page, folder / "studio-examples.png")
    page.click("dialog .top button")
    set_up(page)
    converse(page)
    page.click("#turn-0003 .compare")
    settle(page)
    shoot(page, folder / "studio.png")
    paint(page)
    shoot(page, folder / "studio-mask.png")
    page.click("#use-mask")
    page.wait_for_selector(".tray .chip")
    say(page, "make the background orange", "0004")

    for size, name in ((WIDE, "studio-dark"), (NARROW, "studio-narrow")):
        other = open_page(browser, address, size, "dark")
        settle(other)
        shoot(other, folder / f"{name}.png")
    narrow = open_page(browser, address, NARROW, "light")
    paint(narrow)
    shoot(narrow, folder / "studio-narrow-mask.png")

    set_up(page)
    page.click("#turn-0004 summary[aria-label=More]")
    page.click("#turn-0004 .variants")
    page.wait_for_selector(".running .previews.many img:nth-child(1)")
    page.wait_for_function("() => document.querySelector('.running progress').value > 6")
    settle(page)
    shoot(page, folder / "studio-variants.png")
    page.click("#send")  # which stops them
    page.wait_for_selector(".running", state="detached")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    folder.mkdir(exist_ok=True)
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with (
        tempfile.TemporaryDirectory() as place,
        studio_in(Path(place) / "holiday") as address,
        sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        take_all(browser, address, folder)
        browser.close()


if __name__ == "__main__":
    main()
