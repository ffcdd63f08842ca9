"""Tests of the HTML report in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from resdeploy.bundle.bundle import Bundle
from resdeploy.json_documents import jsonable
from resdeploy.report.report import report
from resdeploy.runtime.verification.verify import verify
from tests.browser import open_browser
from tests.results import benchmark


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    yield from open_browser()


@pytest.fixture(scope="module")
def documents(
    tiny_bundle: Bundle, image_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return the JSON of `verify` and `bench`, and the path of the report about them."""
    folder = tmp_path_factory.mktemp("report")
    results = {
        "verification": jsonable(verify(tiny_bundle, data=image_data, max_drop=50)),
        "benchmark": jsonable(benchmark()),
    }
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    sources = [str(tiny_bundle.path), *(str(folder / f"{name}.json") for name in results)]
    report(sources, output=folder / "report.html", markdown=False)
    return {**results, "path": folder / "report.html"}


@pytest.fixture(scope="module")
def page(browser: webdriver.Chrome, documents: dict[str, Any]) -> webdriver.Chrome:
    browser.get_log("browser")  # type: ignore[no-untyped-call]  # drops the entries of earlier pages
    browser.get(documents["path"].as_uri())
    return browser


def rows(page: webdriver.Chrome, caption: str) -> list[list[str]]:
    """Return the cells of the table whose caption begins with `caption`."""
    for table in page.find_elements(By.TAG_NAME, "table"):
        if table.find_element(By.TAG_NAME, "caption").text.startswith(caption):
            return [
                [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
                for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
            ]
    raise AssertionError(f"there is no table {caption!r}")


def test_the_page_loads_nothing_and_logs_nothing(
    page: webdriver.Chrome, documents: dict[str, Any]
) -> None:
    assert page.get_log("browser") == []  # type: ignore[no-untyped-call]
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert [name for name in page.execute_script(script) if not name.startswith("data:")] == []
    source = documents["path"].read_text()
    assert "<script" not in source
    assert "http:" not in source.replace("http://www.w3.org", "")
    assert "https:" not in source


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_fits_every_screen(page: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_verdict_stands_at_the_top(page: webdriver.Chrome, documents: dict[str, Any]) -> None:
    assert documents["verification"]["verdict"] == "pass"
    assert page.find_element(By.CSS_SELECTOR, "header .verdict").text == "Pass"
    summary = page.find_element(By.CSS_SELECTOR, "header .summary").text
    fastest = max(documents["benchmark"]["results"], key=lambda line: line["images_per_second"])
    assert f"{fastest['speedup']:.2f} times as fast as PyTorch eager" in summary


def test_accuracies_are_those_of_the_json(
    page: webdriver.Chrome, documents: dict[str, Any]
) -> None:
    shown = rows(page, "Top-1 accuracy on 24 labelled images")
    lines = documents["verification"]["results"]
    limit = documents["verification"]["max_drop"]
    assert len(shown) == len(lines)
    for cells, line in zip(shown, lines):
        assert cells[1] == line["backend"]
        assert cells[2] == f"{line['top1']:.2f} %"
        assert cells[4:7] == [
            f"{line['drop']:+.2f}", f"{line['drop_upper95']:+.2f}, limit {limit:g}",
            line["verdict"],
        ]  # fmt: skip


def test_times_are_those_of_the_json(page: webdriver.Chrome, documents: dict[str, Any]) -> None:
    shown = rows(page, "Milliseconds per call")
    lines = documents["benchmark"]["results"]
    assert [cells[1:] for cells in shown] == [
        [
            f"{line['p50_ms']:.2f}", f"{line['p90_ms']:.2f}", f"{line['p99_ms']:.2f}",
            f"{line['images_per_second']:.1f}", f"{line['speedup']:.2f}x",
            f"{line['speedup_low']:.2f} to {line['speedup_high']:.2f}",
        ]
        for line in lines
    ]  # fmt: skip


def test_the_confusion_matrix_counts_every_image(
    page: webdriver.Chrome, documents: dict[str, Any]
) -> None:
    shown = rows(page, "Confusion matrix of int8-cpu")
    counts = [int(cell) for row in shown for cell in row[1:-1] if cell]
    assert sum(counts) == documents["verification"]["images"]
    lines = [r for r in documents["verification"]["results"] if r["encoding"] == "cpu"]
    # The page shows one of the engines.
    assert sorted(counts) in [sorted(count for _, _, count in r["confusion"]) for r in lines]


def test_every_table_and_plot_has_a_text_alternative(page: webdriver.Chrome) -> None:
    tables = page.find_elements(By.TAG_NAME, "table")
    plots = page.find_elements(By.TAG_NAME, "svg")
    assert len(tables) > 8
    assert len(plots) > 6
    for table in tables:
        assert table.find_element(By.TAG_NAME, "caption").text
    for plot in plots:
        assert len(plot.accessible_name) > 20
    assert page.execute_script("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(page: webdriver.Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        for selector in ("body", "caption span", "td", ".verdict", "dt", "nav a"):
            colours = page.execute_script(CONTRAST, selector)
            assert contrast(*colours) >= 4.5, (selector, colours)  # WCAG 2.2, AA
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


CONTRAST = """
const colour = name => {
  const canvas = document.createElement('canvas').getContext('2d');
  canvas.fillStyle = name;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const style = getComputedStyle(document.querySelector(arguments[0]));
return [colour(style.color), colour(getComputedStyle(document.body).backgroundColor)];
"""


def contrast(first: list[int], second: list[int]) -> float:
    """Return the contrast ratio of two colours.

    Source: W3C, "Web Content Accessibility Guidelines 2.2", relative luminance.
    """

    def luminance(colour: list[int]) -> float:
        linear = [
            value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
            for value in (channel / 255 for channel in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_prints_on_paper(page: webdriver.Chrome) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        navigation = page.find_element(By.TAG_NAME, "nav")
        assert not navigation.is_displayed()
        printed = page.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert len(printed) > 10_000
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
