"""Prediction of series in a DICOMweb archive: found by a query, segmented one by one, and stored as DICOM-SEG."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from handful.cohort.choice import choose_cases
from handful.cohort.predict import CohortResult, PredictConfig, predict_cohort
from handful.data.cases import Case, Cohort
from handful.data.dicom.series import SeriesChoice
from handful.data.dicom.web import WAITS, Archive, Series, parse_query, token_from_environment
from handful.data.volume import Volume
from handful.errors import InputError, SettingsError
from handful.jobs.atomic import remove_leftovers
from handful.jobs.digests import digest_of_file, digest_of_json
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES, Notes
from handful.jobs.progress import Report, silent


def predict_archive(
    model: str | Path,
    address: str,
    out: str | Path,
    config: PredictConfig | None = None,
    report: Report = silent,
    *,
    names: Sequence[str] = (),
    slice_tolerance: float | None = None,
    store: bool = True,
    waits: Sequence[float] = WAITS,
) -> CohortResult:
    """Segment the series of a DICOMweb archive that a query finds, and store the segmentations there.

    `address` is as for `parse_query`; `names` are series instance UIDs, by default all that are found. Each series is a
    case with its UID as name. One series at a time is on this computer, in `out`/.handful; `out` holds the
    segmentations. A series that cannot be fetched, segmented or stored is a failure, and the others are still done.

    Run again, the function neither fetches nor segments a series whose list of images, model and result are the same as
    before, and stores only what was not stored yet. Requests are repeated after `waits` seconds.

    Raises ArchiveError if the search fails, InputError if it finds nothing, SettingsError for several workers.
    """
    query = parse_query(address)
    archive = Archive(query.url, token_from_environment(), waits)
    config, out = config or PredictConfig(), Path(out)
    if config.workers > 1 or config.scheduler is not None:
        raise SettingsError("an archive is segmented by one process; leave workers and scheduler out")
    if config.format == "auto":
        config = replace(config, format="dicom-seg")
    choice = SeriesChoice(slice_tolerance=slice_tolerance)
    folder = out / NOTES / "archive"
    cases = tuple(
        _ArchivedCase(one.uid, folder / "incoming", choice=choice, archive=archive, series=one)
        for one in archive.search(query.filters)
    )
    if not cases:
        raise InputError("the query finds no series of images in the archive; check its values")
    chosen = choose_cases(Cohort(cases, None, "of the archive"), names)
    with locked(folder):
        remove_leftovers(folder / "stored")
        deliver = _Delivery(archive, query.url, folder / "stored") if store else None
        try:
            return predict_cohort(model, chosen, out, config, report, deliver)
        finally:
            shutil.rmtree(folder / "incoming", ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _ArchivedCase(Case):
    """A series in an archive, whose `image` is the folder into which it is fetched when it is read."""

    archive: Archive
    series: Series

    @property
    def is_dicom(self) -> bool:
        return True

    def read_image_and_digest(self) -> tuple[Volume, str]:
        instances = self.archive.instances(self.series)
        assert isinstance(self.image, Path)
        self.archive.fetch(self.series, instances, self.image)
        return self.read_image(), digest_of_json(instances)

    def image_digest(self) -> str:
        """SHA-256 of the list of images; the standard forbids to change an image without changing its UID."""
        return digest_of_json(self.archive.instances(self.series))


@dataclass(frozen=True)
class _Note:
    """What was stored, and where, as SHA-256."""

    output: str
    archive: str


class _Delivery:
    """Stores segmentations, each once."""

    def __init__(self, archive: Archive, url: str, folder: Path) -> None:
        self.archive = archive
        self.place = hashlib.sha256(url.encode()).hexdigest()
        self.notes = Notes(folder, _Note)

    def __call__(self, case: Case, output: Path) -> None:
        note = _Note(digest_of_file(output), self.place)
        if self.notes.read(case.name) != note:
            self.archive.store(output)
            self.notes.write(case.name, note)
