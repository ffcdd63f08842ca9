"""The web page in a headless browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from resdeploy.bundle.bundle import Bundle
from resdeploy.tables import percentage
from tests.browser import accessibility_faults, open_browser, page_overflow, shown
from tests.samples import CLASSES
from tests.serving_process import PATIENCE, ServerProcess, picture


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    yield from open_browser()


def element(browser: webdriver.Chrome, name: str) -> WebElement:
    return browser.find_element(By.ID, name)


def until(browser: webdriver.Chrome, condition: Any) -> None:
    WebDriverWait(browser, PATIENCE, 0.05).until(lambda _: condition())


@pytest.fixture
def page(browser: webdriver.Chrome, server: ServerProcess) -> webdriver.Chrome:
    browser.get(f"http://127.0.0.1:{server.port}/")
    until(browser, lambda: element(browser, "state").text.startswith("ready"))
    return browser


def labels(page: webdriver.Chrome) -> list[str]:
    return [found.text for found in page.find_elements(By.CSS_SELECTOR, "#classes .label")]


def classify(page: webdriver.Chrome, path: Path) -> None:
    element(page, "file").send_keys(str(path))
    until(page, lambda: sorted(labels(page)) == sorted(CLASSES))


def test_a_chosen_picture_is_classified(
    page: webdriver.Chrome, server: ServerProcess, image_data: Path
) -> None:
    path = image_data / "val" / "red" / "000.png"
    classify(page, path)
    expected = server.ask("/v1/classify", path.read_bytes()).json
    predictions = expected["results"][0]["predictions"]
    assert labels(page) == [entry["label"] for entry in predictions]
    shown = [found.text for found in page.find_elements(By.CSS_SELECTOR, "#classes .number")]
    assert shown == [percentage(100 * entry["probability"]) for entry in predictions]
    assert element(page, "engine").text == "tiny: onnxruntime-cpu, int8-cpu"
    note = "The total is measured in this browser, the stages in the server. Other: sending"
    assert note in element(page, "answer").text
    assert element(page, "state").text == "ready: tiny (onnxruntime-cpu, int8-cpu)"
    assert element(page, "time-title").text.startswith("Answered in ")
    stages = [found.text for found in page.find_elements(By.CSS_SELECTOR, "#times dt")]
    assert stages == ["Decoding", "Queue", "Inference", "Other"]
    assert element(page, "preview").is_displayed()
    spoken = element(page, "spoken").get_attribute("textContent") or ""
    assert spoken.startswith(f"{predictions[0]['label']}, ")


def captions(page: webdriver.Chrome) -> list[str]:
    return [found.text for found in page.find_elements(By.CSS_SELECTOR, "#pictures button")]


def marked(page: webdriver.Chrome) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, "#pictures [aria-current=true]")


def test_several_pictures_are_classified(
    page: webdriver.Chrome, image_data: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "cat.png"
    broken.write_text("no picture")
    paths = [image_data / "val" / "red" / "000.png", broken, image_data / "val/blue/000.png"]
    element(page, "file").send_keys("\n".join(map(str, paths)))
    until(page, lambda: len(captions(page)) == 3)
    assert captions(page)[1] == "invalid file\ncat.png"
    assert element(page, "failed").text == "1 of 3 not classified"
    first, second, third = page.find_elements(By.CSS_SELECTOR, "#pictures button")
    until(page, lambda: marked(page) == [first])
    heights = {button.size["height"] for button in (first, second, third)}
    assert len(heights) == 1
    second.click()
    assert marked(page) == [second]
    assert element(page, "error").text.startswith("cat.png: The image cannot be decoded")
    first.click()
    assert marked(page) == [first]
    assert not element(page, "error").is_displayed()
    label, share, name = captions(page)[0].splitlines()
    assert (label, name) == (labels(page)[0], "000.png")
    assert share == page.find_element(By.CSS_SELECTOR, "#classes .number").text
    element(page, "camera").click()
    until(page, lambda: element(page, "shoot").is_displayed())
    element(page, "shoot").click()
    until(page, lambda: marked(page) == [])
    element(page, "camera").click()


@pytest.mark.parametrize("probability", [0, 7e-6, 0.0004, 0.0006, 0.5, 0.9996, 1 - 1e-9, 1])
def test_percentages_are_those_of_the_reports(page: webdriver.Chrome, probability: float) -> None:
    found = page.execute_script("return percentage(arguments[0])", probability)
    assert found == percentage(100 * probability)


def test_pictures_are_sent_again_when_the_model_is_ready(
    page: webdriver.Chrome, image_data: Path
) -> None:
    page.execute_script("""
        window.loading = true;
        const real = window.fetch, body = JSON.stringify({error: "the model is not ready"});
        const unavailable = () => new Response(body, {status: 503});
        window.fetch = async (path, options) => {
            if (loading && path.startsWith("/v1/classify")) return unavailable();
            if (!loading || path !== "/v1/stats") return real(path, options);
            const stats = await (await real(path, options)).json();
            stats.models[0].ready = false;
            return new Response(JSON.stringify(stats));
        };""")
    until(page, lambda: element(page, "state").text == "tiny is not ready")
    assert element(page, "state").get_attribute("class") == "state waiting"
    paths = [image_data / "val" / "red" / "000.png", image_data / "val" / "blue" / "000.png"]
    element(page, "file").send_keys("\n".join(map(str, paths)))
    until(page, lambda: "The picture is sent again" in element(page, "error").text)
    assert element(page, "error").text.startswith("The model is not ready. ")
    assert captions(page) == []
    page.execute_script("loading = false")
    until(page, lambda: len(captions(page)) == 2)
    assert not element(page, "error").is_displayed()


def test_print_shows_the_bars_and_no_buttons(page: webdriver.Chrome, image_data: Path) -> None:
    classify(page, image_data / "val" / "red" / "000.png")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not element(page, "camera").is_displayed()
        for selector in (".track span", "#stack span", "#times i"):
            (bar, *_) = page.find_elements(By.CSS_SELECTOR, selector)
            assert bar.value_of_css_property("print-color-adjust") == "exact"
        for part in page.find_elements(By.CSS_SELECTOR, "li, .stages"):
            assert part.value_of_css_property("break-inside") == "avoid"
        tops = {element(page, name).rect["y"] for name in ("picture-title", "result-title")}
        assert len(tops) == 1  # picture and classes share a page
        assert not page.find_element(By.CSS_SELECTOR, ".plots").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_warnings_of_the_bundle_are_shown(
    browser: webdriver.Chrome, page: webdriver.Chrome, tiny_bundle: Bundle, doubtful_bundle: Bundle
) -> None:
    assert not element(page, "warnings").is_displayed()
    with ServerProcess(tiny_bundle.path, doubtful_bundle.path, "--threads", 1) as server:
        server.until_ready()
        browser.get(f"http://127.0.0.1:{server.port}/")
        until(browser, lambda: element(browser, "state").text.startswith("ready: tiny"))
        assert not element(browser, "warnings").is_displayed()  # the other model has them
        element(browser, "model").send_keys("doubtful")
        until(browser, lambda: element(browser, "warnings").is_displayed())
        text = element(browser, "warnings").text
        assert text.startswith("Warning: doubtful: int8 deviates from FP32")
        remedy = browser.find_element(By.CSS_SELECTOR, "#warnings details")
        assert not remedy.get_attribute("open")
        browser.find_element(By.CSS_SELECTOR, "#warnings summary").click()
        assert remedy.get_attribute("open")
        assert remedy.text == "Remedy\nCalibrate on more images."
        assert " %" not in (element(browser, "warnings").get_attribute("textContent") or "")
        script = "return unbroken('check --image-size, or -a').map(part => part.className || part)"
        assert browser.execute_script(script) == ["check ", "option", ", or ", "option", ""]
        assert element(browser, "state").text.startswith("ready: doubtful")
        assert element(browser, "rates-top").text == "no requests yet"
        assert element(browser, "latencies-top").text == "no requests yet"


@pytest.mark.parametrize("name", ["cat.png", "cat.txt", "cat.pdf"])
def test_an_invalid_picture_shows_an_error(
    page: webdriver.Chrome, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_text("no picture")
    element(page, "file").send_keys(str(path))
    until(page, lambda: element(page, "error").is_displayed())
    assert element(page, "error").text.startswith(f"{name}: The image cannot be decoded")
    assert element(page, "error").get_attribute("role") == "alert"
    until(page, lambda: element(page, "undecoded").get_attribute("textContent"))
    assert not element(page, "preview").is_displayed()
    assert not element(page, "undecoded").is_displayed()  # the error says enough
    page.execute_script(
        "byId('error').hidden = true"
    )  # the server decodes what this browser cannot
    assert element(page, "undecoded").text == f"{name} cannot be shown"


def test_a_frame_of_the_camera_is_classified(page: webdriver.Chrome) -> None:
    element(page, "camera").click()
    until(page, lambda: element(page, "shoot").is_displayed())
    element(page, "shoot").click()
    until(page, lambda: len(labels(page)) == 3)
    element(page, "camera").click()
    until(page, lambda: not element(page, "video").is_displayed())


def test_the_page_works_with_the_keyboard(page: webdriver.Chrome) -> None:
    reached = []
    for _ in range(3):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        reached.append(page.switch_to.active_element.get_attribute("id"))
    assert reached[:2] == ["file", "camera"]
    element(page, "camera").send_keys(Keys.ENTER)
    until(page, lambda: element(page, "camera").get_attribute("aria-pressed") == "true")
    element(page, "camera").send_keys(Keys.SPACE)
    until(page, lambda: element(page, "camera").get_attribute("aria-pressed") == "false")


def test_all_controls_have_accessible_names(page: webdriver.Chrome) -> None:
    for found in page.find_elements(By.CSS_SELECTOR, "input, button, select, img, svg[role]"):
        if found.is_displayed():
            assert found.accessible_name, found.get_attribute("outerHTML")
    assert page.execute_script("return document.documentElement.lang") == "en"


def test_the_plots_show_the_statistics(page: webdriver.Chrome, image_data: Path) -> None:
    classify(page, image_data / "val" / "red" / "000.png")
    until(page, lambda: ", maximum " in element(page, "latency").text)  # of few requests
    # The median and the maximum beside the heading are of the last seconds, the plot of minutes.
    assert "Server latency, last 10 s" in page.find_element(By.TAG_NAME, "body").text
    assert element(page, "rates-top").text.startswith("top of the plot: ")
    assert element(page, "latencies-top").text.startswith("top of the plot: ")
    page.execute_script(
        "samples.push({...samples.at(-1), requests_per_second: 20, p50_ms: 1, p99_ms: 2}); draw()"
    )
    assert element(page, "latency").text == "median 1.0 ms, p99 2.0 ms"
    with shown(page, width=390):
        page.execute_script("samples.at(-1).p50_ms = samples.at(-1).p99_ms = 123456; draw()")
        card = page.find_element(By.CSS_SELECTOR, ".plots").rect
        latency = element(page, "latency").rect
        assert latency["x"] + latency["width"] <= card["x"] + card["width"]
    assert float(element(page, "rate").text) > 0
    assert "mean of the last 10 s" in page.find_element(By.CSS_SELECTOR, "figure").text
    line = page.find_element(By.CSS_SELECTOR, "#rates .first")
    until(page, lambda: (line.get_attribute("d") or "").startswith("M"))


def test_the_page_uses_this_server_only_and_violates_no_policy(
    page: webdriver.Chrome, server: ServerProcess, image_data: Path
) -> None:
    classify(page, image_data / "val" / "blue" / "000.png")
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    requested = page.execute_script(script)
    own = (f"http://127.0.0.1:{server.port}/", f"blob:http://127.0.0.1:{server.port}/")
    assert requested
    assert all(name.startswith(own) for name in requested)
    messages = [entry["message"] for entry in page.get_log("browser")]  # type: ignore[no-untyped-call]
    assert [text for text in messages if "Security Policy" in text or "Uncaught" in text] == []


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_fits_every_screen_width(
    page: webdriver.Chrome, image_data: Path, width: int
) -> None:
    classify(page, image_data / "val" / "red" / "000.png")
    with shown(page, width=width):
        assert page_overflow(page) == 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("label", ["x" * 500, "long words " * 50])
def test_long_names_stay_on_the_page_with_their_figures(
    page: webdriver.Chrome, server: ServerProcess, image_data: Path, width: int, label: str
) -> None:
    answer = server.ask("/v1/classify", picture(image_data)).json
    entry = {"label": label, "index": 0, "probability": 0.5}
    answer["results"][0]["predictions"] = [entry] * 5
    answer["model"] = label
    with shown(page, width=width):
        page.execute_script("show(arguments[0], 12); setState(arguments[1], 'good')", answer, label)
        assert page_overflow(page) == 0
        page.execute_script("show(arguments[0], 12)", answer)
        for found in page.find_elements(By.CSS_SELECTOR, "#classes .number, #engine"):
            outside = "const box = arguments[0].getBoundingClientRect(), card = "
            outside += "arguments[0].closest('section').getBoundingClientRect();"
            outside += "return box.right > card.right || box.left < card.left"
            assert not page.execute_script(outside, found)
        heights = {found.size["height"] for found in page.find_elements(By.CSS_SELECTOR, ".label")}
        assert max(heights) < 100  # three lines


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_of_the_server_has_an_accessibility_fault(
    page: webdriver.Chrome, server: ServerProcess, image_data: Path, scheme: str
) -> None:
    with shown(page, width=390, scheme=scheme):
        classify(page, image_data / "val" / "red" / "000.png")
        assert accessibility_faults(page, colours_only=scheme == "dark") == []
        page.get(f"http://127.0.0.1:{server.port}/docs")
        for entry in page.find_elements(By.TAG_NAME, "details"):
            page.execute_script("arguments[0].open = true", entry)
        assert page_overflow(page) == 0
        assert accessibility_faults(page, colours_only=scheme == "dark") == []


def test_the_page_asks_for_a_token(
    browser: webdriver.Chrome, tiny_bundle: Bundle, image_data: Path
) -> None:
    with ServerProcess(tiny_bundle.path, environment={"RESDEPLOY_TOKEN": "secret"}) as locked:
        locked.until_ready()
        browser.get(f"http://127.0.0.1:{locked.port}/")
        until(browser, lambda: element(browser, "token").is_displayed())
        element(browser, "file").send_keys(str(image_data / "val" / "red" / "000.png"))
        until(browser, lambda: element(browser, "error").is_displayed())
        element(browser, "token").send_keys("wrong", Keys.ENTER)
        until(browser, lambda: "refuses" in element(browser, "refused").text)
        element(browser, "token").clear()
        element(browser, "token").send_keys("secret", Keys.ENTER)
        until(browser, lambda: element(browser, "state").text.startswith("ready"))
        until(browser, lambda: len(captions(browser)) == 1)  # the picture is sent again
        assert not element(browser, "error").is_displayed()
        browser.get("about:blank")


def test_more_pictures_can_be_chosen_after_the_first(
    page: webdriver.Chrome, image_data: Path
) -> None:
    assert not element(page, "choose").is_displayed()  # the empty box is the button
    classify(page, image_data / "val" / "red" / "000.png")
    assert element(page, "choose").is_displayed()
    page.execute_script("byId('file').addEventListener('click', event => {"
                        "  event.preventDefault(); window.asked = true; })")  # fmt: skip
    element(page, "choose").click()
    assert page.execute_script("return asked")


def test_the_classes_that_are_not_shown_have_a_sum(
    page: webdriver.Chrome, server: ServerProcess, image_data: Path
) -> None:
    answer = server.ask("/v1/classify", picture(image_data)).json
    page.execute_script("show(arguments[0], 12)", answer)
    assert not element(page, "others").is_displayed()  # all classes are shown
    entries = [{"label": "a", "index": 0, "probability": share} for share in (0.5, 0.25)]
    answer["results"][0]["predictions"] = entries
    page.execute_script("show(arguments[0], 12)", answer)
    assert element(page, "others").text == "All other classes: 25.0 %"


def test_many_pictures_leave_the_classes_on_the_first_screen(
    page: webdriver.Chrome, image_data: Path
) -> None:
    paths = sorted((image_data / "val").rglob("*.png"))[:12]
    with shown(page, width=390):
        element(page, "file").send_keys("\n".join(map(str, paths)))
        until(page, lambda: len(captions(page)) == len(paths))
        tops = {found.rect["y"] for found in page.find_elements(By.CSS_SELECTOR, "#pictures li")}
        assert len(tops) == 1
        assert element(page, "classes").rect["y"] < 800
        assert page_overflow(page) == 0
