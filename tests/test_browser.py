"""The page in a real, headless Chromium: every action, what changes by itself, two tabs, a restart, a wrong token."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from state.store import Store
from tests.fakes_service import FakeWorker, drop, wait_until
from tests.web_world import Visitor, publish, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium chromium-driver"),
    pytest.mark.skipif(CHROMEDRIVER is None, reason="no chromedriver: apt-get install chromium-driver"),
    # selenium's own: the pipe to the driver is closed by the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,900",
)
HOSTILE = "<img src=x onerror=document.title='owned'>.jsonl"


class Browser:
    """One Chromium on one page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.visitor = Visitor(0, Path())

    def open(self, path: str) -> None:
        """Goes to a page of the service."""
        self.driver.get(f"http://127.0.0.1:{self.visitor.port}{path}")

    def text(self, selector: str = "body") -> str:
        """What is read in a part of the page; empty where it is not there or not seen."""
        found = self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
            ".map(e => e.innerText).join('\\n')",
            selector,
        )
        return str(found)

    def click(self, selector: str) -> None:
        """Clicks the one thing that the selector finds, and waits for the page that it leads to: the driver may not."""
        self.driver.execute_script("window.isLeftBehind = true")
        self.driver.find_element("css selector", selector).click()
        arrived = "return !window.isLeftBehind && document.readyState === 'complete'"
        self.until(lambda: bool(self.driver.execute_script(arrived)))

    def type(self, selector: str, text: str) -> None:
        """Types into a field."""
        self.driver.find_element("css selector", selector).send_keys(text)

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until the page has come so far."""
        wait_until(condition, timeout_s=60)

    def log_in(self, token: str | None = None) -> None:
        """Gives a token, the right one by default."""
        self.open("/login")
        self.type("#token", token or self.visitor.token)
        self.click("main form button")

    def do(self, action: str, reason: str = "") -> None:
        """Clicks an action's button, says why where it is asked, confirms, and waits for what was done."""
        self.click(f"#do-{action}")
        self.until(lambda: bool(self.text("#confirm")))
        if reason:
            self.type("#reason", reason)
        self.click("#confirm")
        self.until(lambda: bool(self.text("#notice")))

    def complaints(self) -> list[str]:
        """What the browser complained of, such as a breach of the page's policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(CHROMEDRIVER))
    yield found
    found.quit()


@pytest.fixture
def browser(driver: Any) -> Browser:
    """A browser without cookies and with one tab."""
    for handle in driver.window_handles[1:]:
        driver.switch_to.window(handle)
        driver.close()
    driver.switch_to.window(driver.window_handles[0])
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    driver.get("about:blank")
    driver.get_log("browser")
    return Browser(driver)


def test_a_wrong_token_is_told_and_the_right_one_leads_on(browser: Browser, home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as browser.visitor:
        publish(home, "monday.jsonl")
        browser.open("/")
        browser.click("#do-rollback")
        assert "/login?next=" in browser.driver.current_url
        browser.type("#token", "not the token")
        browser.click("main form button")
        assert "That is not the token" in browser.text("main")
        browser.type("#token", browser.visitor.token)
        browser.click("main form button")
        assert "Roll back to v0?" in browser.text("h1")
        assert browser.driver.execute_script("return document.cookie") == ""
        browser.click(".top form button")
        assert "Log in" in browser.text(".top")


def test_every_action_by_its_buttons(browser: Browser, home: Path, worker: FakeWorker) -> None:
    worker.script("intake-2", {"event": "done", "outcome": "quarantined", "reasons": ["there are no rows"]})
    with serving(home, worker, publish={"approval": True}) as browser.visitor, Store.open(home) as store:
        browser.log_in()
        drop(home, "monday.jsonl", "one\n")
        browser.until(lambda: "v1 waits for approval" in browser.text("#standing"))
        browser.click("#standing .badge a")
        browser.do("approve", "read the samples")
        assert "v0 -> v1" in browser.text("#notice") and store.current().name == "v1"

        browser.do("pin")
        assert "v1 is pinned" in browser.text("#notice") and store.version(1).pinned
        browser.do("unpin")
        assert "no longer pinned" in browser.text("#notice") and not store.version(1).pinned

        browser.open("/")
        browser.do("pause", "the GPU is needed")
        browser.until(lambda: "Paused" in browser.text("#round") and "the GPU is needed" in browser.text("#round"))
        drop(home, HOSTILE, "two\n")
        browser.open("/quarantine")
        wait_until(lambda: bool(store.quarantined()))
        browser.open("/quarantine")
        assert HOSTILE in browser.text("main") and "there are no rows" in browser.text("main")
        browser.do("release")
        assert "is released" in browser.text("#notice") and not store.quarantined()
        browser.open("/")
        browser.do("resume")
        assert "pause lifted" in browser.text("#notice") and store.paused is None

        browser.until(lambda: "v2 waits for approval" in browser.text("#standing"))
        browser.open("/versions/v2")
        browser.do("reject", "too terse")
        assert "v2 is rejected" in browser.text("#notice")
        browser.click(".pairs a[href^='/batches/']")
        assert "rejected" in browser.text("h1") and "too terse" in browser.text("main").lower()
        browser.do("retry")
        assert "is queued again" in browser.text("#notice")

        browser.until(lambda: "v3 waits for approval" in browser.text("#standing"))
        browser.click("#standing .badge a")
        browser.do("approve")
        browser.open("/versions/v1")
        browser.do("rollback", "answers about cooking got worse")
        assert "v3 -> v1" in browser.text("#notice")
        browser.until(lambda: "answers about cooking got worse" in browser.text("#round"))
        assert store.held is not None and store.current().name == "v1"
        browser.do("resume")
        assert "hold lifted" in browser.text("#notice") and store.held is None
        assert browser.driver.title != "owned" and browser.complaints() == []


def test_the_first_page_follows_a_round_without_being_loaded_again(
    browser: Browser, home: Path, worker: FakeWorker
) -> None:
    steps: list[dict[str, Any]] = [
        {"event": "step", "step": name, "result": {}} for name in ("parse", "teach", "choose")
    ]
    losses = [{"event": "progress", "step": "safety", "fraction": n / 300, "loss": 0.5 + n / 50} for n in range(300)]
    worker.script("round", *steps, *[event for loss in losses for event in (loss, {"sleep": 0.05})])
    with serving(home, worker) as browser.visitor:
        browser.open("/")
        browser.driver.execute_script("window.wasNotLoadedAgain = true")
        assert "No round runs" in browser.text("#round")
        drop(home, "monday.jsonl")
        browser.until(lambda: "safety" in browser.text("#step") and "left" in browser.text("#round"))
        browser.until(lambda: "polyline" in browser.driver.page_source)

        def curve() -> str:
            found = (
                "return (document.querySelector('#round polyline') || {getAttribute: () => ''}).getAttribute('points')"
            )
            return str(browser.driver.execute_script(found))

        first, fraction = curve(), browser.text("#fraction")
        browser.until(lambda: curve() != first and browser.text("#fraction") != fraction)
        assert browser.driver.execute_script("return window.wasNotLoadedAgain")
        assert browser.complaints() == []


def test_what_one_tab_does_the_other_shows(browser: Browser, home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as browser.visitor:
        publish(home, "monday.jsonl")
        publish(home, "tuesday.jsonl")
        browser.log_in()
        browser.open("/confirm/rollback")
        first = browser.driver.current_window_handle
        browser.driver.switch_to.new_window("tab")
        browser.open("/")
        browser.do("rollback", "the other tab")
        assert "v2 -> v1" in browser.text("#notice")
        second = browser.driver.current_window_handle

        browser.driver.switch_to.window(first)
        browser.until(lambda: "Something changed since this page was made" in browser.text("#stale"))
        browser.until(lambda: "v1" in browser.text("#standing") and "held" in browser.text("#standing"))
        browser.click("#confirm")
        assert "something changed since this was asked" in browser.text("main").lower()
        with Store.open(home) as store:
            assert store.current().name == "v1"
        browser.open("/")
        browser.do("resume")
        browser.driver.switch_to.window(second)
        browser.until(lambda: "held" not in browser.text("#standing"))


def test_a_page_outlives_a_restart_of_the_service(browser: Browser, home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as browser.visitor:
        browser.log_in()
        browser.open("/")
        assert browser.text("#connection") == ""
    port = browser.visitor.port
    browser.until(lambda: "No answer from the service" in browser.text("#connection"))
    with serving(home, worker, port=port) as browser.visitor:
        browser.until(lambda: browser.text("#connection") == "")
        publish(home, "monday.jsonl")
        browser.until(lambda: "v1" in browser.text("#standing"))
        browser.do("pause")
        assert "paused" in browser.text("#notice")


def test_another_site_can_neither_act_nor_frame_the_page(
    browser: Browser, home: Path, worker: FakeWorker, tmp_path: Path
) -> None:
    with serving(home, worker) as browser.visitor, Store.open(home) as store:
        publish(home, "monday.jsonl")
        browser.log_in()
        target = f"http://127.0.0.1:{browser.visitor.port}"
        evil = tmp_path / "evil.html"
        evil.write_text(
            f'<iframe id="frame" src="{target}/confirm/rollback"></iframe>'
            f'<form method="post" action="{target}/do/rollback"><input name="ref" value="v0"><button>prize</button></form>'
        )
        browser.driver.get(evil.as_uri())
        browser.until(lambda: bool(browser.driver.find_elements("css selector", "#frame")))
        browser.driver.switch_to.frame("frame")
        assert "Roll back" not in browser.text()
        browser.driver.switch_to.default_content()
        browser.click("button")
        browser.until(lambda: "does not come from this page" in browser.text())
        assert store.current().name == "v1"


def test_nothing_is_asked_of_another_machine(browser: Browser, home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as browser.visitor:
        publish(home, "monday.jsonl")
        browser.log_in()
        for path in ("/", "/versions", "/versions/v1", "/harm", "/diff", "/batches", "/quarantine", "/audit"):
            browser.open(path)
            names = browser.driver.execute_script(
                "return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
                ".map(entry => entry.name)"
            )
            assert names and {urlsplit(name).netloc for name in names} == {f"127.0.0.1:{browser.visitor.port}"}
        assert browser.complaints() == []


def test_it_is_used_by_keyboard_alone(browser: Browser, home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as browser.visitor:
        publish(home, "monday.jsonl")
        browser.log_in()
        browser.open("/")
        reached = _tabbed(browser, 40)
        assert reached[0] == "Skip to the content"
        for wanted in (
            "Now",
            "Versions",
            "Harm",
            "Batches",
            "Quarantine",
            "Audit",
            "Log out",
            "Roll back …",
            "Pause …",
        ):
            assert wanted in reached
        browser.open("/confirm/pause")
        _press(browser, until="reason")
        browser.driver.switch_to.active_element.send_keys("by keyboard\n")
        browser.until(lambda: "paused" in browser.text("#notice"))
        with Store.open(home) as store:
            assert store.paused is not None and store.paused.reason == "by keyboard"


def _tabbed(browser: Browser, count: int) -> list[str]:
    """What the first presses of Tab reach."""
    reached = []
    for _ in range(count):
        selenium.ActionChains(browser.driver).send_keys("\ue004").perform()
        reached.append(str(browser.driver.execute_script("return document.activeElement.innerText")).strip())
    return reached


def _press(browser: Browser, *, until: str) -> None:
    for _ in range(40):
        selenium.ActionChains(browser.driver).send_keys("\ue004").perform()
        if browser.driver.execute_script("return document.activeElement.id") == until:
            return
    raise AssertionError(f"{until} is not reached by Tab")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_light_and_dark_and_fits_a_phone(
    browser: Browser, home: Path, worker: FakeWorker, scheme: str
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    with serving(home, worker) as browser.visitor:
        publish(home, f"a-very-long-name-{'x' * 150}.jsonl")
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            for path in ("/", "/versions", "/versions/v1", "/harm", "/diff", "/batches", "/audit", "/login"):
                browser.open(path)
                browser.until(lambda: bool(browser.driver.execute_script(fits)))  # laid out again after it is loaded
                assert _contrast(browser) >= 4.5, path
        finally:
            browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _contrast(browser: Browser) -> float:
    """The least contrast of any text with the page behind it, as WCAG 2 counts it."""
    found = browser.driver.execute_script(
        """
        const light = text => {
          const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = element => {
          for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (colour.startsWith('rgb(')) return colour;
          }
          return getComputedStyle(document.body).backgroundColor;
        };
        const texts = [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && e.offsetParent
          && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
        return Math.min(...texts.map(e => {
          const pair = [light(getComputedStyle(e).color), light(behind(e))].sort((a, b) => b - a);
          return (pair[0] + 0.05) / (pair[1] + 0.05);
        }));
        """
    )
    return float(found)
