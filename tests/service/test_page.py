"""The page in a real browser, on a real server process: a new user's first hour."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from handful.data.files import read_cohort, read_label_map
from handful.data.volume import IGNORE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
MINUTES = 4 * 60 * 1000


@pytest.fixture
def address(cohort: Path) -> Iterator[str]:
    """The page of a server process that works on the cohort."""
    command = [sys.executable, "-c", "from handful.cli import main; main()", "serve", str(cohort), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_first_hour_from_scans_to_exported_label_maps(address: str, cohort: Path):
    from playwright.sync_api import Page, sync_playwright

    def drag(page: Page, *corners: tuple[float, float]) -> None:
        """From one place of the canvas to others, as shares of the slice's picture."""
        box = page.locator(".stage canvas").bounding_box()
        assert box is not None
        frame = page.evaluate(
            "(() => { const f = handful.label.view.frame(), v = handful.label.view;"
            " return [f.left, f.top, f.sx * v.width, f.sy * v.height]; })()"
        )
        places = [(box["x"] + frame[0] + x * frame[2], box["y"] + frame[1] + y * frame[3]) for x, y in corners]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=4)
        page.mouse.up()
        settled(page)

    def settled(page: Page) -> None:
        page.wait_for_function("!document.querySelector('#label').classList.contains('busy')")
        page.wait_for_timeout(150)

    def job(page: Page, button: str, done: str) -> None:
        page.click("nav [data-view=cases]")
        page.click(f"{button}:not([disabled])")
        page.wait_for_selector(f"#message:has-text('{done}')", timeout=MINUTES)
        page.wait_for_timeout(300)

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 800}, bypass_csp=True)  # to ask the page
        page.set_default_timeout(MINUTES)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.fill("#names", "ball\negg")
        page.click("#saveNames")
        page.wait_for_function("handful.state.labels.length === 2")
        page.click("[data-case=scan_0]")
        page.wait_for_function("handful.label.view.pixels")
        for number, tool in ((2, "x"), (3, "x"), (4, "b")):
            page.evaluate(f"handful.label.go({number})")
            page.wait_for_function(f"handful.label.number === {number} && handful.label.view.classes")
            page.wait_for_timeout(300)
            page.keyboard.press("1")
            page.keyboard.press(tool)
            drag(page, (0.15, 0.4), (0.45, 0.9))
            page.keyboard.press("2")
            page.keyboard.press("b")
            drag(page, (0.7, 0.3), (0.75, 0.45))
            page.keyboard.press("Enter")
            page.wait_for_selector(".bench.finished")
        reference = next(one for one in read_cohort(cohort).cases if one.name == "scan_0").read_reference()
        assert reference is not None
        assert {1, 2} <= set(np.unique(reference.array[reference.array != IGNORE]))

        page.click("nav [data-view=cases]")
        page.select_option("label:has-text('Method') select", "fate")
        job(page, "#learn", "Learning is done")
        job(page, "#segment", "Segmenting is done")
        page.click("nav [data-view=review]")
        assert page.locator(".queue li").count() == 2
        worst = page.locator(".queue li").first.get_attribute("data-case")
        page.locator(".queue li").first.locator("text=Correct").click()
        page.wait_for_function("handful.label.view.classes")
        page.wait_for_timeout(500)
        page.keyboard.press("1")
        page.keyboard.press("b")
        drag(page, (0.2, 0.6), (0.3, 0.6))
        painted = page.evaluate("[...handful.label.view.classes]")
        number, size = page.evaluate("[handful.label.number, handful.label.case.size]")
        page.keyboard.press("Enter")
        page.wait_for_selector(".bench.finished")
        page.click("nav [data-view=review]")
        page.locator(".queue li").first.locator("text=Accept").click()
        page.wait_for_selector(".queue .settled")
        page.click("nav [data-view=export]")
        with page.expect_download() as waiting:
            page.click("[data-form=nifti]")
        archive = zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes()))
        details = page.evaluate("handful.label.case")
        browser.close()
    assert problems == []
    assert all(url.startswith((address, "blob:", "data:")) for url in requests)
    assert {"labels/scan_0.nii.gz", "labels/scan_1.nii.gz", "labels/scan_2.nii.gz"} <= set(archive.namelist())
    exported = cohort / "exported"
    archive.extractall(exported)
    label_map = read_label_map(exported / "labels" / f"{worst}.nii.gz")
    index = details["slices"] - 1 - number if details["flipped"] else number
    shown = np.take(label_map.array, index, axis=details["axis"])
    assert sorted(shown[shown > 0].tolist()) == sorted(value for value in painted if value)
    assert sorted(shown.shape) == sorted(size)
