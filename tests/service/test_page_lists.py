"""The page in a real browser while its lists change: what is chosen, typed, focused and clicked stays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from handful.data.files import write_label_map
from handful.data.volume import LabelMap, Labels
from handful.service.jobs import Job
from handful.service.workspace import Workspace
from phantoms import phantom
from service.test_page import CHROMIUM, page_of, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

READY = "window.handful?.view"
FOCUS = "document.activeElement"
SECONDS = 30_000


@contextmanager
def opened(cohort: Path, *, polls: bool = True) -> Iterator[Page]:
    """The page on a cohort; without polls, nothing but the test makes it read the state again."""
    with serving(cohort) as address, page_of("about:blank") as page:
        page.set_default_timeout(SECONDS)
        if not polls:
            page.route("**/api/job", lambda route: None)
        page.goto(address)
        page.wait_for_function(READY)
        yield page


@pytest.fixture
def segmented(cohort: Path) -> Path:
    """Three scans with two labels, all segmented; scan_0 has the worst predicted quality."""
    (cohort / "dataset.json").write_text('{"labels": {"1": "ball", "2": "egg"}}', "utf-8")
    workspace = Workspace(cohort)
    workspace.predictions.mkdir()
    for seed in range(3):
        volume, truth = phantom(seed)
        array = np.where(truth.array == 1, 1, 0).astype(np.int16)
        label_map = LabelMap(array, volume.geometry, Labels.of({1: "ball", 2: "egg"}))
        write_label_map(workspace.predictions / f"scan_{seed}.nii.gz", label_map)
    qualities = {f"scan_{seed}": {"worst": 0.5 + 0.1 * seed, "flags": []} for seed in range(3)}
    (workspace.own / "quality.json").write_text(json.dumps(qualities), "utf-8")
    return cohort


def second(page: Page) -> Page:
    """The page of somebody else, who works on the same cohort."""
    browser = page.context.browser
    assert browser is not None
    other = browser.new_context(bypass_csp=True).new_page()
    other.set_default_timeout(SECONDS)
    other.goto(page.url)
    other.wait_for_function(READY)
    return other


def accepted(page: Page) -> list[str]:
    names: list[str] = page.evaluate(
        "handful.state.cases.filter((one) => one.status === 'accepted').map((one) => one.name)"
    )
    return names


CHOSEN = "document.querySelector('.queue .chosen')?.dataset.case ?? null"


def test_the_keys_of_review_are_for_the_case_that_is_highlighted_whatever_others_accept(segmented: Path):
    with opened(segmented) as page:
        page.click("nav [data-view=review]")
        page.wait_for_selector(".queue .chosen[data-case=scan_0]")
        page.keyboard.press("j")
        assert page.evaluate(CHOSEN) == "scan_1"
        assert page.evaluate(f"{FOCUS}.dataset.case") == "scan_1"
        other = second(page)
        other.click("nav [data-view=review]")
        other.click("[data-case=scan_0] [data-key=a]")
        other.wait_for_selector(".queue .settled[data-case=scan_0]")
        page.evaluate("window.scrolled = 0; addEventListener('scroll', () => scrolled++, true)")
        page.evaluate("handful.refresh(false)")
        page.wait_for_selector(".queue .settled[data-case=scan_0]")
        assert page.evaluate(CHOSEN) == "scan_1"
        assert page.evaluate(f"{FOCUS}.dataset.case") == "scan_1"
        assert page.evaluate("scrolled") == 0
        page.keyboard.press("a")
        page.wait_for_selector(".queue .settled[data-case=scan_1]")
        assert accepted(page) == ["scan_0", "scan_1"]
        assert page.evaluate(CHOSEN) == "scan_2"  # the next one to review

        (Workspace(segmented).predictions / "scan_2.nii.gz").unlink()
        page.evaluate("handful.refresh(false)")
        page.wait_for_function("document.querySelectorAll('.queue li').length === 2")
        assert page.evaluate(CHOSEN) is None
        page.keyboard.press("b")  # for no case
        page.keyboard.press("k")
        assert page.evaluate(CHOSEN) == "scan_0"
        assert accepted(page) == ["scan_0", "scan_1"]


def test_after_a_verdict_by_keyboard_the_focus_is_on_the_next_case(segmented: Path):
    with opened(segmented) as page:
        page.click("nav [data-view=review]")
        page.focus("[data-case=scan_0] [data-key=a]")
        picture = page.query_selector("[data-case=scan_1] img")
        page.keyboard.press("Enter")
        page.wait_for_selector(".queue .settled[data-case=scan_0]")
        assert page.evaluate(f"{FOCUS}.dataset.case") == page.evaluate(CHOSEN) == "scan_1"
        assert picture is not None
        assert picture.evaluate("(image) => image.isConnected")  # it is not loaded again
        page.focus("[data-case=scan_0] [data-key=b]")
        assert page.evaluate(CHOSEN) == "scan_0"
        page.keyboard.press("Enter")
        page.wait_for_selector(".queue [data-case=scan_0]:not(.settled)")
        assert page.evaluate(f"{FOCUS}.dataset.case") == page.evaluate(CHOSEN) == "scan_0"


def test_a_click_on_accept_that_spans_a_redraw_counts_unless_the_segmentation_has_changed(segmented: Path):
    with opened(segmented, polls=False) as page:
        page.click("nav [data-view=review]")

        def press_and_release(case: str) -> None:
            page.hover(f"[data-case={case}] [data-key=a]")
            page.mouse.down()
            page.evaluate("handful.refresh()")
            page.mouse.up()

        file = Workspace(segmented).predictions / "scan_0.nii.gz"
        page.hover("[data-case=scan_0] [data-key=a]")
        page.mouse.down()
        file.write_bytes((Workspace(segmented).predictions / "scan_1.nii.gz").read_bytes())
        page.evaluate("handful.refresh()")
        page.mouse.up()
        press_and_release("scan_1")
        page.wait_for_selector(".queue .settled")
        assert accepted(page) == ["scan_1"]


def test_names_that_are_typed_stay_until_they_are_saved(segmented: Path):
    with opened(segmented) as page:
        page.wait_for_selector("[data-case=scan_0]")
        page.fill("#names", "ball\negg\nliver\nspleen")
        page.focus("#method")
        page.select_option("#method", "unet")
        page.select_option("#sort", "status")
        assert page.input_value("#names") == "ball\negg\nliver\nspleen"
        page.click("#names")
        page.keyboard.press("Control+End")
        page.keyboard.type("\nkid")
        page.evaluate("handful.draw()")
        page.keyboard.type("ney ")
        page.click("#saveNames")
        page.wait_for_function("handful.state.labels.length === 5")
        page.wait_for_function("document.querySelector('#names').value.endsWith('kidney')")
        page.evaluate(
            "fetch('api/labels', { method: 'PUT', headers: { 'content-type': 'application/json' },"
            " body: JSON.stringify({ names: ['ball', 'egg', 'liver', 'spleen', 'kidney', 'gut'] }) })"
        )
        page.evaluate("handful.refresh()")  # nothing is typed, so the names of others appear
        assert page.input_value("#names").split("\n") == ["ball", "egg", "liver", "spleen", "kidney", "gut"]


def test_a_card_keeps_the_focus_and_a_click_that_has_begun_and_details_stay_open(segmented: Path):
    with opened(segmented, polls=False) as page:
        page.evaluate("handful.state.left_out = [{ file: 'notes', reason: 'no scan' }]; handful.draw()")
        page.click("details.bad summary")
        page.select_option("#method", "auto")
        page.fill("#minutes", "12")
        page.focus("[data-case=scan_1]")
        page.evaluate("handful.sort = 'quality'; handful.state.cases[1].quality = 0; handful.draw()")
        assert page.locator(".card").first.get_attribute("data-case") == "scan_1"
        assert page.evaluate(f"{FOCUS}.dataset.case") == "scan_1"
        assert page.input_value("#minutes") == "12"
        assert page.locator("details.bad[open]").count() == 1
        page.hover("[data-case=scan_1]")
        page.mouse.down()
        page.evaluate("handful.draw()")
        page.mouse.up()
        page.wait_for_function("handful.label.case?.name === 'scan_1'")


def test_a_running_job_keeps_its_button_and_announces_only_start_and_end(segmented: Path):
    file = Workspace(segmented).jobs / "job-000001.json"
    file.parent.mkdir()
    running = Job(number=1, kind="suggest", options={}, pid=os.getpid(), step=1, total=10)
    running.write(file)
    with opened(segmented) as page:
        page.focus("#job button")
        page.evaluate(
            "window.spoken = []; for (const box of document.querySelectorAll('[role=status], [aria-live]'))"
            " new MutationObserver(() => spoken.push(box.textContent))"
            ".observe(box, { childList: true, characterData: true, subtree: true })"
        )
        cancelled: list[str] = []
        page.on("request", lambda request: cancelled.append(request.url) if request.method == "DELETE" else None)
        page.hover("#job button")
        page.mouse.down()
        for step in (4, 7):
            replace(running, step=step, note=f"slice {step}").write(file)
            page.wait_for_selector(f"#job .note:has-text('slice {step}')")
        assert page.evaluate(f"{FOCUS}.closest('#job')?.id") == "job"
        assert page.evaluate("document.querySelector('#job progress').value") == 0.7
        assert page.evaluate("spoken") == []
        page.mouse.move(5, 400)  # let go elsewhere: not cancelled
        page.mouse.up()
        replace(running, state="failed", ended=1.0, error="no room").write(file)
        page.wait_for_selector("#job #state:has-text('failed: no room')")
        assert len(page.evaluate("spoken")) == 1
        assert page.evaluate(f"{FOCUS}.id") == "job"  # the button is gone
        assert cancelled == []


def test_a_message_covers_no_button_under_the_slice(segmented: Path):
    over = """(() => {
      const covered = [];
      for (const button of document.querySelectorAll('.under button')) {
        const box = button.getBoundingClientRect();
        for (const x of [0.05, 0.5, 0.95])
          if (!button.contains(document.elementFromPoint(box.left + box.width * x, box.top + box.height / 2)))
            covered.push(button.id);
      }
      return covered;
    })()"""
    with opened(segmented, polls=False) as page:
        say = "import(new URL('dom.js', location)).then(({ say }) => say('It is not so. '.repeat(20), true))"
        page.evaluate(say)
        page.click("[data-case=scan_0]")
        page.wait_for_function("handful.label.shown !== null")
        for width, height in ((1280, 800), (800, 700), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            if width < 760:
                page.locator(".under").scroll_into_view_if_needed()
            page.evaluate(say)
            assert page.locator("#message:not([hidden])").count() == 1
            assert page.evaluate(over) == [], width
            box = page.locator("#message").bounding_box()
            assert box is not None
            assert box["y"] >= 0


def test_a_folder_that_is_dropped_is_refused_and_the_files_next_to_it_are_added(segmented: Path, tmp_path: Path):
    folder, scan = tmp_path / "series", tmp_path / "scan_9.nii.gz"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(b"x")
    scan.write_bytes((segmented / "images" / "scan_0.nii.gz").read_bytes())
    with opened(segmented, polls=False) as page:
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
        client = page.context.new_cdp_session(page)
        data = {"items": [], "files": [str(folder), str(scan)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            client.send("Input.dispatchDragEvent", {"type": kind, "x": 500, "y": 500, "data": data})
        page.wait_for_selector("#message.bad:has-text('is a folder')")
        assert "into images/" in page.inner_text("#message")
        page.wait_for_selector("[data-case=scan_9]")
        assert len(sent) == 1


def test_an_estimate_of_another_method_is_not_shown(segmented: Path):
    held: list[Route] = []
    with opened(segmented, polls=False) as page:
        page.route("**/api/cost", lambda route: held.append(route))
        page.evaluate("handful.state.cases[0].status = 'labelled'; handful.draw()")
        page.select_option("#method", "unet")
        page.focus("button#cost")
        page.keyboard.press("Enter")
        page.wait_for_selector("p#cost")
        assert page.evaluate(f"{FOCUS}.id") == "cost"
        page.select_option("#method", "fate")
        with page.expect_response("**/api/cost"):
            held[0].fulfill(json={"cost": "9 min"})
        page.wait_for_timeout(200)
        assert page.locator("p#cost").count() == 0
        page.click("button#cost")
        with page.expect_response("**/api/cost"):
            held[1].fulfill(json={"cost": "2 min"})
        page.wait_for_selector("p#cost:has-text('2 min')")
