"""The files of a review: a table of all estimates, and a page with the worst cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from handful.curation.calibration import Calibration
from handful.curation.quality import CaseQuality, LabelQuality
from handful.curation.signals import SIGNALS
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import remove_leftovers_of, write_atomically
from handful.jobs.plain_text import counted, spreadsheet_text
from handful.reports.markup import Element, card, element, page, paragraph
from handful.reports.page_style import STYLE

TABLE, PAGE, PICTURES = "review.csv", "review.html", "pictures"
MOST_ROWS = 300
"""Maximum number of lines of the list on the page; the table has all."""
SHEETS = ".sheet { margin: 0 0 34px; } .sheet img { width: 100%; max-width: 900px; height: auto; border-radius: 8px; }"
DISCLAIMER = "Not a medical device. The list shows what to check first; it does not show what need not be checked."
COLUMNS = ("case", "label", "name", "predicted_dice", "calibrated", *SIGNALS, "size", "flags")


@dataclass(frozen=True)
class ReviewResult:
    """The result of a review."""

    cases: tuple[CaseQuality, ...]
    """Worst first, by the worst label of each case."""
    skipped: tuple[str, ...]
    """Names of cases whose stored estimate was reused: scan, prediction, model and support set are unchanged."""
    failures: tuple[Failure, ...]
    support: tuple[str, ...]
    """Names of the labelled cases that the estimates are based on."""
    calibration: Calibration | None
    """None if the predicted Dice is the plain mean of the signals."""
    fitted_on: tuple[str, ...] = ()
    """Names of the cases that are not estimated, since the model was fitted on their scans."""


def write_review(folder: Path, result: ReviewResult, pictured: Sequence[CaseQuality]) -> tuple[Path, Path]:
    """Write review.csv and review.html into `folder`; earlier files are replaced. Returns their paths.

    The table has one line per case and label, worst first. The page shows the pictures `pictures/<case>.png` of the
    cases `pictured`, which must exist.
    """
    table, html = folder / TABLE, folder / PAGE
    remove_leftovers_of(table, html)
    write_atomically(table, _table(result))
    write_atomically(html, _page(result, pictured))
    return table, html


def _table(result: ReviewResult) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for case, label in _rows(result):
        signals = [_number(getattr(label.signals, name)) for name in SIGNALS]
        calibrated = "yes" if result.calibration else "no"
        size = f"{label.size:.4g}"
        dice = _number(label.predicted_dice)
        cells = [case, label.label, label.name, dice, calibrated, *signals, size, "; ".join(label.flags)]
        table.writerow(map(spreadsheet_text, cells))
    return text.getvalue().encode()


def _rows(result: ReviewResult) -> list[tuple[str, LabelQuality]]:
    """All cases and labels, worst first."""
    rows = [(case.case, label) for case in result.cases for label in case.labels]
    return sorted(rows, key=lambda row: (row[1].predicted_dice, row[0], row[1].label))


def _page(result: ReviewResult, pictured: Sequence[CaseQuality]) -> bytes:
    rows = _rows(result)
    header = element("header", None, element("h1", None, "What to check first"), paragraph(_explanation(result)))
    header.append(element("div", {"class": "cards"}, *_cards(result, rows)))
    main = element("main")
    if result.failures:
        main.append(element("h2", None, "Without an estimate"))
        items = [element("li", None, f"{failure.case}: {failure.reason}") for failure in result.failures]
        main.append(element("ul", None, *items))
    if pictured:
        main.append(element("h2", None, f"The worst {len(pictured)} of {len(result.cases)} cases"))
    for place, case in enumerate(pictured, start=1):
        main.append(_sheet(place, case))
    main.append(element("h2", None, "All cases"))
    main.append(paragraph(f"One line per case and label, worst first{_cut(rows)}."))
    main.append(_list(rows[:MOST_ROWS]))
    body = element("body", None, header, main, element("footer", None, paragraph(DISCLAIMER)))
    return page("Review", STYLE + SHEETS, body)


def _cards(result: ReviewResult, rows: Sequence[tuple[str, LabelQuality]]) -> Iterator[Element]:
    yield card(f"{len(result.cases)}", "cases estimated")
    yield card(f"{len(result.failures)}", "cases without an estimate")
    if rows:
        yield card(f"{np.mean([label.predicted_dice for _, label in rows]):.2f}", "mean predicted Dice")
        yield card(f"{sum(any(label.flags for label in case.labels) for case in result.cases)}", "cases with a flag")
    if result.calibration:
        yield card(f"± {result.calibration.error:.2f}", "mean error on labelled cases, left out in turn")


def _explanation(result: ReviewResult) -> str:
    support = counted(len(result.support), "labelled case")
    if result.calibration is None:
        return (
            "The predicted Dice is estimated without references of these cases: it is the plain mean of several "
            f"signals, which compare each prediction with {support}. It is not calibrated. Use it to order cases; as a "
            "number it is unreliable."
        )
    return (
        "The predicted Dice is estimated without references of these cases. It is calibrated on "
        f"{support}, each segmented by a model fitted without its patient. Use it to order cases; as a number it is "
        "less reliable, since it comes from few cases."
    )


def _cut(rows: Sequence[tuple[str, LabelQuality]]) -> str:
    return f" (the first {MOST_ROWS} of {len(rows)}; all are in {TABLE})" if len(rows) > MOST_ROWS else ""


def _sheet(place: int, case: CaseQuality) -> Element:
    """The predicted Dice of a case's labels and the picture of the case."""
    title = element("h3", None, f"{place}. {case.case}")
    lines = [
        element(
            "li",
            None,
            element("b", None, f"{label.name} {label.predicted_dice:.2f}"),
            "".join(f" · {flag}" for flag in label.flags),
        )
        for label in sorted(case.labels, key=lambda label: label.predicted_dice)
    ]
    source = f"{PICTURES}/{quote(case.case)}.png"
    image = element("img", {"src": source, "alt": f"slices of {case.case}", "loading": "lazy"})
    link = element("a", {"href": source}, image)
    return element("figure", {"class": "sheet"}, title, element("ul", {"class": "legend"}, *lines), link)


def _list(rows: Sequence[tuple[str, LabelQuality]]) -> Element:
    heads = ["case", "label", "predicted Dice", *SIGNALS, "flags"]
    head = element("thead", None, element("tr", None, *[element("th", None, text) for text in heads]))
    body = element("tbody")
    for case, label in rows:
        cells = [_number(label.predicted_dice), *[_number(getattr(label.signals, name)) or "–" for name in SIGNALS]]
        body.append(
            element(
                "tr",
                None,
                element("th", None, case),
                element("td", {"class": "text"}, label.name),
                *[element("td", None, text) for text in cells],
                element("td", {"class": "text"}, ", ".join(label.flags)),
            )
        )
    return element("div", {"class": "scroll"}, element("table", None, head, body))


def _number(value: float) -> str:
    """The value with three digits; "" for nan."""
    return "" if np.isnan(value) else f"{value:.3f}"
