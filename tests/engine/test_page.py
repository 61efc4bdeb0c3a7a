"""The service's page in a real browser: what a workshop sees on its wall.

The first tests drive the real service and real sandboxes. The others let a played service tell what real ones tell too
rarely or too slowly: a hundred sandboxes, a service that goes away, hostile output.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from conftest import PATIENCE, ROOT, Lab, until
from fakes import function
from fakes_page import PlayedService, Served, traces

from harness.vantage.host import HostVantage

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium or no driver here; Debian: chromium, chromium-driver"
)

OOM, FREEZE = "out_of_memory_python", "freeze_arrays_python"
INVOKE = "/2015-03-31/functions/{}/invocations"


class Page:
    """A browser with the page in it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        # What a box shows, in the order in which it was shown: eyes are slower than this.
        self.js("""
            window.shown = {};
            const note = (box) => {
              const list = (window.shown[box.dataset.sandbox] ??= []);
              if (box.dataset.state && list.at(-1) !== box.dataset.state) list.push(box.dataset.state);
            };
            new MutationObserver((changes) => {
              for (const change of changes) {
                if (change.target.dataset?.sandbox) note(change.target);
                for (const one of change.addedNodes) if (one.dataset?.sandbox) note(one);
              }
            }).observe(document.getElementById("functions"), { subtree: true, childList: true, attributes: true });
        """)
        self.until(lambda: self.text("#connection-text") == "live", "the page is connected")

    def js(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(source, *arguments)

    def until(self, condition: Callable[[], object], what: str) -> None:
        until(condition, what, seconds=40 * PATIENCE)

    def text(self, selector: str) -> str:
        found = self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        return str(found)

    def count(self, selector: str) -> int:
        return int(self.js("return document.querySelectorAll(arguments[0]).length", selector))

    def set(self, field: str, value: object) -> None:
        self.js(
            """const field = document.getElementById(arguments[0]);
            field.value = arguments[1];
            field.dispatchEvent(new Event("input", {bubbles: true}));
            field.dispatchEvent(new Event("change", {bubbles: true}));""",
            field,
            str(value),
        )

    def invoke(self, name: str, event: str = "{}", *, count: int = 1, at_once: int = 1) -> None:
        self.until(lambda: self.count(f"#f-function option[value='{name}']"), f"{name} can be chosen")
        self.set("f-function", name)
        self.set("f-event", event)
        self.set("f-count", count)
        self.set("f-concurrency", at_once)
        self.driver.find_element("id", "send").click()

    def boxes(self, name: str) -> list[dict[str, str]]:
        found = self.js(
            """return [...document.querySelectorAll("article.function")]
              .filter((one) => one.querySelector("h3").textContent === arguments[0])
              .flatMap((one) => [...one.querySelectorAll(".box")])
              .map((box) => ({id: box.dataset.sandbox, state: box.dataset.state, text: box.innerText}))""",
            name,
        )
        return cast("list[dict[str, str]]", found)

    def states(self, name: str) -> list[str]:
        return [box["state"] for box in self.boxes(name)]

    def shown(self, sandbox_id: str) -> list[str]:
        return cast("list[str]", self.js("return window.shown[arguments[0]] ?? []", sandbox_id))

    def colour(self, selector: str, what: str = "background-color") -> tuple[int, int, int]:
        found = self.js(
            "return getComputedStyle(document.querySelector(arguments[0])).getPropertyValue(arguments[1])",
            selector,
            what,
        )
        red, green, blue = (int(float(part)) for part in re.findall(r"[\d.]+", str(found))[:3])
        return red, green, blue

    def size(self, width: int, height: int) -> None:
        wanted = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wanted)

    def prefer(self, name: str, value: str) -> None:
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": name, "value": value}]})

    def complaints(self) -> list[str]:
        return [one["message"] for one in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        messages = [json.loads(one["message"])["message"] for one in self.driver.get_log("performance")]
        return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_script_timeout(30)
    driver.set_page_load_timeout(60)
    try:
        yield Page(driver)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the driver's pipes, which selenium leaves open
            driver.quit()


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    browser.size(1280, 720)
    browser.prefer("prefers-color-scheme", "light")
    yield browser
    browser.driver.get("about:blank")
    browser.complaints()
    browser.requests()


# The real service


@pytest.fixture(scope="module")
def service(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    why_not = HostVantage.why_not(lab.engine.facts())
    if why_not:
        pytest.skip(f"freezing and naming kills as on Lambda needs the vantage host: {why_not}")
    folder = tmp_path_factory.mktemp("service")
    samples = [str(ROOT / "sample_functions" / name) for name in (OOM, FREEZE)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log, store = (folder / "log").open("w+"), folder / "runs.sqlite3"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "harness",
            "serve",
            *samples,
            *("--port", str(port), "--no-pull", "--store", str(store)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )
    try:
        until(lambda: _answers(port) or process.poll() is not None, "the service answers")
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        with httpx.stream("GET", f"http://127.0.0.1:{port}/_harness/events", timeout=60 * PATIENCE) as looking:
            assert looking.status_code == 200
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60 * PATIENCE)
    finally:
        process.kill()
        process.wait(timeout=10)
        log.close()
    said = (folder / "log").read_text()
    assert "Traceback" not in said
    assert "http: " not in said, "a page that looks on is no fault when the service ends"


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/_harness/state", timeout=5 * PATIENCE).status_code == 200
    return False


def test_a_box_initialises_works_freezes_and_thaws_for_the_next_invocation(page: Page, service: str) -> None:
    page.open(service)
    page.invoke(FREEZE)
    page.until(lambda: page.states(FREEZE) == ["frozen"], "a frozen box after the first invocation")
    (box,) = page.boxes(FREEZE)
    first = page.shown(box["id"])
    assert [one for one in first if one in ("init", "working", "frozen")] == ["init", "working", "frozen"]
    assert "Frozen" in box["text"]
    page.until(lambda: re.search(r"\d+ / 128 MB", page.boxes(FREEZE)[0]["text"]), "measured memory against memory size")
    page.until(lambda: "Success, HTTP 200" in page.text("#announce"), "the outcome is announced")

    page.invoke(FREEZE)
    page.until(lambda: page.shown(box["id"])[len(first) :][-3:] == ["thaw", "working", "frozen"], "thaw, work, freeze")
    assert len(page.boxes(FREEZE)) == 1, "the frozen sandbox was used again"
    page.until(lambda: page.count("#report-list li[data-shape=good]") >= 2, "both REPORT lines")
    assert "Billed Duration: " in page.text("#report-list li .line")
    assert page.complaints() == []
    assert {re.match(r"https?://[^/]+", one)[0] for one in page.requests() if one.startswith("http")} == {service}  # type: ignore[index]


def test_an_out_of_memory_kill_turns_the_box_red_and_is_named(page: Page, service: str) -> None:
    page.open(service)
    page.invoke(OOM, '{"mb": 400}')
    page.until(lambda: page.states(OOM) == ["oom"], "a box that says out of memory")
    (box,) = page.boxes(OOM)
    assert "Out of memory" in box["text"]
    assert "killed at 128 MB" in box["text"]
    red, green, blue = page.colour(".box[data-state=oom]")
    assert red > 2 * max(green, blue), "red"
    page.until(lambda: page.text("#report-list li .verdict") == "out of memory", "the REPORT line's verdict")
    page.until(lambda: "Runtime.ExitError" in page.text("#outcome-text"), "the form tells how it ended")

    page.invoke(OOM, '{"mb": 10}')
    page.until(lambda: page.states(OOM) == ["frozen"], "the runtime began anew in the same sandbox")
    assert page.boxes(OOM)[0]["id"] == box["id"]


def test_what_was_invoked_is_in_the_reports(page: Page, service: str) -> None:
    page.open(service)
    page.invoke(FREEZE)
    page.until(lambda: "Success" in page.text("#outcome-text"), "an invocation")
    page.driver.find_element("link text", "Reports").click()
    page.until(lambda: page.count(".runs tbody tr") >= 1, "the list of runs")
    page.driver.find_element("css selector", ".runs tbody a").click()
    page.until(lambda: page.count("#invocations"), "the report of a run")
    assert page.complaints() == []


# A played service


@pytest.fixture
def played(tmp_path: Path) -> Iterator[tuple[PlayedService, str]]:
    made = PlayedService(function(name="orders", memory_mb=128), function(name="other"), speed=4)
    with Served(made.app) as url:
        yield made, url
        made.feed.close()


Played = tuple[PlayedService, str]


def test_a_page_that_comes_later_sees_the_kill_too(page: Page, played: Played) -> None:
    _, url = played
    page.open(url)
    page.invoke("orders", '{"oom": true}')
    page.until(lambda: page.states("orders") == ["oom"], "the kill")
    page.open(url)
    page.until(lambda: page.states("orders") == ["oom"], "the kill, after a reload")


def test_other_ends_of_the_runtime_have_words_of_their_own(page: Page, played: Played) -> None:
    _, url = played
    page.open(url)
    page.invoke("orders", '{"timeout": true}')
    page.until(lambda: "Timed out" in "".join(box["text"] for box in page.boxes("orders")), "the time-out")


def test_what_functions_send_stays_text(page: Page, played: Played) -> None:
    service, url = played
    bad = "<img src=x onerror=\"document.title='pwned'\">"
    service.feed.function({"name": bad, "description": bad, "state": bad})
    service.feed.metrics({"Namespace": bad, "MetricName": bad, "Value": 1, "Dimensions": [{"Name": bad, "Value": bad}]})
    service.feed.segment({"trace_id": bad, "id": bad, "name": bad, "start_time": 1.0, "end_time": 2.0})
    service.feed.message(bad)
    page.open(url)
    page.invoke("orders", '{"fail": true}')
    page.until(lambda: page.count("#report-list li[data-shape=broken]") == 1, "the failed invocation")
    for tab in ("tab-metrics", "tab-messages", "tab-traces"):
        page.driver.find_element("id", tab).click()
    assert page.count("img") == 0
    assert page.driver.title == "lambda-harness"
    assert "onerror" in page.text("#report-list")
    assert "onerror" in page.text("#traces")
    assert page.complaints() == []


def test_a_trace_is_a_tree_with_bars_and_metrics_have_values(page: Page, played: Played) -> None:
    service, url = played
    traces(service.feed)
    page.open(url)
    page.until(lambda: page.count("#traces .span") == 6, "the spans of the trace")
    assert page.count("#traces .tree .tree .tree .span") == 2, "what was sent by itself hangs below its parent"
    left = page.js(
        "return [...document.querySelectorAll('#traces .bar-fill')].map((one) => parseFloat(one.style.left))"
    )
    assert left[0] == 0
    assert max(left) > 90
    page.driver.find_element("id", "tab-metrics").click()
    page.until(lambda: "OrdersPlaced" in page.text("#metrics") and "8 Count" in page.text("#metrics"), "the metric")


def test_a_burst_is_as_wide_as_asked_though_browsers_open_six_connections(page: Page, played: Played) -> None:
    service, url = played
    page.open(url)
    page.invoke("orders", '{"work_ms": 2000}', count=24, at_once=12)
    page.until(lambda: "24 answers: 24 good" in page.text("#outcome-text"), "all answers")
    assert service.most_at_once == 12


def test_a_burst_can_be_stopped(page: Page, played: Played) -> None:
    service, url = played
    page.open(url)
    page.invoke("orders", '{"work_ms": 2000}', count=500, at_once=5)
    page.until(lambda: len(service.invoked) >= 5, "the first invocations")
    page.driver.find_element("id", "stop").click()
    page.until(lambda: page.text("#outcome-text").startswith("Stopped after"), "it says that it was stopped")
    assert len(service.invoked) < 500


def test_more_than_a_hundred_sandboxes_are_tiles_and_a_number(page: Page, played: Played) -> None:
    service, url = played
    page.open(url)
    page.invoke("orders", '{"work_ms": 400}', count=300, at_once=150)
    page.until(lambda: "300 answers: 300 good" in page.text("#outcome-text"), "all answers")
    assert len(service.sandboxes) == 150
    page.until(lambda: "150 sandboxes: 150 frozen" in page.text(".counts"), "their number in words")
    assert page.count("[data-density=tiles] .box") == 150
    words = "return [...new Set([...document.querySelectorAll('.box .word')].map((one) => one.textContent))]"
    page.until(lambda: page.js(words) == ["Frozen"], "every tile has its word, for screen readers")
    assert page.complaints() == []


def test_a_page_finds_its_way_back_when_the_service_does(page: Page) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = PlayedService(function(name="before"))
    with Served(first.app, port) as url:
        page.open(url)
        page.until(lambda: "before" in page.text("#functions"), "the first service's function")
    # It said no word of parting: the stream broke off.
    page.until(lambda: page.text("#connection-text").startswith("no connection"), "the page says that it is alone")
    first.feed.close()
    second = PlayedService(function(name="after"))
    with Served(second.app, port):
        page.until(lambda: page.text("#connection-text") == "live", "the page is back")
        page.until(
            lambda: "after" in page.text("#functions") and "before" not in page.text("#functions"), "the new state"
        )
        second.feed.close()


def test_an_event_that_is_no_json_is_not_sent(page: Page, played: Played) -> None:
    service, url = played
    page.open(url)
    page.invoke("orders", '{"a": 1,\n "b": }')
    page.until(lambda: "not JSON" in page.text("#announce"), "the refusal is announced")
    assert page.js("return document.activeElement.id") == "f-event"
    assert service.invoked == []


def test_the_place_where_an_event_stops_being_json_is_named(page: Page, played: Played) -> None:
    _, url = played
    page.open(url)
    for event, place in {
        '{"a": 1,\n "b": }': "a value expected at line 2, column 7",
        "{'a': 1}": "a name in double quotes expected at line 1, column 2",
        '{"a" 1}': "a colon expected at line 1, column 6",
        "[1 2]": "a comma or ] expected at line 1, column 4",
        "{} {}": "nothing more expected at line 1, column 4",
        "": "a value expected at line 1, column 1",
        '"\t"': "a value expected at line 1, column 1",
    }.items():
        page.set("f-event", event)
        assert page.text("#event-check") == f"✕ not JSON: {place}"
    for event in ("0", '"x"', "null", ' {"a": [1, -2.5e3, "\\u00e4", {}, []]}\n', "[[[]]]"):
        page.set("f-event", event)
        assert "valid JSON" in page.text("#event-check"), event


def test_a_refusal_of_the_api_is_told_in_its_own_words(page: Page, played: Played) -> None:
    service, url = played
    page.open(url)
    service.functions.clear()
    page.invoke("orders")
    page.until(lambda: "ResourceNotFoundException" in page.text("#outcome-text"), "the error code")
    assert "Function not found: orders" in page.text("#outcome-body")


def test_qualifier_and_earlier_events_are_offered_again(page: Page, played: Played) -> None:
    service, url = played
    page.open(url)
    page.set("f-qualifier", "live")
    page.invoke("orders", '{"nr": 1}')
    page.until(lambda: "Success" in page.text("#outcome-text"), "the first")
    page.invoke("orders", '{"nr": 2}')
    page.until(lambda: len(service.invoked) == 2, "the second")
    assert [(qualifier, body) for _, qualifier, body in service.invoked] == [
        ("live", b'{"nr": 1}'),
        ("live", b'{"nr": 2}'),
    ]
    page.open(url)
    offered = "return [...document.querySelectorAll('#f-history option')].map((one) => one.value)"
    page.until(lambda: '{"nr": 1}' in page.js(offered), "earlier events, after a reload")
    page.set("f-history", '{"nr": 1}')
    assert page.js("return document.getElementById('f-event').value") == '{"nr": 1}'


def test_everything_can_be_reached_and_seen_with_the_keyboard(page: Page, played: Played) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    service, url = played
    page.open(url)
    page.until(lambda: page.count("#f-function option") == 2, "the form is ready")
    reached: list[str] = []
    for _ in range(40):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        focus = page.js(
            """const one = document.activeElement, style = getComputedStyle(one);
            return [one.id || one.textContent.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2]"""
        )
        reached.append(focus[0])
        assert focus[1] or focus[0] == "main" or page.js("return document.activeElement === document.body"), focus
        if focus[0] == "send":
            break
    order = ["theme", "f-function", "f-qualifier", "f-history", "f-event", "f-count", "f-concurrency", "f-kind", "send"]
    assert [one for one in reached if one in order] == order
    assert reached[0] == "Skip to the sandboxes"
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    page.until(lambda: len(service.invoked) == 1, "Enter sends")

    page.js("document.getElementById('tab-traces').focus()")
    ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert page.js("return document.activeElement.id") == "tab-metrics"
    assert page.js("return document.getElementById('metrics').hidden") is False


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1920, 1080), (390, 844)])
def test_the_page_fits_projectors_and_phones(page: Page, played: Played, width: int, height: int) -> None:
    _, url = played
    page.size(width, height)
    page.open(url)
    page.invoke("orders")
    page.until(lambda: page.states("orders") == ["frozen"], "a box")
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    scroll, inner = page.js(wide)
    assert scroll <= inner, "nothing has to be scrolled sideways"
    if width > 1000:
        assert page.js("return document.documentElement.scrollHeight <= innerHeight"), "all on one wall"
        for section in ("sandboxes", "time", "reports", "invoke", "arrived"):
            edges = "const b = document.getElementById(arguments[0]).getBoundingClientRect(); return [b.top, b.bottom]"
            top, bottom = page.js(edges, section)
            assert 0 <= top < bottom <= height, section
        letters = page.js("return parseFloat(getComputedStyle(document.querySelector('.box .word')).fontSize)")
        assert letters >= height / 35, "the words of boxes are read from the back of the room"


STATES = ("starting", "init", "working", "thaw", "idle", "frozen", "oom", "broken")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_is_told_by_shape_and_word_and_can_be_read(page: Page, played: Played, scheme: str) -> None:
    _, url = played
    page.prefer("prefers-color-scheme", scheme)
    page.open(url)
    page.invoke("orders")
    page.until(lambda: page.states("orders") == ["frozen"], "a box")
    shapes = set()
    for state in STATES:
        # A copy of the box, which the page does not go on drawing.
        contrast = page.js(
            """document.getElementById("copy")?.remove();
            const copy = document.querySelector(".box").cloneNode(true);
            copy.id = "copy";
            delete copy.dataset.sandbox;
            copy.dataset.state = arguments[0];
            copy.style.animation = "none";
            document.getElementById("sandboxes").append(copy);
            const style = getComputedStyle(copy);
            const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
            const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            const light = (rgb) => rgb.reduce((sum, v, at) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][at], 0);
            const ratio = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            const backgrounds = (style.backgroundImage.match(/rgb\\([^)]*\\)/g) ?? [style.backgroundColor]).map(numbers);
            const ink = light(numbers(style.color));
            return Math.min(...backgrounds.map(light).map((paper) => ratio(ink, paper)));""",
            state,
        )
        # [WCAG 2.2, success criterion 1.4.3]
        assert contrast >= 4.5, f"{state} in {scheme}: {contrast:.1f}"
        shapes.add(page.js("return document.getElementById('g-' + arguments[0])?.innerHTML", state))
    assert None not in shapes
    assert len(shapes) == len(STATES), "one shape a state"


def test_light_and_dark_differ_and_a_button_overrides_the_system(page: Page, played: Played) -> None:
    _, url = played
    page.open(url)
    light = page.colour("body")
    page.prefer("prefers-color-scheme", "dark")
    dark = page.colour("body")
    assert sum(light) > 600
    assert sum(dark) < 100
    page.driver.find_element("id", "theme").click()
    assert page.colour("body") == light
    page.driver.find_element("id", "theme").click()
    page.driver.find_element("id", "theme").click()
    assert page.text("#theme span") == "auto"


def test_nothing_moves_for_those_who_do_not_want_it(page: Page, played: Played) -> None:
    _, url = played
    page.open(url)
    running = "return document.getAnimations().length"
    page.invoke("orders", '{"work_ms": 8000}')
    page.until(lambda: page.states("orders") == ["working"] and page.js(running) > 0, "a working box moves")
    page.prefer("prefers-reduced-motion", "reduce")
    page.until(lambda: page.js(running) == 0, "and stands still")
    assert page.states("orders") == ["working"], "its word and shape tell the same"
