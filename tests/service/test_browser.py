"""The page in a real browser: strokes in quick succession, pictures that change, and tokens of any characters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from handful.data.files import read_cohort, read_label_map, write_label_map
from handful.data.volume import IGNORE, LabelMap, Labels
from handful.service.workspace import Workspace
from phantoms import phantom
from service.test_page import CHROMIUM, MINUTES, page_of, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]


@pytest.fixture
def two_labels(cohort: Path) -> Path:
    (cohort / "dataset.json").write_text('{"labels": {"1": "ball", "2": "egg"}}', "utf-8")
    return cohort


class Painter:
    """Dabs of the brush on slice 2 of the first scan; the answers to them come one by one, when the test wants them."""

    PLACE = "handful.label.view.event([{} * handful.label.view.width, handful.label.view.height / 2])"

    def __init__(self, page: Page) -> None:
        self.page = page
        self.held: list[Route] = []
        page.click("[data-case=scan_0]")
        page.wait_for_function("handful.label.shown !== null")
        page.evaluate("handful.label.go(2)")
        page.wait_for_function("handful.label.shown === 2")
        page.keyboard.press("b")
        page.route("**/actions", lambda route: self.held.append(route))

    def press(self, x: float) -> None:
        at = self.page.evaluate(self.PLACE.format(x))
        self.page.mouse.move(at["clientX"], at["clientY"])
        self.page.mouse.down()

    def dab(self, x: float) -> None:
        self.press(x)
        self.page.mouse.up()

    def answer(self, pending: int) -> None:
        """Answer the first step, after which so many are pending."""
        for _ in range(MINUTES // 20):
            if not self.held:
                self.page.wait_for_timeout(20)
        self.held.pop(0).continue_()
        self.page.wait_for_function(f"[...handful.label.pending.values()].reduce((a, b) => a + b, 0) === {pending}")

    def shown(self, *places: float) -> list[int]:
        """The labels that are displayed at these shares of the width."""
        row = self.page.evaluate(
            "(v => [...(v.drawn ?? v.classes).slice(v.width * Math.floor(v.height / 2)).slice(0, v.width)])"
            "(handful.label.view)"
        )
        return [row[int(len(row) * place)] for place in places]


def test_strokes_in_quick_succession_are_all_kept_whenever_their_answers_come(two_labels: Path):
    with serving(two_labels) as address, page_of(address) as page:
        painter = Painter(page)
        painter.dab(0.15)
        painter.dab(0.3)
        painter.answer(pending=1)
        painter.dab(0.45)  # while the second one is not answered
        assert painter.shown(0.15, 0.3, 0.45) == [1, 1, 1]
        painter.press(0.6)
        page.keyboard.press("2")  # a stroke has the label with which it was begun
        page.mouse.up()
        painter.dab(0.75)
        painter.press(0.9)
        page.keyboard.press("Escape")
        page.mouse.up()
        assert painter.shown(0.15, 0.3, 0.45, 0.6, 0.75, 0.9) == [1, 1, 1, 1, 2, 0]
        for pending in (3, 2, 1, 0):
            painter.answer(pending)
            assert painter.shown(0.15, 0.3, 0.45, 0.6, 0.75, 0.9) == [1, 1, 1, 1, 2, 0]
        assert page.evaluate("handful.label.view.drawn") is None
        displayed = page.evaluate("[...handful.label.view.classes]")
        page.unroute("**/actions")
        page.keyboard.press("Enter")
        page.wait_for_selector(".bench.finished")
        assert page.locator("#message.bad:not([hidden])").count() == 0
    reference = next(one for one in read_cohort(two_labels).cases if one.name == "scan_0").read_reference()
    assert reference is not None
    kept = np.where(reference.array == IGNORE, 0, reference.array)
    assert np.bincount(kept.ravel())[1:].tolist() == [displayed.count(1), displayed.count(2)]


def test_a_stroke_keeps_what_an_unanswered_click_or_undo_has_changed(two_labels: Path):
    with serving(two_labels) as address, page_of(address) as page:
        painter = Painter(page)
        painter.dab(0.2)
        painter.answer(pending=0)
        page.keyboard.press("Control+z")
        painter.dab(0.8)  # the first dab is still displayed
        painter.answer(pending=1)
        painter.answer(pending=0)
        assert painter.shown(0.2, 0.8) == [0, 1]
        page.click("#clear")
        painter.dab(0.5)
        page.evaluate("void handful.label.go(3)")
        page.wait_for_function("handful.label.shown === 3")
        page.evaluate("void handful.label.go(2)")  # back, before the steps on it are answered
        page.wait_for_function("handful.label.shown === 2")
        painter.answer(pending=1)
        painter.answer(pending=0)
        assert painter.shown(0.2, 0.5, 0.8) == [0, 1, 0]


PIXELS = """async (url) => {
  const source = url ? await (await fetch(url)).blob() : document.querySelector('.queue img');
  const image = await createImageBitmap(source);
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  return [...context.getImageData(0, 0, image.width, image.height).data].join();
}"""
"""The pixels of the picture of the first case, or of a picture at an address, as text."""
LOADED = "document.querySelector('.queue img')?.complete && document.querySelector('.queue img').naturalWidth > 0"


def test_only_the_segmentation_that_is_displayed_is_accepted(two_labels: Path):
    workspace, (volume, truth) = Workspace(two_labels), phantom(0)
    file = workspace.predictions / "scan_0.nii.gz"
    file.parent.mkdir()

    def predict(value: int) -> None:
        array = np.where(truth.array == 1, value, 0).astype(np.int16)
        write_label_map(file, LabelMap(array, volume.geometry, Labels.of({1: "ball", 2: "egg"})))

    predict(1)
    with serving(two_labels) as address, page_of(address) as page:
        page.route("**/api/job", lambda route: None)  # nothing but the test makes the page read the state
        page.click("nav [data-view=review]")
        page.wait_for_function(LOADED)
        before = page.evaluate(PIXELS)
        predict(2)
        page.click(".queue [data-key=a]")
        page.wait_for_selector("#message.bad:has-text('has changed since it was displayed')")
        assert not workspace.accepted_cases()
        page.wait_for_function(LOADED)
        case = page.evaluate("handful.state.cases[0].id")
        now = page.evaluate(PIXELS)
        assert now != before
        assert now == page.evaluate(PIXELS, f"api/cases/{case}/overlay.png?again")
        page.click(".queue [data-key=a]")
        page.wait_for_selector(".queue .settled")
    (accepted,) = (workspace.accepted / case).glob("[!.]*")
    assert set(np.unique(read_label_map(accepted, Labels.of({1: "ball", 2: "egg"})).array)) == {0, 2}


def test_the_picture_of_a_scan_changes_with_its_file(two_labels: Path):
    with serving(two_labels) as address, page_of(address) as page:
        picture = page.locator("[data-case=scan_0] img")
        before = picture.get_attribute("src")
        (two_labels / "images" / "scan_0.nii.gz").write_bytes((two_labels / "images" / "scan_1.nii.gz").read_bytes())
        page.evaluate("handful.refresh()")
        page.wait_for_function(f"!document.querySelector('[data-case=scan_0] img').src.endsWith('{before}')")


def test_three_planes_show_the_scan_and_say_which_voxels_of_a_large_one_are_shown(two_labels: Path):
    def thinned(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers=answer.headers | {"x-meta": '{"step": [2, 1, 1]}'})

    with serving(two_labels) as address, page_of(address) as page:
        page.click("[data-case=scan_0]")
        page.wait_for_function("handful.label.shown !== null")
        page.click("details summary:has-text('Three planes')")
        page.wait_for_function("handful.label.viewer?.volumes.length === 2")
        assert "one voxel in" not in page.inner_text("#label")
        page.route("**/image.nii.gz", thinned)
        page.click("#again")
        page.wait_for_selector("#label:has-text('one voxel in 2 × 1 × 1 is shown')")


def test_the_printed_address_opens_the_page_whatever_the_token(cohort: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HANDFUL_TOKEN", "a/b+c=d e&f#g")
    with serving(cohort) as address, page_of(address) as page:
        page.wait_for_selector("[data-case=scan_0]")
