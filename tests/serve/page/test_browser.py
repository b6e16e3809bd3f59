"""The page in a browser: headless Chromium, as Debian packages it, driven through selenium."""

import asyncio
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from tests.serve.page.test_pages import METADATA
from tests.serve.server.fakes import FakePolicy, ask, client_of, serving
from vla.serve.page.pages import StatusPage

pytestmark = pytest.mark.slow

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NASTY = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root needs
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@contextmanager
def served(**options):
    """A server in a thread of its own; what is given back runs a coroutine function of the server there."""
    loop, ready, made = asyncio.new_event_loop(), threading.Event(), []
    over = asyncio.Event()

    async def serve():
        async with serving(
            FakePolicy(), before=lambda server: StatusPage(server).join(), metadata=METADATA, **options
        ) as server:
            made.append(server)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)

    def do(action):
        return asyncio.run_coroutine_threadsafe(action(made[0]), loop).result(20)

    try:
        yield made[0], do
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)
        loop.close()


def text(browser, name):
    return browser.find_element("id", name).text


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10).until(lambda _: condition())


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser")]


def two_requests(token=None):
    """A robot that asks twice, the second time with what is left of the first chunk."""

    async def talk(server):
        async with client_of(server, token) as client:
            noted = {"observation.images.top": np.full((20, 30, 3), 90, np.uint8), "task": NASTY}
            first = await client.ask(ask(seed=1) | noted)
            left = {"actions": first["actions"][3:], "delay": 0}
            await client.ask(ask(seed=2, text=True, **{"continue": left}) | noted)

    return talk


def test_the_page_shows_what_happens(browser):
    with served() as (server, do):
        browser.get(server.url.replace("ws://", "http://"))
        wait(browser, lambda: text(browser, "state") == "ready")
        assert text(browser, "requests") == "0 answered"
        assert text(browser, "no-robots") == "No robot is connected."
        do(two_requests())
        wait(browser, lambda: text(browser, "requests") == "2 answered")
        assert text(browser, "p50").endswith("ms")
        assert browser.find_elements("css selector", "#histogram svg rect")

        # What a robot says is shown as it is, and does nothing.
        assert text(browser, "prompt") == NASTY
        assert browser.title != "owned"
        assert browser.find_elements("css selector", "#prompt *, #robots img, #robots script") == []
        assert NASTY in browser.find_element("id", "robots").get_attribute("textContent")
        assert text(browser, "text") == "says: moving"
        assert browser.find_element("css selector", "h1").text == METADATA["vla"]["checkpoint"]

        # One plot a joint, with the executed part of the chunk before.
        assert [one.text for one in browser.find_elements("css selector", ".joint .name")] == [
            "pan",
            "lift",
            "grip",
        ]
        for kind in ("new", "done", "rest"):
            drawn = browser.find_elements("css selector", f".joint path.{kind}")
            assert len(drawn) == 3
        assert browser.find_element("id", "joints").get_attribute("data-executed") == "3"
        assert "3 of 4 were executed, as the client says" in text(browser, "chunk-title")
        done = browser.find_element("css selector", ".joint path.done").get_attribute("d")
        assert done.count("M") == 1
        assert done.count("L") == 3

        image = browser.find_element("css selector", "#cameras img")
        wait(browser, lambda: image.get_property("naturalWidth") == 30)
        do(two_requests())
        wait(browser, lambda: text(browser, "requests") == "4 answered")
        assert complaints(browser) == []
    wait(browser, lambda: text(browser, "state") == "no answer")
    assert "stale" in browser.find_element("css selector", "body").get_attribute("class")
    complaints(browser)


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_window(browser, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    with served() as (server, do):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(server.url.replace("ws://", "http://"))
        do(two_requests())
        wait(browser, lambda: text(browser, "requests") == "2 answered")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert complaints(browser) == []


def test_the_token_opens_it_and_leaves_the_address(browser):
    with served(token="secret") as (server, do):
        address = server.url.replace("ws://", "http://")
        browser.get(f"{address}/?token=secret")
        wait(browser, lambda: text(browser, "state") == "ready")
        assert browser.current_url == f"{address}/"
        assert browser.execute_script("return document.cookie") == ""  # no script can read it
        do(two_requests("secret"))
        wait(browser, lambda: text(browser, "requests") == "2 answered")
        image = browser.find_element("css selector", "#cameras img")
        wait(browser, lambda: image.get_property("naturalWidth") == 30)
        assert complaints(browser) == []
