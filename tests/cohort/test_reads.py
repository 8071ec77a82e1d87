"""Files are read once for what is known of them, and once for their voxels: counted by the system's opens."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import small_cohort
import tiny_models
from handful.backbones.base import Backbone
from handful.checkpoint.record import RECORD
from handful.cohort.choice import choose_support
from handful.cohort.fit import fit_to_folder
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.data.files import read_cohort
from handful.methods.catalog import METHODS
from whole import build_whole

QUICK = {
    "auto": {"unet.train.iterations": 1},
    "auto-sam": {"train.iterations": 1, "views": 8},
    "auto-sam-unet": {"train.iterations": 1, "views": 8},
    "ensemble": {"auto_sam_unet.train.iterations": 1, "auto_sam_unet.views": 8, "unet.train.iterations": 1},
    "few-shot-prompts": {"train.iterations": 1, "views": 8},
    "interactive": {"train.iterations": 1},
    "know-sam": {"train.iterations": 1},
    "lora": {"train.iterations": 1},
    "self-training": {"train.iterations": 1},
    "unet": {"train.iterations": 1},
    "volume-adapter": {"train.iterations": 1},
}
WRAPPED = [
    ("nearest-slice", {"roi_margin": "auto"}),
    ("few-shot-prompts", {"train.iterations": 1, "views": 8, "roi_margin": "auto"}),
    ("nearest-slice", {"roi_margin": 1.5}),
    ("nearest-slice", {"planes": "axial,coronal,sagittal", "roi_margin": 1.5}),
    ("unet", {"train.iterations": 1, "seeds": 3}),
    ("unet", {"train.iterations": 1, "pretrain": "simclr", "contrast.iterations": 1}),
]

opened: Counter[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and opened is not None and isinstance(arguments[0], str | Path):
        opened[str(arguments[0])] += 1


sys.addaudithook(_note)  # cannot be taken off again; it does nothing while `opened` is None


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """The number of opens of each path meanwhile."""
    global opened
    opened = Counter()
    try:
        yield opened
    finally:
        opened = None


@pytest.fixture(scope="module")
def memory_backbone() -> Backbone:
    return tiny_models.tiny_sam2_video(side=64)


@pytest.mark.parametrize(("name", "settings"), [*((name, QUICK.get(name, {})) for name in sorted(METHODS)), *WRAPPED])
def test_a_fit_reads_each_scan_and_each_reference_twice_and_once_more_to_report_its_dice(
    name: str, settings: dict[str, object], folder: Path, memory_backbone: Backbone, tmp_path: Path
):
    method = build_whole(name, settings)
    with counted() as opens:
        support = choose_support(read_cohort(folder), ["case-0", "case-1"])
        fit_to_folder(name, method, support, memory_backbone, tmp_path / "model")
    most = 3 if method.trains else 2
    for kind in ("images", "labels"):
        found = [opens[str(folder / kind / f"case-{number}.nii.gz")] for number in (0, 1)]
        assert 1 <= min(found) <= max(found) <= most, (kind, found)


@pytest.mark.parametrize("preview", [False, True])
def test_a_prediction_reads_each_scan_once_no_reference_and_the_record_once(
    preview: bool, model: Path, folder: Path, tmp_path: Path
):
    with counted() as opens:
        cases = read_cohort(folder, images_only=True).cases
        result = predict_cohort(model, cases, tmp_path / "out", PredictConfig(preview=preview))
    assert len(result.done) == len(cases)
    assert {opens[str(case.image)] for case in cases} == {1}
    assert not any("labels" in Path(path).parts and "case-" in path for path in opens if path.startswith(str(folder)))
    assert opens[str(model / RECORD)] == 1


def test_a_resumed_prediction_reads_what_is_done_once_and_loads_no_model(model: Path, folder: Path, tmp_path: Path):
    cases = read_cohort(folder, images_only=True).cases
    predict_cohort(model, cases, tmp_path / "out")
    with counted() as opens:
        again = predict_cohort(model, cases, tmp_path / "out")
    assert len(again.skipped) == len(cases)
    assert {opens[str(case.image)] for case in cases} == {1}
    assert opens[str(model / "weights.safetensors")] == 0


def test_scans_without_named_labels_are_predicted_without_reading_a_reference(model: Path, tmp_path: Path):
    own = small_cohort.write_cohort(tmp_path / "own")
    (own / "dataset.json").unlink(missing_ok=True)
    with counted() as opens:
        predict_cohort(model, read_cohort(own, images_only=True).cases, tmp_path / "out")
    assert not any(Path(path).parent == own / "labels" for path in opens)
