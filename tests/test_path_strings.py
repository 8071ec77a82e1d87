"""Everything public that takes a path takes a string, too."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import handful as h
import small_cohort
from handful.backbones.base import Backbone
from handful.cohort.choice import choose_support
from handful.data.inputs import Inputs
from phantoms import phantom


def takes_paths(annotation: Any) -> bool:
    return re.search(r"\bPath\b", written(annotation)) is not None


def takes_strings(annotation: Any) -> bool:
    """Whether each Path in an annotation may also be a string."""
    return re.search(r"(?<!\bstr \| )\bPath\b", written(annotation)) is None


def written(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("pathlib.", "")


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions, and the constructors and methods of public classes."""
    for name in h.__all__:
        public = getattr(h, name)
        if inspect.isfunction(public):
            yield name, public
        elif inspect.isclass(public):
            for method, function in inspect.getmembers(public, is_python):
                if method == "__init__" or not method.startswith("_"):
                    yield f"{name}.{method}", function


def is_python(member: object) -> bool:
    return inspect.isfunction(member) or inspect.ismethod(member)


def test_everything_public_that_takes_a_path_takes_a_string():
    annotations = {
        f"{name}({parameter.name})": parameter.annotation
        for name, function in functions()
        for parameter in inspect.signature(function).parameters.values()
        if takes_paths(parameter.annotation)
    }
    assert annotations.keys() >= {
        "load(folder)",
        "Session.save(path)",
        "Auxiliary.load(path)",
        "Case.__init__(image)",
        "DataSet.__init__(folder)",
        "PredictConfig.__init__(cache)",
    }
    assert [name for name, annotation in annotations.items() if not takes_strings(annotation)] == []


def test_files_that_are_strings_are_read_and_never_replaced(folder: str):
    image, labels = f"{folder}/images/case-0.nii.gz", f"{folder}/labels/case-0.nii.gz"
    case = h.Case("a", image, labels)
    assert case == h.Case("a", Path(image), Path(labels))
    reference = case.read_reference()
    assert reference is not None
    assert (reference.array == phantom(0)[1].array).all()
    files = h.SequenceFiles((image, image), ("T1", "T2"))
    two = h.Case("b", files).absolute()
    assert two.read_image().sequences == ("T1", "T2")
    assert two.image_digest() == two.read_image_and_digest()[1]
    for inputs in (Inputs.of([case], ()), Inputs.of([h.Case("b", files)], [labels])):
        for path in (Path(image), Path(labels)):
            with pytest.raises(h.InputError, match="never replaced"):
                inputs.require_not_among(path)


def test_a_cohort_is_fitted_segmented_scored_and_reviewed_with_strings(folder: str, backbone: Backbone, tmp_path: Path):
    model, copy, out, review, cache = (str(tmp_path / name) for name in ("model", "copy", "out", "review", "cache"))
    cohort = h.read_cohort(folder)
    method, support = h.NearestSlice(similarity="embedding"), choose_support(cohort, ["case-0"])
    h.fit_to_folder("nearest-slice", method, support, backbone, model, h.FitConfig(leave_out=False))
    h.save(h.load(model), copy, method_name="nearest-slice", method=method, provenance={})
    result = h.predict_cohort(copy, cohort.cases, out, h.PredictConfig(device="cpu", cache=cache), inputs=[folder])
    assert (result.done, result.failures) == (("case-0", "case-1", "case-2"), ())
    assert any((tmp_path / "cache").glob("*.safetensors"))

    scores = h.evaluate_folders(out, f"{folder}/labels")
    files = {case.name: f"{folder}/labels/{case.name}.nii.gz" for case in cohort.cases}
    assert scores.failures == ()
    assert [(row.case, row.label, row.dice) for row in scores.rows] == [
        (row.case, row.label, row.dice) for row in h.evaluate_folders(out, files).rows
    ]

    config = h.ReviewConfig(device="cpu", cache=cache, worst=1, calibrate=False)
    reviewed = h.review_folder(out, model, cohort, review, config=config)
    assert {case.case for case in reviewed.cases} == {"case-1", "case-2"}
    assert (tmp_path / "review" / "review.csv").exists()


def test_an_expert_is_added_with_strings(folder: str, backbone: Backbone, tmp_path: Path):
    method, support = h.NearestSlice(), choose_support(h.read_cohort(folder), ["case-0"])
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    h.fit_expert("nearest-slice", method, support, backbone, one, expert="first")
    h.fit_expert("nearest-slice", method, support, backbone, two, expert="second", add_to=one)
    assert h.load(two).experts.keys() == {"first", "second"}


def test_an_experiment_is_run_and_reported_with_strings(folder: str, tmp_path: Path):
    plan = h.Plan(
        name="strings",
        data={"phantoms": h.DataSet(folder=folder)},
        configurations={"nearest": h.Configuration(method="nearest-slice")},
        shots=(1,),
        splits=(0,),
        backbone=str(small_cohort.write_backbone(tmp_path / "backbone")),
    )
    out, config = str(tmp_path / "out"), h.ExperimentConfig(workers=1, cache=str(tmp_path / "cache"))
    status = h.run_experiment(plan, out, config)
    assert (len(status.done), status.failed) == (1, ())
    assert h.write_experiment_report(out)[-1] == tmp_path / "out" / "report.html"
    assert {row.case for row in h.read_results(f"{out}/results.csv")} < {"case-0", "case-1", "case-2"}


def test_a_learner_and_a_cache_have_their_files_by_strings(backbone: Backbone, tmp_path: Path):
    learner = h.Auxiliary()
    learner.save(str(tmp_path / "learned.safetensors"))
    assert h.Auxiliary.load(str(tmp_path / "learned.safetensors")).packed() == learner.packed()
    kept = h.cached(backbone, str(tmp_path / "cache"))
    kept.encode(torch.rand(1, 1, 40, 60))
    assert any((tmp_path / "cache").iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three labelled phantoms; read it, never write into it."""
    return str(small_cohort.write_cohort(tmp_path_factory.mktemp("cohort") / "phantoms", cases=3))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return h.load_backbone(str(small_cohort.write_backbone(tmp_path_factory.mktemp("backbone"))))
