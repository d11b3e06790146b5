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
PHONE, DESK = {"width": 375, "height": 700}, {"width": 1400, "height": 900}


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


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_the_page_is_whole_and_keeps_to_itself(name: str, size: dict, pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_page(viewport=size)  # type: ignore[arg-type]
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
    assert page.evaluate(
        "document.documentElement.scrollWidth <= window.innerWidth"
    )  # tables scroll in their own boxes
    assert page.evaluate("[...document.images].every(image => image.alt)")
    page.close()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_dark_mode_is_dark(name: str, pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages[name].as_uri())
    channels = page.evaluate("getComputedStyle(document.documentElement).colorScheme")
    assert channels == "light dark"
    dark = page.screenshot()
    page.emulate_media(color_scheme="light")
    assert page.screenshot() != dark
    page.close()


def test_wide_tables_are_reached_by_keyboard(pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_page(viewport=PHONE)  # type: ignore[arg-type]
    page.goto(pages["report"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Retention by task"
    page.close()
