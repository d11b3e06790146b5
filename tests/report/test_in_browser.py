"""The pages in a real browser: no console message, no request, every picture drawn, nothing cut off
on a phone, dark mode honoured.

Needs a Chromium on the machine (`apt install chromium`); without one these tests say so and are
skipped.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, sync_playwright
from report.test_report import report

from loki_ds.report.build import write_report
from loki_ds.report.compare import compare_runs, write_comparison
from loki_ds.report.pictures import heat_map, retention

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WIDTHS = (375, 600, 900, 1440, 1920)

# Captions, cells and the rest that are wider than what holds them; a wide table scrolls by itself.
WIDER = """[...document.querySelectorAll("table, caption, th, td, figcaption, p, pre, dd, summary, nav, h1, h2")]
    .filter(box => box.getClientRects().length && box.closest("thead") === null || innerWidth > 592)
    .filter(box => getComputedStyle(box.closest("table") || box).overflowX !== "auto")
    .filter(box => box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).display !== "inline"
        || box.getBoundingClientRect().right > box.parentElement.getBoundingClientRect().right + 1)
    .map(box => box.tagName + ": " + box.textContent.slice(0, 60))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and a comparison, with pictures and a long run name."""
    folder = tmp_path_factory.mktemp("pages")
    heat_map(torch.randn(3, 4, 300), folder / "heat.png")
    for name, selection, lost in (
        ("loki+training.learning_rate=1e-4+selection.quota=20", "layer_balanced", 10),
        ("random", "random", 40),
    ):
        made = report(f"runs/tiny/{name}", selection, lost, n=100)
        retention(made["tasks"], 0.01, folder / "retention.png")
        write_report(made, folder / name / "report", {"scores": folder / "heat.png", "tasks": folder / "retention.png"})
    runs = sorted(path.parent for path in folder.glob("*/report"))
    write_comparison(compare_runs(runs), folder / "together")
    return {"report": runs[0] / "report/report.html", "compare": folder / "together/compare.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "compare"])
def test_the_page_is_whole_and_keeps_to_itself(name: str, width: int, pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.images.length") >= 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(WIDER) == []  # nothing is cut off
    rows = "[...document.querySelectorAll('tbody tr')].every(row => getComputedStyle(row).display === 'table-row')"
    assert page.evaluate(rows) is (width >= 600)  # a table stays one, and is a list on a phone
    assert page.evaluate("[...document.images].every(image => image.alt)")
    page.close()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_dark_mode_is_dark(name: str, pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages[name].as_uri())
    channels = page.evaluate("getComputedStyle(document.documentElement).colorScheme")
    assert channels == "light dark"
    dark = page.screenshot()
    assert page.evaluate("getComputedStyle(document.images[0]).filter").startswith("invert")
    page.emulate_media(color_scheme="light")
    assert page.screenshot() != dark
    page.close()


def test_the_contents_lead_to_their_places(pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(link => link.getAttribute('href'))")
    assert len(targets) >= 6
    assert page.evaluate("targets => targets.every(target => document.querySelector(target))", targets)


def test_on_paper_every_document_is_there(pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('.flip').getClientRects().length") == 1
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
