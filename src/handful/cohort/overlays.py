"""Pictures of scan, prediction and reference for the cases of a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handful.data.cases import Cohort
from handful.data.files import read_label_map
from handful.data.volume import Labels
from handful.evaluation.evaluate import Report
from handful.reports.overlay import write_overlay


@dataclass(frozen=True)
class OverlayResult:
    """Names of the cases, by outcome."""

    written: tuple[str, ...]
    without_scan: tuple[str, ...]


def write_overlays(
    report: Report, scans: Cohort, out: Path, labels: Labels | None = None, ignore: int | None = None
) -> OverlayResult:
    """Write `out`/CASE.png for every case of the report that has a scan and did not fail."""
    scan_of = {case.name: case for case in scans.cases}
    failed = {failure.case for failure in report.failures}
    ready = [case for case, files in report.files.items() if files.prediction and case not in failed]
    written = tuple(case for case in ready if case in scan_of)
    for case in written:
        files = report.files[case]
        volume = scan_of[case].read_image()
        prediction = read_label_map(str(files.prediction), labels, grid=volume.geometry)
        reference = read_label_map(files.reference, labels, ignore, grid=volume.geometry)
        write_overlay(out / f"{case}.png", volume, prediction, reference, case=case)
    return OverlayResult(written, tuple(case for case in ready if case not in scan_of))
