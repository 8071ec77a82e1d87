"""The page in a real browser: steps that fail, slices that are not loaded, strokes that are cut short, and keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from handful.service.jobs import Job
from handful.service.workspace import Workspace
from service.test_page import CHROMIUM, page_of, serving

if TYPE_CHECKING:
    from playwright.sync_api import Dialog, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
IDLE = "handful.label.pending.size === 0"


@pytest.fixture
def page(cohort: Path) -> Iterator[Page]:
    """The page with a brush on slice 2 of the first scan."""
    (cohort / "dataset.json").write_text('{"labels": {"1": "ball", "2": "egg"}}', "utf-8")
    with serving(cohort) as address, page_of(address) as page:
        page.click("[data-case=scan_0]")
        page.wait_for_function("handful.label.shown !== null")
        go(page, 2)
        page.keyboard.press("b")
        yield page


def go(page: Page, number: int) -> None:
    page.evaluate(f"handful.label.go({number})")
    page.wait_for_function(f"handful.label.shown === {number}")


def place(page: Page, x: float, y: float = 0.5) -> tuple[float, float]:
    """Where a pointer is at these shares of the width and the height of the slice."""
    at = page.evaluate(f"handful.label.view.event([{x} * handful.label.view.width, {y} * handful.label.view.height])")
    return at["clientX"], at["clientY"]


def press(page: Page, x: float) -> None:
    page.mouse.move(*place(page, x))
    page.mouse.down()


def dab(page: Page, x: float) -> None:
    press(page, x)
    page.mouse.up()


def painted(page: Page) -> int:
    """How many pixels of the displayed slice have a label."""
    return int(page.evaluate("(v => (v.drawn ?? v.classes).filter((one) => one).length)(handful.label.view)"))


def steps_of(page: Page) -> list[str]:
    """The kinds of the steps that are sent from now on."""
    sent: list[str] = []
    page.on(
        "request",
        lambda one: sent.append(one.post_data_json["kind"]) if one.url.endswith("/actions") else None,
    )
    return sent


def said(page: Page, text: str) -> None:
    page.wait_for_selector(f"#message:has-text('{text}')", state="attached")


def test_no_step_is_taken_on_a_slice_that_is_not_loaded(page: Page):
    sent = steps_of(page)
    page.route("**/slices/4/classes", lambda route: route.abort())
    page.keyboard.press("ArrowDown")
    page.wait_for_function("handful.label.shown === 3")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("text=Slice 5 is not loaded")
    assert page.evaluate("[handful.label.shown, handful.label.view.pixels]") == [None, None]
    for key in ("Enter", "Delete"):
        page.keyboard.press(key)
    said(page, "The slice is not displayed yet")
    dab(page, 0.5)
    page.unroute("**/slices/4/classes")
    page.keyboard.press("r")
    page.wait_for_function("handful.label.shown === 4")
    assert not page.is_visible("text=Slice 5 is not loaded")
    assert sent == []

    held: list[Route] = []
    page.route("**/slices/1/classes", lambda route: held.append(route), times=1)
    page.evaluate("void handful.label.go(1)")
    page.wait_for_function("handful.label.view.pixels === null")
    page.keyboard.press("Enter")
    late = held.pop()
    answer = late.fetch()
    go(page, 2)
    assert sent == []
    page.keyboard.press("Enter")
    page.wait_for_selector(".bench.finished")
    late.fulfill(response=answer)  # it is older than the step
    page.wait_for_timeout(100)
    assert page.evaluate("handful.label.case.accepted") == [2]

    dab(page, 0.5)
    said(page, "Slice 3 is finished; press Enter or")
    page.keyboard.press("Delete")
    assert (sent, painted(page)) == (["accept"], 0)


def test_after_a_step_that_failed_those_behind_it_are_dropped_and_the_page_says_so(page: Page):
    dab(page, 0.5)
    page.wait_for_function(IDLE)
    kept = painted(page)
    held: list[Route] = []
    sent = steps_of(page)
    page.route("**/actions", lambda route: held.append(route))
    dialogs: list[str] = []

    def refuse(dialog: Dialog) -> None:
        dialogs.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", refuse)
    dab(page, 0.2)
    dab(page, 0.8)
    page.keyboard.press("Enter")
    page.evaluate("setTimeout(() => location.reload())")
    while not dialogs:
        page.wait_for_timeout(20)
    held.pop().abort()
    said(page, "The last 3 steps were not kept; repeat them")
    page.wait_for_function(f"{IDLE} && handful.label.shown === 2")
    assert (sent, painted(page), page.evaluate("handful.label.case.accepted")) == (["area"], kept, [])
    page.unroute("**/actions")
    dab(page, 0.2)
    page.wait_for_function(IDLE)
    assert painted(page) > kept
    assert dialogs == ["beforeunload"]

    tab = "import('./api.js').then(({ tab }) => tab)"
    own = page.evaluate(tab)
    with page.context.expect_page() as waiting:
        page.evaluate("void window.open(location.href)")
    waiting.value.wait_for_function("window.handful?.state.version")
    assert waiting.value.evaluate(tab) != own
    waiting.value.close()
    page.reload()
    page.wait_for_function("window.handful?.state.version")
    assert page.evaluate(tab) == own
    assert page.evaluate("sessionStorage.annotator") is None


def test_a_stroke_is_kept_by_the_wheel_and_cancelled_by_a_second_finger(page: Page):
    press(page, 0.2)
    page.mouse.move(*place(page, 0.6), steps=4)
    page.mouse.wheel(0, 10)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.mouse.move(*place(page, 0.8), steps=4)
    page.mouse.up()
    page.wait_for_function(IDLE)
    kept = painted(page)
    assert kept > 0
    assert page.evaluate("[handful.label.number, handful.label.case.accepted]") == [2, []]

    sent = steps_of(page)
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *places: float) -> None:
        at = [place(page, x, x) for x in places]
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(at)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    for tool in ("b", "c"):
        page.keyboard.press(tool)
        zoom = page.evaluate("handful.label.view.zoom")
        fingers("touchStart", 0.4)
        fingers("touchStart", 0.4, 0.6)
        fingers("touchMove", 0.35, 0.65)
        fingers("touchEnd", 0.4)
        fingers("touchMove", 0.5)
        fingers("touchEnd")
        assert page.evaluate("handful.label.view.zoom") > zoom
    page.keyboard.press("b")
    fingers("touchStart", 0.5)
    fingers("touchCancel")
    assert (sent, painted(page), page.evaluate("handful.label.drag")) == ([], kept, None)
    page.keyboard.press("c")
    fingers("touchStart", 0.5)
    fingers("touchEnd")
    page.wait_for_function(IDLE)
    assert sent == ["click"]


def test_keys_are_for_the_control_that_has_the_focus(page: Page):
    sent = steps_of(page)
    assert page.get_attribute("#label .under input", "aria-valuetext") == "Slice 3 of 6"
    page.locator("#label summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("handful.label.threeD.open")
    page.keyboard.press("Space")
    page.wait_for_function("!handful.label.threeD.open")
    page.locator("[data-tool=lasso]").focus()
    page.keyboard.press("Space")
    assert page.evaluate("[handful.label.tool, handful.label.view.visible]") == ["lasso", True]
    page.locator("[aria-label=opacity], [aria-label=Opacity]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    assert page.evaluate("[handful.label.view.opacity, handful.label.number]") == [1, 2]
    page.click("[data-tool=brush]")  # with the mouse: the slice has the keys again
    page.keyboard.press("Space")
    assert page.evaluate("[handful.label.tool, handful.label.view.visible]") == ["brush", False]
    assert sent == []


def test_next_goes_to_the_suggested_slice_or_the_next_case(page: Page, cohort: Path):
    jobs = Workspace(cohort).jobs
    jobs.mkdir(exist_ok=True)
    Job(number=1, kind="learn", options={}, pid=os.getpid()).write(jobs / "job-000001.json")
    page.reload()
    page.wait_for_function("handful.state.job?.state === 'running'")
    page.evaluate("handful.label.case = null; handful.label.announce('')")
    for name in ("scan_0", "scan_1", "scan_2", "scan_0"):
        page.keyboard.press("n")
        page.wait_for_function(f"handful.label.case?.name === '{name}' && handful.label.shown !== null")
    said(page, "When “Learning” has ended")

    axis, ids = page.evaluate("[handful.label.case.axis, handful.state.cases.map((one) => one.id)]")
    found: list[dict[str, Any]] = [
        {"id": ids[1], "axis": (axis + 1) % 3, "index": 0, "reason": "in another plane"},
        {"id": ids[2], "axis": axis, "index": 1, "reason": "new to the model"},
    ]
    for number in (2, 3):  # the second time, the same slices are suggested again
        done = {"options": {}, "state": "done", "ended": 1.0, "result": {"suggestions": found}}
        Job(number=number, kind="suggest", **done).write(jobs / f"job-{number:06}.json")
        page.evaluate("handful.refresh()")
        page.wait_for_function(f"handful.state.suggestions[0]?.job === {number}")
        page.keyboard.press("n")
        page.wait_for_function("handful.label.case?.name === 'scan_1' && handful.label.shown === 3")
        assert not page.is_visible(".reason")
        page.keyboard.press("n")
        page.wait_for_function("handful.label.case?.name === 'scan_2' && handful.label.shown !== null")
        assert page.inner_text(".reason:visible") == "Suggested: new to the model"
        flipped, count = page.evaluate("[handful.label.case.flipped, handful.label.case.slices]")
        assert page.evaluate("handful.label.number") == (count - 2 if flipped else 1)
        page.keyboard.press("ArrowDown")
        page.wait_for_function("handful.label.shown === handful.label.number")
        assert not page.is_visible(".reason")
