"""Debian's Chromium, as a person uses it; it reaches this machine only. Knows no page."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from harness.parts import open_folder, part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")
WAIT_SECONDS = 30.0
RELOAD_SECONDS = 1.0
LOOK_SECONDS = 0.1
AXE = Path(sys.prefix) / "axe" / "pytest_playwright_axe" / "resources" / "axe.min.js"  # `make install` puts it there
FLAGS = (
    "--headless=new",
    "--window-size=1280,800",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--no-first-run",
)


class Browser:
    """One browser without a past."""

    def __init__(self, driver: Chrome) -> None:
        self._driver = driver

    def open(self, url: str) -> None:
        self._driver.get(url)

    def log_in(self, url: str, auth: tuple[str, str]) -> None:
        """Open a page and answer its question for a name and a password so; as any browser, it keeps the answer."""
        self.open(url.replace("://", f"://{':'.join(auth)}@"))
        self.open(url)

    @property
    def url(self) -> str:
        return self._driver.current_url

    @property
    def source(self) -> str:
        return self._driver.page_source

    @property
    def text(self) -> str:
        """What a person can read of the page."""
        return self._driver.find_element(By.TAG_NAME, "body").text

    def all(self, selector: str) -> list[WebElement]:
        return self._driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.all(selector)]

    def rows(self, table: str) -> list[dict[str, str]]:
        """Return the rows of a table that its script has filled, each cell by its column's header."""
        script = """
            const table = document.querySelector(arguments[0]);
            if (!table) return [];
            const heads = [...table.querySelectorAll('thead th')].map(head => head.textContent.trim());
            return [...table.querySelectorAll('tbody tr')]
                .map(row => [...row.querySelectorAll('td')].map(cell => cell.innerText.replaceAll('\\n', '').trim()))
                .filter(row => row.length === heads.length)
                .map(row => Object.fromEntries(row.map((text, at) => [heads[at], text])));
        """
        found: list[dict[str, str]] = self._driver.execute_script(script, table)
        return found

    def links(self) -> set[str]:
        """Return where the links of this page lead on its own server."""
        server = urlsplit(self.url).netloc
        found = {str(each.get_property("href")).partition("#")[0] for each in self.all("a[href]")}
        return {link for link in found if urlsplit(link).netloc.rpartition("@")[2] == server}

    def wait_for(self, fact: Callable[[], T], what: str) -> T:
        """Wait until this is so, and return it; a page's scripts do not notify a test."""
        return WebDriverWait(self._driver, WAIT_SECONDS, LOOK_SECONDS).until(lambda _: fact(), what)

    def reload_until(self, fact: Callable[[], T], what: str) -> T:
        """Load this page again and again until this is so, as its reader does; return it."""

        def look() -> T:
            self._driver.refresh()
            with suppress(TimeoutException):
                return WebDriverWait(self._driver, RELOAD_SECONDS, LOOK_SECONDS).until(lambda _: fact())
            return fact()

        return self.wait_for(look, what)

    def click(self, selector: str) -> None:
        (found,) = self.all(selector)
        found.click()

    def type(self, selector: str, text: str) -> None:
        (field,) = self.all(selector)
        field.clear()
        field.send_keys(text)

    def requested(self) -> set[str]:
        """Return the servers that its pages have asked for anything since the last time."""
        messages = [json.loads(each["message"])["message"] for each in self._driver.get_log("performance")]  # type: ignore[no-untyped-call]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        urls = [urlsplit(each["request"]["url"]) for each in sent]
        return {url.netloc.rpartition("@")[2] for url in urls if url.scheme not in {"data", "chrome", "about"}}

    def faults(self) -> dict[str, list[str]]:
        """Return what axe-core finds on this page: the elements of each rule that is broken."""
        self._driver.execute_script(AXE.read_text())
        found = self._driver.execute_async_script(
            "axe.run({resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
        )
        return {
            rule["id"]: [" ".join(map(str, node["target"])) for node in rule["nodes"]] for rule in found["violations"]
        }

    def picture(self, width: int, height: int) -> bytes:
        """Return what a window of this size shows, as PNG."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        taken = self._driver.get_screenshot_as_png()
        self._driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        return taken


@contextmanager
def browser() -> Iterator[Browser]:
    options = ChromeOptions()
    options.binary_location = part("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    with open_folder("cancel-worker-browser-") as folder:
        options.add_argument(f"--user-data-dir={folder}")
        driver = Chrome(options, Service(part("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
