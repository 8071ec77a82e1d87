"""Pictures of scan, prediction and reference for the cases of a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handful.data.cases import Cohort
from handful.data.files import read_label_map
from handful.data.inputs import Inputs
from handful.data.volume import Labels
from handful.data.voxel_order import in_order_of
from handful.evaluation.evaluate import Failure, Report
from handful.reports.overlay import write_overlay


@dataclass(frozen=True)
class OverlayResult:
    """Names of the cases, by outcome."""

    written: tuple[str, ...]
    without_scan: tuple[str, ...]
    failures: tuple[Failure, ...]


def write_overlays(
    report: Report,
    scans: Cohort,
    out: Path,
    labels: Labels | None = None,
    ignore: int | None = None,
    background: int = 0,
) -> OverlayResult:
    """Write `out`/CASE.png for every case of the report that has a scan and did not fail.

    A case whose picture fails is listed, and the others are still written. A picture never replaces a scan or a label
    map.
    """
    scan_of = {case.name: case for case in scans.cases}
    failed = {failure.case for failure in report.failures}
    ready = [case for case, files in report.files.items() if files.prediction and case not in failed]
    maps = [Path(name) for files in report.files.values() for name in (files.prediction, files.reference) if name]
    inputs = Inputs.of(scans.cases, [*scans.files, *maps])
    written: list[str] = []
    failures: list[Failure] = []
    for name in (name for name in ready if name in scan_of):
        case, files = scan_of[name], report.files[name]
        try:
            picture = out / f"{name}.png"
            inputs.require_not_among(picture)
            volume = case.read_image()
            grid = volume.geometry
            prediction = read_label_map(str(files.prediction), labels, None, background, grid=grid)
            reference = read_label_map(files.reference, labels, ignore, background, grid=grid)
            write_overlay(picture, volume, in_order_of(prediction, grid), in_order_of(reference, grid), case=name)
            written.append(name)
        except Exception as error:  # any error concerns this picture only
            failures.append(Failure(name, f"no picture: {Failure.of(case, error).reason}"))
    return OverlayResult(tuple(written), tuple(name for name in ready if name not in scan_of), tuple(failures))
