"""Output of an evaluation: a table on the terminal, CSV, JSON, and nnU-Net's summary.json."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from handful.evaluation.evaluate import METRICS, Estimate, Report, Row, Summary
from handful.jobs import atomic
from handful.jobs.json_values import json_value
from handful.jobs.plain_text import spreadsheet_text, visible

FORMAT = 2
"""Version of the JSON format; raised with every incompatible change."""

COUNTS = ("tp", "fp", "fn", "tn", "n_pred", "n_ref")


def print_table(report: Report, console: Console) -> None:
    """Print one line per label and one for their mean: mean and 95 % interval over cases, missed, false positive."""
    summaries = report.summary()
    unit = summaries[-1].unit
    tolerance = f"{report.tolerance_mm:g} {unit}"
    caption = _caption(summaries[-1], tolerance)
    titles = ("label", "n", "Dice", f"HD95, {unit}", f"surface Dice, {tolerance}", "missed", "false positive")
    table = _table(titles, summaries, " ")
    if Measurement.get(console, console.options.update(max_width=1000), table).maximum > console.width:
        table = _table([title.replace(" ", "\n") for title in titles], summaries, "\n")
    table.caption, table.caption_justify = caption, "left"
    console.print(table)
    for failure in report.failures:
        console.print(f"[bold red]failed[/] {_shown(failure.case)}: {_shown(failure.reason)}", soft_wrap=True)


def write_csv(report: Report, path: Path) -> None:
    """Write one line per case and label; an undefined value becomes an empty cell."""
    text = io.StringIO()
    fields = ("case", "label", "name", "status", "unit", *METRICS, *COUNTS)
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        writer.writerow({name: spreadsheet_text(value) for name, value in json_value(_flat(row)).items()})
    atomic.remove_leftovers_of(path)
    atomic.write_atomically(path, text.getvalue().encode())


def write_json(report: Report, path: Path) -> None:
    """Write rows, summary, failures and the tolerance; an undefined value becomes null."""
    content = {
        "format": FORMAT,
        "handful": version("handful"),
        "tolerance_mm": report.tolerance_mm,
        "summary": report.summary(),
        "rows": [_flat(row) for row in report.rows],
        "failures": report.failures,
    }
    atomic.remove_leftovers_of(path)
    atomic.write_json(path, json_value(content))


def write_nnunet_summary(report: Report, path: Path) -> None:
    """Write a file in the format of nnU-Net's `summary.json`.

    Dice and IoU of an absent label are null, since they are undefined in nnU-Net; means are over the other cases, and
    `foreground_mean` is the mean over the labels' means. A case without files is listed under its name.
    """
    by_case: dict[str, dict[str, dict[str, float]]] = {}
    for row in report.rows:
        by_case.setdefault(row.case, {})[str(row.label)] = _nnunet_metrics(row)
    labels = {str(row.label): None for row in sorted(report.rows, key=lambda row: row.label)}
    mean = {label: _nnunet_mean(case[label] for case in by_case.values() if label in case) for label in labels}
    content = {
        "metric_per_case": [
            {
                "reference_file": report.files[case].reference if case in report.files else case,
                "prediction_file": report.files[case].prediction if case in report.files else case,
                "metrics": metrics,
            }
            for case, metrics in by_case.items()
        ],
        "mean": mean,
        "foreground_mean": _nnunet_mean(mean.values()),
    }
    atomic.remove_leftovers_of(path)
    atomic.write_json(path, json_value(content))


def _table(titles: Sequence[str], summaries: Sequence[Summary], gap: str) -> Table:
    """The scores as a table; `gap` is what separates a mean from its interval."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        label = title == "label"
        table.add_column(title, justify="left" if label else "right", overflow="fold", no_wrap=not label)
    for summary in summaries:
        if summary.label is None:
            table.add_section()
        table.add_row(*_cells(summary, gap), style="bold" if summary.label is None else None)
    return table


def _caption(overall: Summary, tolerance: str) -> str:
    absent = f"; absent from both maps (left out): {overall.absent}" if overall.absent else ""
    return (
        "mean [95 % interval over cases]; missed and false positive labels count as Dice 0 and HD95 = image "
        f"diagonal{absent}; surface Dice within {tolerance}; n: number of cases"
    )


def _cells(summary: Summary, gap: str) -> list[str]:
    missed = f"{summary.missed} of {summary.missed_of}"
    return [
        _shown(summary.name),
        str(summary.n),
        _interval(summary.estimates["dice"], 3, gap),
        _interval(summary.estimates["hd95"], 1, gap),
        _interval(summary.estimates["surface_dice"], 3, gap),
        f"[red]{missed}[/]" if summary.missed else missed,
        f"[red]{summary.false_positive}[/]" if summary.false_positive else "0",
    ]


def _interval(estimate: Estimate, digits: int, gap: str) -> str:
    if math.isnan(estimate.mean):
        return "–"
    if math.isnan(estimate.low):
        return f"{estimate.mean:.{digits}f}"
    return rf"{estimate.mean:.{digits}f}{gap}\[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _flat(row: Row) -> dict[str, object]:
    """The fields and counts of a row in one dictionary."""
    named = {name: getattr(row, name) for name in ("case", "label", "name", "status", "unit", *METRICS)}
    return named | {name: getattr(row.counts, name) for name in COUNTS}


def _nnunet_metrics(row: Row) -> dict[str, float]:
    counts, undefined = row.counts, row.status == "absent"
    return {
        "Dice": math.nan if undefined else row.dice,
        "IoU": math.nan if undefined else row.iou,
        "FP": counts.fp,
        "TP": counts.tp,
        "FN": counts.fn,
        "TN": counts.tn,
        "n_pred": counts.n_pred,
        "n_ref": counts.n_ref,
    }


def _nnunet_mean(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    columns: dict[str, list[float]] = {}
    for scores in metrics:
        for name, value in scores.items():
            columns.setdefault(name, []).append(value)
    return {name: _mean_of_defined(values) for name, values in columns.items()}


def _mean_of_defined(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _shown(text: str) -> str:
    """Text from file names and dataset.json, without effect on rich and on the terminal."""
    return escape(visible(text))
