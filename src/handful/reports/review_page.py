"""A review as files: a table of all judged labels, and a page that shows the worst cases."""

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
from handful.jobs.atomic import write_atomically
from handful.reports.markup import Element, card, element, page, paragraph
from handful.reports.page_style import STYLE

TABLE, PAGE, PICTURES = "review.csv", "review.html", "pictures"
MOST_ROWS = 300
"""Lines of the queue on the page; the table has all."""
SHEETS = ".sheet { margin: 0 0 34px; } .sheet img { width: 100%; max-width: 900px; height: auto; border-radius: 8px; }"
DISCLAIMER = "Not a medical device. The order tells where to look first, not where looking is not needed."
COLUMNS = ("case", "label", "name", "predicted_dice", "calibrated", *SIGNALS, "size", "flags")


@dataclass(frozen=True)
class ReviewResult:
    """What was judged, and by what."""

    cases: tuple[CaseQuality, ...]
    """The worst first, by the label of theirs that is worst."""
    skipped: tuple[str, ...]
    """Judged before: scan, prediction, model and support are the same as then."""
    failures: tuple[Failure, ...]
    support: tuple[str, ...]
    """Labelled cases that the judgement rests on."""
    calibration: Calibration | None
    """None where the predicted Dice is the plain mean of the signals."""


def write_review(folder: Path, result: ReviewResult, shown: Sequence[CaseQuality]) -> tuple[Path, Path]:
    """Writes review.csv and review.html into `folder`, each whole or not at all; earlier ones are replaced.

    The table has one line per case and label, the worst first. The page shows the cases in `shown`, whose pictures it
    expects as `pictures/<case>.png`.
    """
    table, html = folder / TABLE, folder / PAGE
    write_atomically(table, _table(result))
    write_atomically(html, _page(result, shown))
    return table, html


def _table(result: ReviewResult) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for case, one in _rows(result):
        signals = [_number(getattr(one.signals, name)) for name in SIGNALS]
        calibrated = "yes" if result.calibration else "no"
        size = f"{one.size:.4g}"
        dice = _number(one.predicted_dice)
        table.writerow([case, one.label, one.name, dice, calibrated, *signals, size, "; ".join(one.flags)])
    return text.getvalue().encode()


def _rows(result: ReviewResult) -> list[tuple[str, LabelQuality]]:
    """All cases and labels, the worst first."""
    rows = [(case.case, one) for case in result.cases for one in case.labels]
    return sorted(rows, key=lambda row: (row[1].predicted_dice, row[0], row[1].label))


def _page(result: ReviewResult, shown: Sequence[CaseQuality]) -> bytes:
    rows = _rows(result)
    header = element("header", None, element("h1", None, "Where to look first"), paragraph(_what_it_is(result)))
    header.append(element("div", {"class": "cards"}, *_cards(result, rows)))
    main = element("main")
    if result.failures:
        main.append(element("h2", None, "Could not be judged"))
        items = [element("li", None, f"{one.case}: {one.reason}") for one in result.failures]
        main.append(element("ul", None, *items))
    if shown:
        main.append(element("h2", None, f"The worst {len(shown)} of {len(result.cases)}"))
    for place, case in enumerate(shown, start=1):
        main.append(_sheet(place, case))
    main.append(element("h2", None, "The queue"))
    main.append(paragraph(f"A line a case and label, the worst first{_cut(rows)}."))
    main.append(_queue(rows[:MOST_ROWS]))
    body = element("body", None, header, main, element("footer", None, paragraph(DISCLAIMER)))
    return page("Review", STYLE + SHEETS, body)


def _cards(result: ReviewResult, rows: Sequence[tuple[str, LabelQuality]]) -> Iterator[Element]:
    yield card(f"{len(result.cases)}", "cases judged")
    yield card(f"{len(result.failures)}", "could not be judged")
    if rows:
        yield card(f"{np.mean([one.predicted_dice for _, one in rows]):.2f}", "mean predicted Dice")
        yield card(f"{sum(any(one.flags for one in case.labels) for case in result.cases)}", "cases with a flag")
    if result.calibration:
        yield card(f"± {result.calibration.error:.2f}", "mean error on labelled cases left out")


def _what_it_is(result: ReviewResult) -> str:
    support = f"{len(result.support)} labelled {'case' if len(result.support) == 1 else 'cases'}"
    if result.calibration is None:
        return (
            f"No reference of these cases was looked at. The predicted Dice is the plain mean of the signals, found by "
            f"{support} and not calibrated: good for an order, not as a number."
        )
    return (
        f"No reference of these cases was looked at. The predicted Dice is calibrated on {support}, each segmented by "
        "a model of the others: an estimate from few, good for an order and less so as a number."
    )


def _cut(rows: Sequence[tuple[str, LabelQuality]]) -> str:
    return f"; the first {MOST_ROWS} of {len(rows)}, all are in {TABLE}" if len(rows) > MOST_ROWS else ""


def _sheet(place: int, case: CaseQuality) -> Element:
    """A case's picture below what is expected of its labels."""
    title = element("h3", None, f"{place}. {case.case}")
    lines = [
        element(
            "li",
            None,
            element("b", None, f"{one.name} {one.predicted_dice:.2f}"),
            "".join(f" · {flag}" for flag in one.flags),
        )
        for one in sorted(case.labels, key=lambda one: one.predicted_dice)
    ]
    source = f"{PICTURES}/{quote(case.case)}.png"
    image = element("img", {"src": source, "alt": f"slices of {case.case}", "loading": "lazy"})
    link = element("a", {"href": source}, image)
    return element("figure", {"class": "sheet"}, title, element("ul", {"class": "legend"}, *lines), link)


def _queue(rows: Sequence[tuple[str, LabelQuality]]) -> Element:
    heads = ["case", "label", "predicted Dice", *SIGNALS, "flags"]
    head = element("thead", None, element("tr", None, *[element("th", None, text) for text in heads]))
    body = element("tbody")
    for case, one in rows:
        cells = [_number(one.predicted_dice), *[_number(getattr(one.signals, name)) or "–" for name in SIGNALS]]
        body.append(
            element(
                "tr",
                None,
                element("th", None, case),
                element("td", {"class": "text"}, one.name),
                *[element("td", None, text) for text in cells],
                element("td", {"class": "text"}, ", ".join(one.flags)),
            )
        )
    return element("div", {"class": "scroll"}, element("table", None, head, body))


def _number(value: float) -> str:
    """Three digits; nothing for nan."""
    return "" if np.isnan(value) else f"{value:.3f}"
