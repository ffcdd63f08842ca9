"""A headless browser for tests of pages, and checks that every page has to pass."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from selenium import webdriver

SWITCHES = (
    "--headless=new",
    "--window-size=1280,960",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--disable-gpu",
    "--disable-dev-shm-usage",
)


def open_browser() -> Iterator[webdriver.Chrome]:
    """Yield headless Chromium, or skip the test if it is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("pages are not tested: there is no chromium, or no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (*SWITCHES, *(("--no-sandbox",) if os.geteuid() == 0 else ())):
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@contextmanager
def shown(browser: webdriver.Chrome, *, width: int = 1280, scheme: str = "light") -> Iterator[None]:
    """Show pages on a screen of this width, a phone below 500 pixels, in this colour scheme."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def accessibility_faults(browser: webdriver.Chrome, *, colours_only: bool = False) -> list[str]:
    """Return the faults that axe-core finds in the page, each with the first element concerned.

    With `colours_only`, only contrasts are checked, for a second colour scheme. The script is that
    of the package axe-playwright-python, of which nothing else is used.
    """
    package = find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("accessibility is not tested: axe-playwright-python is not installed")
    browser.execute_script((Path(package.origin).parent / "axe.min.js").read_text())
    faults: list[str] = browser.execute_async_script(
        "const [rules, done] = arguments;"
        "axe.run(rules ? {runOnly: rules} : {}).then(result => done(result.violations.map("
        "  fault => fault.id + ': ' + fault.nodes[0].html)))",
        ["color-contrast"] if colours_only else None,
    )
    return faults


def page_overflow(browser: webdriver.Chrome) -> int:
    """Return by how many pixels the page is wider than the screen."""
    return int(
        browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    )
