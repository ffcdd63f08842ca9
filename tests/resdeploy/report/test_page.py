"""Tests of the HTML pages (reports, comparisons, trainings, scorings) in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import MANIFEST
from resdeploy.json_documents import jsonable
from resdeploy.pages.template import to_html
from resdeploy.report.report import report
from resdeploy.report.scoring import scoring_page
from resdeploy.runtime.verification.verify import verify
from tests.browser import accessibility_faults, open_browser, page_overflow, shown
from tests.results import benchmark, comparison, scoring
from tests.train.run.test_report import page_of_a_run

KINDS = ("report", "comparison", "training", "scoring")


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
def paths(
    documents: dict[str, Any],
    tiny_bundle: Bundle,
    image_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Return a page of each kind; that of a comparison has both bundles, and two verifications."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "comparison.json").write_text(json.dumps(jsonable(comparison())))
    other = Path(shutil.copytree(tiny_bundle.path, folder / "other.bundle"))
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["artifacts"][0]["parity"]["max_error"] *= 2  # so that its tables are not the same
    (other / MANIFEST).write_text(json.dumps(manifest))
    verified = str(documents["path"].parent / "verification.json")
    sources = [str(tiny_bundle.path), str(other), str(folder / "comparison.json"), *[verified] * 2]
    report(sources, output=folder / "comparison.html", markdown=False)
    (folder / "training.html").write_bytes(to_html(page_of_a_run(image_data)))
    (folder / "scoring.html").write_bytes(to_html(scoring_page(scoring())))
    others = {kind: folder / f"{kind}.html" for kind in KINDS[1:]}
    return {"report": documents["path"], **others}


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


def test_the_verdict_stands_at_the_top(page: webdriver.Chrome, documents: dict[str, Any]) -> None:
    assert documents["verification"]["verdict"] == "pass"
    verdict = page.find_element(By.CSS_SELECTOR, "header .verdict").text
    environment = documents["verification"]["environment"]
    assert verdict.startswith("Pass: tiny.bundle (resnet10 at 32 pixels) verified on ")
    assert environment["date"][:10] in verdict
    summary = page.find_element(By.CSS_SELECTOR, "header .summary").text
    fastest = max(documents["benchmark"]["results"], key=lambda line: line["images_per_second"])
    assert f"{fastest['speedup']:.2f} times as fast as PyTorch eager" in summary


def test_accuracies_are_those_of_the_json(
    page: webdriver.Chrome, documents: dict[str, Any]
) -> None:
    shown = rows(page, "Top-1 accuracy on 24 labelled images")
    lines = documents["verification"]["results"]
    assert len(shown) == len(lines)
    for cells, line in zip(shown, lines):
        assert cells[0].endswith(f" on {line['backend']}")
        assert cells[1:5] == [
            line["verdict"], f"{line['drop']:+.2f}", f"{line['drop_upper95']:+.2f}",
            f"{line['top1']:.2f} %",
        ]  # fmt: skip


def test_times_are_those_of_the_json(page: webdriver.Chrome, documents: dict[str, Any]) -> None:
    shown = rows(page, "Latency and throughput")
    lines = documents["benchmark"]["results"]
    assert [cells[1:] for cells in shown] == [
        [
            f"{line['p50_ms']:.2f}", f"{line['speedup']:.2f}x",
            f"{line['speedup_low']:.2f} to {line['speedup_high']:.2f}",
            f"{line['images_per_second']:.1f}", f"{line['p90_ms']:.2f}", f"{line['p99_ms']:.2f}",
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
    plots = page.find_elements(By.CSS_SELECTOR, "figure > svg")
    assert len(tables) > 8
    assert len(plots) > 6
    for table in tables:
        assert table.find_element(By.TAG_NAME, "caption").text
    for plot in plots:
        assert len(plot.accessible_name) > 20
    assert page.execute_script("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_an_accessibility_fault(
    browser: webdriver.Chrome, paths: dict[str, Path], kind: str, scheme: str
) -> None:
    with shown(browser, scheme=scheme):
        browser.get(paths[kind].as_uri())
        assert accessibility_faults(browser, colours_only=scheme == "dark") == []


# The boxes of the texts of each plot, and of the parts of each line that no text may touch.
BOXES = """
const box = (element, margin = 0) => {
  const { left, right, top, bottom } = element.getBoundingClientRect();
  return [left - margin, right + margin, top - margin, bottom + margin];
};
const parts = line => Array.from({ length: 200 }, (_, index) => {
  const place = line.getPointAtLength(line.getTotalLength() * index / 199);
  const { x, y } = place.matrixTransform(line.getScreenCTM());
  return [x - 1, x + 1, y - 1, y + 1];
});
return [...document.querySelectorAll('figure > svg')].map(plot => ({
  frame: box(plot),
  texts: [...plot.querySelectorAll('text')].map(text => [text.textContent, box(text)]),
  lines: [
    ...[...plot.querySelectorAll('line[class^=mark], .whisker')].map(line => box(line, 1)),
    ...[...plot.querySelectorAll('polyline')].flatMap(parts),
  ],
}));
"""
TABLES = """
return [...document.querySelectorAll('.scroll')].map(region => [
  region.scrollWidth > region.clientWidth,
  getComputedStyle(region.querySelector('.hint')).visibility == 'visible',
  region.querySelector('thead').getBoundingClientRect().top
    - region.querySelector('.hint').getBoundingClientRect().bottom,
]);
"""
# The horizontal distance of each upright head of a confusion matrix from the centre of its column.
HEADS = """
return [...document.querySelectorAll('.tall thead th')].map(head => {
  const range = document.createRange();
  range.selectNodeContents(head);
  const text = range.getBoundingClientRect(), column = head.getBoundingClientRect();
  return Math.abs(text.left + text.right - column.left - column.right) / 2;
});
"""


def touch(first: list[float], second: list[float]) -> bool:
    """Return True if two boxes share more than a pixel, which is the blank margin of a letter."""
    width = min(first[1], second[1]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[2], second[2])
    return width > 1 and height > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_every_page_fits_every_screen(
    browser: webdriver.Chrome, paths: dict[str, Path], kind: str, width: int
) -> None:
    with shown(browser, width=width):
        browser.get(paths[kind].as_uri())
        assert page_overflow(browser) == 0
        WebDriverWait(browser, 10).until(  # a script of the page shows the hint after the layout
            lambda shown: all(row[0] == row[1] for row in shown.execute_script(TABLES))
        )
        for _, _, distance in browser.execute_script(TABLES):
            assert 0 <= distance < 12  # from the head of the table
        for plot in browser.execute_script(BOXES):
            texts, (left, right, _, _) = plot["texts"], plot["frame"]
            for index, (words, box) in enumerate(texts):
                assert left <= box[0] < box[1] <= right, words
                assert not [other for other, place in texts[:index] if touch(box, place)], words
                assert not [line for line in plot["lines"] if touch(box, line)], words


def test_upright_heads_stand_over_their_columns(
    browser: webdriver.Chrome, image_data: Path, tmp_path: Path
) -> None:
    names = ("automobile", "mobile home", "car")
    (tmp_path / "x.html").write_bytes(to_html(page_of_a_run(image_data, classes=names)))
    browser.get((tmp_path / "x.html").as_uri())
    distances = browser.execute_script(HEADS)
    assert len(distances) == 4
    assert max(distances) < 1


def test_long_row_names_of_a_matrix_stay_in_place(
    browser: webdriver.Chrome, image_data: Path, tmp_path: Path
) -> None:
    names = tuple(f"{name} on a leather strap, brown or black" for name in "abcdefghijkl")
    confusion = np.eye(len(names), dtype=np.int64)
    run = page_of_a_run(image_data, classes=names, confusion=confusion)
    (tmp_path / "x.html").write_bytes(to_html(run))
    with shown(browser, width=320):
        browser.get((tmp_path / "x.html").as_uri())
        region = browser.find_element(By.CSS_SELECTOR, ".scroll:has(.matrix)")
        name = region.find_element(By.CSS_SELECTOR, "tbody th")
        head = region.find_element(By.CSS_SELECTOR, "thead")
        browser.execute_script("arguments[0].scrollLeft = 60", region)
        assert browser.execute_script("return arguments[0].scrollLeft", region) > 0
        assert name.rect["x"] == region.rect["x"]
        assert name.rect["width"] < region.rect["width"] / 2
        assert head.size["height"] < 160


def test_ten_classes_with_short_names_fit_a_phone(
    browser: webdriver.Chrome, paths: dict[str, Path]
) -> None:
    with shown(browser, width=390):
        browser.get(paths["scoring"].as_uri())
        region = browser.find_element(By.CSS_SELECTOR, ".scroll:has(.matrix)")
        widths = "return [arguments[0].scrollWidth, arguments[0].clientWidth]"
        needed, available = browser.execute_script(widths, region)
        assert needed == available
    cells = region.find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")[:-1]
    assert len({round(cell.rect["width"]) for cell in cells}) == 1  # whatever their counts are


def test_heads_of_wide_tables_use_several_lines(
    browser: webdriver.Chrome, paths: dict[str, Path]
) -> None:
    with shown(browser, width=390):
        browser.get(paths["comparison"].as_uri())
        script = """return [...document.querySelectorAll('thead th')].map(
            ({ textContent, offsetHeight }) => [textContent, offsetHeight])"""
        heights = dict(browser.execute_script(script))
        assert heights["images to decide"] > 50  # pixels, of two lines or more


def test_no_line_ends_within_an_option(browser: webdriver.Chrome, paths: dict[str, Path]) -> None:
    browser.get(paths["training"].as_uri())
    code = browser.find_element(By.CSS_SELECTOR, "header code")
    options = code.find_elements(By.CLASS_NAME, "option")
    assert [option.text for option in options] == ["--int8"]
    assert {option.value_of_css_property("white-space") for option in options} == {"nowrap"}
    assert code.text == "resdeploy export one --int8"  # what is copied is unchanged


def test_the_page_prints_on_paper(page: webdriver.Chrome, documents: dict[str, Any]) -> None:
    page.get(documents["path"].as_uri())  # earlier tests opened others
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        navigation = page.find_element(By.TAG_NAME, "nav")
        assert not navigation.is_displayed()
        # A section on a new page leaves the page before it half empty.
        breaks = page.execute_script(
            "return [...document.querySelectorAll('section')].map("
            "section => getComputedStyle(section).breakBefore)"
        )
        assert set(breaks) == {"auto"}
        # A long table that may not break leaves the page before it half empty.
        tables = page.execute_script(
            "return [...document.querySelectorAll('table')].map(table => "
            "[table.rows.length, getComputedStyle(table).breakInside])"
        )
        assert {inside for length, inside in tables if length > 12} == {"auto"}
        printed = page.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert len(printed) > 10_000
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
