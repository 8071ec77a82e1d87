"""The estimated time of a fit and of a prediction, compared with the time that each then takes.

    python benchmarks/estimates.py [--only TEXT ...] [--json FILE]

Each row is one method with one backbone and default settings (but for the number of steps in the rows that name one),
fitted on two phantoms of 96 x 88 voxels. `fit` estimates with trials on noise; `predict` estimates with a few slices of
the scan, and then segments all of it. Both are times by the clock, so the machine must do nothing else. Large encoders
have random weights, which take as long as trained ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from handful.backbones.base import Backbone
from handful.jobs.allocator import tune_allocator
from handful.jobs.progress import Run
from handful.methods.catalog import build_method
from handful.methods.cost import estimate_fit, estimate_prediction
from material import sam2_tiny, sam_vit_b, support, tiny
from measure import Section, Table, show

LARGE = (96, 88, 2)
"""Shape of the two scans for large encoders; those for handful-tiny have 12 slices."""
SLICES = 16
"""The predicted scan has so many times the slices of a labelled one, for large encoders a quarter of that."""


@dataclasses.dataclass(frozen=True)
class Trial:
    method: str
    backbone: Callable[[], Backbone]
    shape: tuple[int, int, int] = (96, 88, 12)
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def predicted(self) -> tuple[int, int, int]:
        """Shape of the scan that is predicted."""
        rows, columns, slices = self.shape
        return rows, columns, slices * (SLICES // 4 if self.shape == LARGE else SLICES)


def _sam2() -> Backbone:
    return sam2_tiny(1024)


TRIALS = (
    Trial("few-shot-prompts", tiny),
    Trial("fate", tiny),
    Trial("unet", tiny, settings={"train.iterations": 300}),
    Trial("few-shot-prompts", _sam2, LARGE, {"train.iterations": 30}),
    Trial("few-shot-prompts", sam_vit_b, LARGE, {"train.iterations": 30}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose text holds one of these")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    tune_allocator()
    rows = []
    for trial in TRIALS:
        backbone = trial.backbone()
        name = ", ".join([trial.method, backbone.name, *(f"{key}={value}" for key, value in trial.settings.items())])
        if not arguments.only or any(text in name for text in arguments.only):
            rows.append((name, *_measured(trial, backbone)))
            print(rows[-1], flush=True)
    columns = ("", "fit estimated, s", "fit, s", "ratio", "prediction estimated, s", "prediction, s", "ratio")
    section = Section((Table("estimates and the clock", columns, tuple(rows)),))
    show("estimates", section)
    if arguments.json:
        arguments.json.write_text(json.dumps(dataclasses.asdict(section), indent=2) + "\n", encoding="utf-8")


def _measured(trial: Trial, backbone: Backbone) -> tuple[float, ...]:
    method = build_method(trial.method, trial.settings)
    labelled = support(2, trial.shape)
    scan = support(3, trial.predicted()).cases[2].read_image()
    cost = estimate_fit(method, labelled, backbone)
    assert cost is not None, trial
    began = time.perf_counter()
    segmenter = method.fit(labelled, backbone, Run())
    fitted = time.perf_counter()
    expected = estimate_prediction(segmenter, scan, 1)
    assert expected is not None, trial
    ready = time.perf_counter()
    segmenter.predict(scan)
    predicted = time.perf_counter()
    fit_s, predict_s = fitted - began, predicted - ready
    figures = (cost.fit_s, fit_s, cost.fit_s / fit_s, expected.seconds, predict_s, expected.seconds / predict_s)
    return tuple(float(f"{figure:.3g}") for figure in figures)


if __name__ == "__main__":
    main()
