"""A scan as one page: its voxels lie where they are in the patient, it stays small, and a browser shows it."""

import base64
import gzip
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import handful
from handful.data.volume import IGNORE, Geometry, LabelMap, Volume
from handful.errors import GeometryMismatch, InputError
from handful.reports.viewer import nifti_bytes
from phantoms import LABELS, geometry, phantom

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def content(page: str) -> dict[str, Any]:
    """What the page shows."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    shown: dict[str, Any] = json.loads(found[1])
    return shown


def images(page: str) -> list[nib.Nifti1Image]:
    return [nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(one))) for one in content(page)["volumes"]]


def test_the_page_has_all_voxels_on_the_grid_of_the_scan():
    volume, label_map = phantom(0)
    shown = handful.show(volume, label_map)
    scan, labels = images(shown.html)
    assert shown.step == (1, 1, 1)
    assert np.array_equal(scan.get_fdata(), volume.array[0])
    assert np.array_equal(labels.get_fdata(), label_map.array)
    assert np.allclose(scan.affine, volume.geometry.affine, atol=1e-4)
    assert [one["value"] for one in content(shown.html)["labels"]] == [1, 3]
    assert "ball" in shown.html.partition("<script")[0]
    assert not re.search(r'(?:src|href)="?http', shown.html.partition("<script")[0])


def test_unlabelled_voxels_have_no_colour():
    volume, label_map = phantom(0)
    array = label_map.array.copy()
    array[:, 0] = IGNORE
    _, labels = images(handful.show(volume, LabelMap(array, label_map.geometry, label_map.labels)).html)
    assert np.array_equal(labels.get_fdata(), array.clip(0))


def test_a_large_scan_is_thinned_along_its_finest_axis_and_stays_in_place():
    rng = np.random.default_rng(0)
    grid = Geometry((64, 32, 8), geometry().affine @ np.diag([0.5, 1, 1, 1]))
    volume = Volume(rng.integers(0, 2**15, (1, 64, 32, 8), dtype=np.int16), grid)
    shown = handful.show(volume, max_mb=0.025)
    (scan,) = images(shown.html)
    i, j, k = shown.step
    assert i > k
    assert f"{i} × {j} × {k}" in shown.html
    assert len(content(shown.html)["volumes"][0]) <= 25_000
    assert np.array_equal(scan.get_fdata(), volume.array[0, ::i, ::j, ::k])
    assert np.allclose(scan.affine @ [1, 1, 1, 1], grid.affine @ [i, j, k, 1], atol=1e-3)


def test_a_viewer_is_sent_no_more_voxels_than_fit_into_the_memory():
    volume, label_map = phantom(0)
    for shown, array in ((volume, volume.array[0]), (label_map, label_map.array)):
        whole, step = nifti_bytes(shown)
        assert step == (1, 1, 1)
        assert np.array_equal(nib.Nifti1Image.from_bytes(gzip.decompress(whole)).get_fdata(), array)
        part, step = nifti_bytes(shown, max_mb=array.nbytes / 4e6)
        i, j, k = step
        found = nib.Nifti1Image.from_bytes(gzip.decompress(part))
        assert np.array_equal(found.get_fdata(), array[::i, ::j, ::k])
        assert array.nbytes / 8 < np.asanyarray(found.dataobj).size * array.itemsize <= array.nbytes / 4
        assert np.allclose(found.affine @ [1, 1, 1, 1], shown.geometry.affine @ [i, j, k, 1], atol=1e-3)


def test_names_of_labels_are_text_and_nothing_more():
    volume, label_map = phantom(0)
    named = LabelMap(label_map.array, label_map.geometry, handful.Labels.of({1: "</script><b>", 3: "egg"}))
    page = handful.show(volume, named).html
    assert "<b>" not in page
    assert content(page)["labels"][0]["name"] == "</script><b>"


def test_a_notebook_gets_the_page_in_a_frame_and_a_file_the_page_itself(tmp_path: Path):
    shown = handful.show(phantom(0)[0])
    frame = shown._repr_html_()
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)"[^>]*></iframe>', frame)
    assert found
    assert html.unescape(found[1]) == shown.html
    shown.save(tmp_path / "scan.html")
    assert (tmp_path / "scan.html").read_text("utf-8") == shown.html
    assert "MB" in repr(shown)


def test_what_cannot_be_shown_is_refused():
    volume, label_map = phantom(0)
    moved = Geometry(label_map.geometry.shape, label_map.geometry.affine + np.eye(4)[:, [3]] * 9)
    with pytest.raises(GeometryMismatch):
        handful.show(volume, LabelMap(label_map.array, moved, LABELS))
    with pytest.raises(InputError, match="positive"):
        handful.show(volume, max_mb=0)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_labels_in_their_colours(tmp_path: Path):
    from playwright.sync_api import sync_playwright

    handful.show(*phantom(0)).save(tmp_path / "scan.html")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 700, "height": 560})
        page.set_default_timeout(240_000)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "scan.html").as_uri())
        page.wait_for_function("window.viewer")
        lookup = page.evaluate("[...viewer.volumes[1].colormapLabel.lut]")
        page.screenshot(path=tmp_path / "scan.png")
        browser.close()
    assert lookup == [0, 0, 0, 0, 0x56, 0xB4, 0xE9, 255, 0, 0, 0, 0, 0xE6, 0x9F, 0x00, 255]
    assert all(url.startswith(("file:", "blob:", "data:")) for url in requests)
