"""The built site in a headless browser: its wide tables and blocks, on a screen and in print."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import open_browser, shown
from tests.docs.pages import ROOT

PRINTED = {"width": 703, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4, its margins


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return Path(folder).as_uri()


@pytest.fixture(scope="module")
def browser(site: str) -> Iterator[webdriver.Chrome]:
    yield from open_browser()


def test_the_tables_of_figures_fit_and_their_rows_have_one_line(
    browser: webdriver.Chrome, site: str
) -> None:
    browser.get(f"{site}/performance.html")
    script = "return [...document.querySelectorAll('td')].map(cell => cell.offsetHeight)"
    heights = browser.execute_script(script)
    assert len(heights) > 100
    assert max(heights) < 50
    scrolling = "return document.querySelectorAll('.scrolls').length"
    WebDriverWait(browser, 10, 0.1).until(lambda page: page.execute_script(scrolling) == 0)
    align = "return getComputedStyle(document.querySelector('td:nth-child(2)')).textAlign"
    assert browser.execute_script(align) == "left"
    footer = "return document.querySelector('footer').offsetHeight"
    assert browser.execute_script(footer) == 0


def test_the_copy_button_lies_on_the_code(browser: webdriver.Chrome, site: str) -> None:
    with shown(browser, width=390):
        browser.get(f"{site}/tutorial.html")
        script = """return [...document.querySelectorAll('pre:has(> .scrolls)')].map(block =>
            block.querySelector('.md-code__nav').getBoundingClientRect().top
            - block.querySelector('code').getBoundingClientRect().top)"""
        offsets = browser.execute_script(script)
        assert offsets
        assert min(offsets) >= 0


def test_the_copy_button_appears_with_the_pointer_or_the_keyboard(
    browser: webdriver.Chrome, site: str
) -> None:
    browser.get(f"{site}/int8-accuracy.html")
    script = "return getComputedStyle(document.querySelector('.md-code__nav')).opacity"
    assert browser.execute_script(script) == "0"
    browser.execute_script("document.querySelector('.md-code__nav button').focus()")
    assert browser.execute_script(script) == "1"


def test_outputs_of_commands_use_the_width(browser: webdriver.Chrome, site: str) -> None:
    """Lines of 110 characters fit on a screen of 1280 pixels, and short commands on a phone."""
    with shown(browser, width=1280):
        browser.get(f"{site}/tutorial.html")
        scrolling = "return [...document.querySelectorAll('.scrolls')].map(box => box.textContent)"
        assert browser.execute_script(scrolling) == []
        sizes = """return [...document.querySelectorAll('pre > code')].map(code =>
            getComputedStyle(code).fontSize)"""
        assert len(set(browser.execute_script(sizes))) == 1
    browser.get(f"{site}/tutorial.html")
    script = """const [code] = document.querySelectorAll('pre > code');
        code.textContent = 'x'.repeat(arguments[0]);
        code.style.setProperty('--columns', arguments[0]);
        return code.scrollWidth - code.clientWidth"""
    assert browser.execute_script(script, 110) <= 0
    with shown(browser, width=390):
        browser.get(f"{site}/int8-accuracy.html")
        assert browser.execute_script(script, len("resdeploy verify r34.bundle --data photos")) <= 0


def test_a_page_without_sections_uses_the_width(browser: webdriver.Chrome, site: str) -> None:
    browser.get(f"{site}/index.html")
    script = "return document.querySelector('.md-sidebar--secondary').offsetWidth"
    assert browser.execute_script(script) == 0


def test_headings_have_no_empty_line_on_a_phone(browser: webdriver.Chrome, site: str) -> None:
    """The invisible sign of a link to the heading would wrap."""
    with shown(browser, width=390):
        browser.get(f"{site}/tutorial.html")
        script = "return [...document.querySelectorAll('.headerlink')].map(e => e.offsetHeight)"
        assert set(browser.execute_script(script)) == {0}


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("page", ["own-classifier", "int8-accuracy", "commands", "quantization"])
def test_no_line_ends_in_an_option(
    browser: webdriver.Chrome, site: str, page: str, media: str
) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", PRINTED if media == "print" else size
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    try:
        browser.get(f"{site}/{page}.html")
        script = """const broken = [];
            for (const code of document.querySelectorAll('.md-typeset :not(pre) > code')) {
                const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
                for (let node; node = walker.nextNode();) {
                    for (const match of node.data.matchAll(/--?[A-Za-z][\\w-]*/g)) {
                        const range = document.createRange();
                        range.setStart(node, match.index);
                        range.setEnd(node, match.index + match[0].length);
                        const tops = [...range.getClientRects()].map(box => Math.round(box.top));
                        if (new Set(tops).size > 1) broken.push(match[0]);
                    }
                }
            }
            return broken"""
        assert browser.execute_script(script) == []
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("page", ["performance", "tutorial"])
def test_print_shows_whole_tables_and_no_buttons(
    browser: webdriver.Chrome, site: str, page: str
) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PRINTED)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.get(f"{site}/{page}.html")
        script = """return [...document.querySelectorAll('td, pre, .md-code__nav')].filter(part =>
            part.getBoundingClientRect().right > innerWidth
            || part.matches('.md-code__nav') && part.offsetHeight).map(part => part.outerHTML)"""
        assert browser.execute_script(script) == []
        if page == "tutorial":  # the table of `verify` is not wrapped
            script = """const code = [...document.querySelectorAll('pre > code')].find(code =>
                code.textContent.includes('$ resdeploy verify'));
            return code.offsetHeight / parseFloat(getComputedStyle(code).lineHeight)
                / code.textContent.trim().split('\\n').length"""
            assert browser.execute_script(script) < 1.3  # with the space around it
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
