"""The page in a real browser, on a real server process: a new user's first hour."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from handful.data.files import read_cohort, read_label_map, write_volume
from handful.data.volume import IGNORE, Geometry, Volume
from handful.service.jobs import Job
from handful.service.workspace import Workspace, id_of

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
MINUTES = 4 * 60 * 1000


@contextmanager
def serving(cohort: Path) -> Iterator[str]:
    """The address of the page of a server process that works on the cohort."""
    command = [sys.executable, "-c", "from handful.cli import main; main()", "serve", str(cohort), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


@contextmanager
def page_of(address: str) -> Iterator[Page]:
    """The page in Chromium; an error of its code that nothing has caught fails the test."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 800}, bypass_csp=True)
        page.set_default_timeout(MINUTES)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
    assert problems == []


@pytest.fixture
def address(cohort: Path) -> Iterator[str]:
    with serving(cohort) as found:
        yield found


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_first_hour_from_scans_to_exported_label_maps(address: str, cohort: Path):
    from playwright.sync_api import sync_playwright

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
        with page.expect_response("**/actions"):
            page.mouse.up()
        page.wait_for_function("!document.querySelector('#label').classList.contains('busy')")

    def job(page: Page, button: str, done: str) -> None:
        page.click("nav [data-view=cases]")
        page.click(f"{button}:not([disabled])")
        page.wait_for_selector(f"#message:has-text('{done}')", state="attached")  # it may be hidden again by now

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
            page.wait_for_function(f"handful.label.shown === {number}")
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
        page.wait_for_function("document.querySelectorAll('.queue li').length === 2")
        worst = page.locator(".queue li").first.get_attribute("data-case")
        page.locator(".queue li").first.locator("text=Correct").click()
        page.wait_for_function(f"handful.label.case?.name === '{worst}' && handful.label.shown !== null")
        page.keyboard.press("1")
        page.keyboard.press("b")
        drag(page, (0.2, 0.6), (0.3, 0.6))
        painted = page.evaluate("[...handful.label.view.classes]")
        number, size = page.evaluate("[handful.label.number, handful.label.case.size]")
        page.keyboard.press("Enter")
        page.wait_for_function(f"handful.state.cases.find((one) => one.name === '{worst}').status === 'labelled'")
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


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_problems_stay_until_they_are_dismissed_and_unreadable_scans_are_skipped(cohort: Path):
    damaged = cohort / "images" / "scan_0.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    (cohort / "dataset.json").write_text('{"labels": {"1": "ball"}}', "utf-8")
    cases = {case.name: case for case in read_cohort(cohort).cases}
    suggested = [{"id": id_of(cases[name]), "axis": 2, "index": 3, "reason": "new"} for name in ("scan_0", "scan_1")]
    ended = {"options": {}, "state": "done", "ended": 1.0}
    failures = [{"case": "scan_2", "reason": "too large"}]
    jobs = Workspace(cohort).jobs
    jobs.mkdir()
    Job(number=1, kind="segment", result={"failures": failures, "estimate": None}, **ended).write(
        jobs / "job-000001.json"
    )
    Job(number=2, kind="suggest", result={"suggestions": suggested}, **ended).write(jobs / "job-000002.json")
    with serving(cohort) as address, page_of(address) as page:
        page.wait_for_selector(".bad:has-text('Not segmented'):has-text('scan_2: too large')")
        page.wait_for_selector("[data-case=scan_0] .no-picture")
        page.keyboard.press("n")
        page.wait_for_function("handful.label.case?.name === 'scan_1'")
        page.click("nav [data-view=cases]")
        assert "scan_0: " in str(page.text_content("details.bad"))
        page.click("[data-dismiss=segment]")
        page.wait_for_function("!document.querySelector('[data-dismiss]')")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_end_of_a_job_is_announced_after_whatever_has_read_its_state_first(cohort: Path):
    (cohort / "dataset.json").write_text('{"labels": {"1": "ball"}}', "utf-8")
    file = Workspace(cohort).jobs / "job-000001.json"
    file.parent.mkdir()
    running = Job(number=1, kind="suggest", options={}, pid=os.getpid())
    running.write(file)
    with serving(cohort) as address, page_of(address) as page:
        page.wait_for_function("handful.state.job?.state === 'running'")
        replace(running, state="done", ended=1.0, result={"suggestions": []}).write(file)
        page.evaluate("handful.refresh()")  # as after a slice is finished
        page.wait_for_selector("#message:has-text('is done')", state="attached")


def oblique(angle: float = 0.35) -> np.ndarray:
    """A turn about two axes."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


DIRECTIONS = {"ras": np.diag([1.0, 1, 1]), "lps": np.diag([-1.0, -1, 1]), "oblique": oblique()}
BRIGHT = (17, 5, 2)


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """Scans whose voxels lie along other directions, each with one bright voxel."""
    folder = tmp_path / "turned"
    (folder / "images").mkdir(parents=True)
    for name, direction in DIRECTIONS.items():
        affine = np.eye(4)
        affine[:3, :3] = direction @ np.diag([1.1, 0.9, 4.0])
        affine[:3, 3] = [-12.0, 31.0, 7.5]
        array = np.random.default_rng(0).random((1, 30, 24, 5)).astype(np.float32)
        array[(0, *BRIGHT)] = 9
        write_volume(folder / "images" / f"{name}.nii.gz", Volume(array, Geometry((30, 24, 5), affine)))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "spot"}}))
    return folder


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_what_is_painted_with_the_mouse_or_the_keys_lies_at_that_point_of_the_patient(turned: Path):
    from playwright.sync_api import sync_playwright

    with serving(turned) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 900, "height": 700}, bypass_csp=True)
        page.set_default_timeout(MINUTES)
        page.goto(address)
        for name in DIRECTIONS:
            page.click("nav [data-view=cases]")
            page.click(f"[data-case={name}]")
            page.wait_for_function(f"handful.label.case?.name === '{name}' && handful.label.view.classes")
            number, x, y = page.evaluate(BRIGHTEST)
            page.evaluate(f"handful.label.go({number})")
            page.wait_for_function(f"handful.label.shown === {number}")
            page.keyboard.press("b")
            page.evaluate("handful.label.size = 1")
            at = page.evaluate(f"handful.label.view.event([{x}, {y}])")
            page.mouse.move(at["clientX"], at["clientY"])
            if name == "oblique":
                page.keyboard.press(".")
                page.keyboard.press(".")
            else:
                page.mouse.down()
                page.mouse.up()
            page.wait_for_function("handful.label.case.prompted.length")
            page.keyboard.press("Enter")
            page.wait_for_selector(".bench.finished")
        browser.close()
    for name, direction in DIRECTIONS.items():
        label_map = read_label_map(turned / "labels" / f"{name}.nii.gz")
        (voxel,) = np.argwhere(label_map.array == 1)
        found = label_map.geometry.affine @ [*voxel, 1]
        expected = direction @ np.diag([1.1, 0.9, 4.0]) @ BRIGHT + [-12.0, 31.0, 7.5]
        assert np.allclose(found[:3], expected, atol=1e-3), name


BRIGHTEST = """(async () => {
  const label = handful.label;
  for (let number = 0; number < label.case.slices; number++) {
    const pixels = await label.pixels(number), place = pixels.indexOf(65535);
    if (place >= 0) return [number, place % label.view.width, Math.floor(place / label.view.width)];
  }
})()"""
"""Slice, column and row of the brightest pixel, from what the page has got."""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_answers_that_come_late_change_no_other_slice_and_no_other_case(address: str):
    held: list[Route] = []
    with page_of(address) as page:
        steps: list[str] = []
        page.on("request", lambda request: steps.append(request.url) if request.url.endswith("/actions") else None)

        def dab(x: float) -> None:
            """A dab of the brush in the middle row of the slice, at a share of its width."""
            at = page.evaluate(
                f"handful.label.view.event([{x} * handful.label.view.width, handful.label.view.height / 2])"
            )
            page.mouse.move(at["clientX"], at["clientY"])
            page.mouse.down()
            page.mouse.up()

        def hold(path: str) -> None:
            page.route(path, lambda route: held.append(route), times=1)

        def release() -> None:
            for _ in range(MINUTES // 20):
                if not held:  # the request is on its way
                    page.wait_for_timeout(20)
            held.pop().continue_()

        page.fill("#names", "ball")
        page.click("#saveNames")
        page.wait_for_function("handful.state.labels.length === 1")
        page.click("[data-case=scan_0]")
        page.wait_for_function("handful.label.shown !== null")
        page.evaluate("handful.label.choose('brush')")
        page.evaluate("handful.label.go(1)")
        page.wait_for_function("handful.label.shown === 1")

        hold("**/slices/2/classes")
        with page.expect_request("**/slices/2/classes"):
            page.evaluate("void handful.label.go(2)")
        dab(0.5)  # on slice 1, which is still displayed
        release()
        page.wait_for_function("handful.label.shown === 2")
        assert steps == []

        hold("**/actions")
        dab(0.3)
        dab(0.7)
        release()
        page.wait_for_function("!handful.label.root.classList.contains('busy') && !handful.label.view.drawn")
        row = page.evaluate(
            "(v => [...v.classes.slice(v.width * Math.floor(v.height / 2)).slice(0, v.width)])(handful.label.view)"
        )
        assert all(row[int(len(row) * share)] == 1 for share in (0.3, 0.7))

        hold("**/actions")
        page.keyboard.press("Enter")
        page.evaluate("handful.show('label', handful.state.cases[1].id, { number: 2 })")
        page.wait_for_function("handful.label.case?.name === 'scan_1' && handful.label.shown === 2")
        release()
        page.wait_for_function("!handful.label.root.classList.contains('busy')")
        assert page.evaluate("[handful.label.case.accepted, handful.label.case.prompted]") == [[], []]
        assert page.locator("#message.bad:not([hidden])").count() == 0

        page.evaluate("handful.show('cases')")
        page.evaluate(FINISHED_ELSEWHERE)
        page.evaluate("handful.show('label')")
        assert page.evaluate("handful.label.case.accepted") == [2]


FINISHED_ELSEWHERE = """import('./api.js').then(({ tab }) => fetch(`api/cases/${handful.label.case.id}/actions`, {
  method: 'POST',
  headers: { 'content-type': 'application/json', 'x-annotator': tab },
  body: JSON.stringify({ kind: 'accept', slice: 2 }),
}))"""
"""A slice is finished without the page."""
