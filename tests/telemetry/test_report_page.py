"""The report in a real browser: it asks nobody for anything and fits a phone."""

import re
import shutil

import pytest

from moesaic.telemetry.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def report(tmp_path, fake_rows, fake_config):
    path = tmp_path / "report.html"
    config = {**fake_config, "train": {"out": "runs/" + "x" * 200}}
    samples = [{"prompt": "y" * 300, "text": "\n    z"}]
    write_report("a-run-" * 30, fake_rows(), config, {"samples": samples, "baselines": {"unigram": 6.3}}, path)
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_makes_no_request_and_reports_no_error(browser, report, scheme):
    page = browser.new_page(color_scheme=scheme)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report)
    assert [url for url in requests if not url.startswith(("file://", "data:"))] == []
    assert complaints == []
    page.close()


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_page_does_not_overflow_sideways(browser, report, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_text_of_charts_stands_out_in_light_and_dark(browser, report):
    def read_brightness(page, selector, style):
        script = f"getComputedStyle(document.querySelector('{selector}')).{style}"
        return sum(int(part) for part in re.findall(r"\d+", page.evaluate(script))[:3]) / 3

    contrasts = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(report)
        card = read_brightness(page, "figure", "backgroundColor")
        contrasts.append(card - read_brightness(page, "figure svg text", "fill"))
        page.close()
    assert contrasts[0] > 100
    assert contrasts[1] < -100
