"""Draws the pictures of README.md and of docs/start/first_cohort.md. No real scan is needed.

    python -m docs.scripts.figures [--out docs/images] [--first-cohort]

`overview.webp`: of the synthetic scans of `handful demo` four slices are labelled, `fate` learns from them, and
two other scans are segmented. With --first-cohort, the commands of that page are run as they stand there, and the
pictures that they write are copied; the page review.html is photographed by Chromium.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import handful
from docs.scripts.commands import ROOT, commands
from handful.cohort.demo import write_phantom_cohort
from handful.data.label_colours import label_colours
from handful.data.slicing import SliceView
from handful.data.volume import IGNORE
from handful.reports.canvas import INK, Canvas, draw_contour, draw_image, label_entry

LABELLED = {"phantom_00": (8, 12), "phantom_01": (9, 12)}
"""Case and slices, counted from 0 along the third array axis: all that the method learns from."""
SHOWN = ("phantom_02", "phantom_05")
"""Segmented cases; the slice that is shown has most of its smallest label."""
PICTURES = {
    "predictions/previews/phantom_03.png": ("preview.webp", 0.475),
    "overlays/phantom_03.png": ("overlay.webp", 1.0),
    "suggestions/suggestions.png": ("suggestions.webp", 1.0),
    "review.png": ("review.webp", 1.0),
}
"""Pictures of the first cohort: their names in the documents, and the upper share of each that is shown."""
WIDEST = 1300
PANEL, GAP, HEADER, LEGEND = 3.3, 0.08, 0.5, 0.45
"""Inches."""
SMALL = (2 * PANEL - 2 * GAP) / 4
"""Inches: a labelled slice, of which four are as high as two panels."""
COLUMNS = {
    "new scan": (0.0, PANEL),
    "learned from": (PANEL + GAP, SMALL),
    "prediction": (PANEL + SMALL + 2 * GAP, PANEL),
    "reference": (2 * PANEL + SMALL + 3 * GAP, PANEL),
}
"""Title of each column, with its left edge and its width in inches."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--first-cohort", action="store_true", help="run the commands of that page")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.first_cohort:
            make_first_cohort(Path(folder), out)
        else:
            (out / "overview.webp").write_bytes(draw_overview(write_phantom_cohort(Path(folder))))


def make_first_cohort(folder: Path, out: Path) -> None:
    """Runs the page's commands in `folder`, and copies the pictures."""
    for words in commands(ROOT / "docs" / "start" / "first_cohort.md"):
        if words[:2] == ["handful", "demo"]:
            words += ["--set", "train.iterations=1"]  # of the demo only the scans are shown
        line = shlex.join(words) if words[0] == "handful" else " ".join(words)  # the shell expands names of files
        print("$", line, flush=True)
        subprocess.run(line, cwd=folder, shell=True, check=True)
    page, picture = (folder / "review" / "review.html").resolve().as_uri(), folder / "review.png"
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=960,960"]
    subprocess.run(["chromium", *options, f"--screenshot={picture}", page], check=True)
    for source, (name, share) in PICTURES.items():
        shrink(folder / source, out / name, share)


def shrink(source: Path, path: Path, share: float) -> None:
    """The upper share of a picture, at most WIDEST pixels wide."""
    with Image.open(source) as picture:
        upper = picture.convert("RGB").crop((0, 0, picture.width, round(picture.height * share)))
    upper.thumbnail((WIDEST, upper.height))
    upper.save(path, quality=85)


def draw_overview(folder: Path) -> bytes:
    """A picture with one row per segmented scan: scan, labelled slices, prediction and reference."""
    for name, indices in LABELLED.items():
        listed = {"axis": 2, "labelled": indices}
        (folder / "labels" / f"{name}.slices.json").write_text(json.dumps(listed), encoding="utf-8")
    cohort = handful.read_cohort(folder)
    assert cohort.labels is not None
    cases = {case.name: case for case in cohort.cases}
    support = handful.SupportSet(tuple(cases[name] for name in LABELLED), cohort.labels)
    segmenter = handful.Fate().fit(support, handful.load_backbone("handful-tiny"))
    canvas = Canvas(3 * PANEL + SMALL + 5 * GAP, HEADER + len(SHOWN) * (PANEL + GAP) + LEGEND, dpi=110)
    for title, (left, width) in COLUMNS.items():
        canvas.write(GAP + left + width / 2, HEADER / 2, title, colour=INK, size=15, align="center")
    draw_labelled(canvas, [cases[name] for name in LABELLED], cohort.labels)
    for row, name in enumerate(SHOWN):
        draw_row(canvas, row, cases[name], segmenter.predict(cases[name].read_image()))
    canvas.legend([label_entry(name, colour) for _, name, colour in label_colours(cohort.labels)], bottom=0.06)
    return canvas.webp(quality=88)


def draw_labelled(canvas: Canvas, cases: Sequence[handful.Case], labels: handful.Labels) -> None:
    """The labelled slices, one below the other."""
    top = HEADER
    for case in cases:
        view = view_of(case)
        values = view.of(reference_of(case).array)
        for index in np.flatnonzero((values != IGNORE).any(axis=(1, 2))):
            draw(canvas, view, int(index), values, ("learned from", top), labels)
            top += SMALL + GAP * 2 / 3


def draw_row(canvas: Canvas, row: int, case: handful.Case, prediction: handful.LabelMap) -> None:
    """One slice of a case, by itself, as segmented, and with its reference."""
    view, reference = view_of(case), reference_of(case)
    values = view.of(reference.array)
    counts = [np.count_nonzero(values == value, axis=(1, 2)) for value in reference.labels.values]
    index, top = int(np.argmax(np.min(counts, axis=0))), HEADER + row * (PANEL + GAP)
    draw(canvas, view, index, None, ("new scan", top), reference.labels)
    draw(canvas, view, index, view.of(prediction.array), ("prediction", top), reference.labels)
    draw(canvas, view, index, values, ("reference", top), reference.labels)


def view_of(case: handful.Case) -> SliceView:
    """The slices of a case as radiology displays them."""
    return handful.Slicer().for_display().view(case.read_image())


def reference_of(case: handful.Case) -> handful.LabelMap:
    reference = case.read_reference()
    assert reference is not None, case.name
    return reference


def draw(
    canvas: Canvas,
    view: SliceView,
    index: int,
    values: NDArray[Any] | None,
    place: tuple[str, float],
    labels: handful.Labels,
) -> None:
    """Slice number `index` in a square of a column, its upper edge in inches, with the labels that `values` hold."""
    left, side = COLUMNS[place[0]]
    axes = canvas.axes(GAP + left, place[1], side, side)
    draw_image(axes, view.take([index])[0].permute(1, 2, 0).numpy(), 1.0)
    if values is not None:
        for value, _, colour in label_colours(labels):
            draw_contour(axes, values[index] == value, colour, alpha=0.4, linewidth=1.5 if side == PANEL else 0.9)


if __name__ == "__main__":
    main()
