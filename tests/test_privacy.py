"""What models and outputs hold of a planted patient: a name, a path, a header text, and the pictures themselves."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.checkpoint import open_model
from handful.cohort.fit import FitConfig, fit_to_folder
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.data.files import read_cohort, write_label_map, write_volume
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.errors import SettingsError
from handful.methods.catalog import build_method
from phantoms import LABELS, phantom

NAME, WARD, TEXT = "Jane-Doe-1970", "ward-7-secret", "UID 1.2.840.99"
SMALL = {"train.iterations": 2, "batch": 1}
MODELS = {
    "nearest-slice": {"roi_margin": "none"},
    "fate": {"roi_margin": "none"},
    "zero-shot": {"roi_margin": "none"},
    "few-shot-prompts": {"views": 1, "roi_margin": "none", **SMALL},
    "lora": {"rank": 2, "roi_margin": "none", **SMALL},
    "lora, cropped": {"rank": 2, "roi_margin": 1.5, **SMALL},
}
"""Settings of a fit of each kind; the method is what stands before the comma."""
HOLD = {
    "nearest-slice": {"masks", "pictures"},
    "fate": {"pictures", "masks", "embeddings", "names"},
    "zero-shot": {"pictures"},
    "few-shot-prompts": {"embeddings", "names"},
    "lora": set(),
    "lora, cropped": {"pictures"},
}


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort in a telling folder, whose scans have a telling name and a telling header."""
    folder = tmp_path_factory.mktemp("private") / WARD
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed, name in enumerate((NAME, f"{NAME}-again")):
        image, reference = phantom(seed)
        write_volume(folder / "images" / f"{name}.nii", image)
        write_label_map(folder / "labels" / f"{name}.nii", reference)
        marked = nib.load(folder / "images" / f"{name}.nii")
        marked.header["descrip"] = TEXT.encode()
        nib.save(nib.Nifti1Image(marked.get_fdata(dtype=np.float32), marked.affine, marked.header), folder / "new.nii")
        os.replace(folder / "new.nii", folder / "images" / f"{name}.nii")
    names = {"0": "background"} | {str(value): name for value, name in LABELS.as_dict().items()}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    return folder


@pytest.fixture(scope="module")
def backbone(ward: Path) -> Backbone:
    tiny_models.tiny_sam2_video(side=64).model.save_pretrained(ward / "backbone")
    return load_backbone(ward / "backbone")


@pytest.fixture(scope="module")
def support(ward: Path) -> SupportSet:
    cohort = read_cohort(ward)
    assert cohort.labels is not None
    return SupportSet(cohort.cases, cohort.labels)


def found_in(folder: Path) -> set[str]:
    """Which of the planted texts are in the names or the contents of any file."""
    content = b"\n".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    names = " ".join(str(p.relative_to(folder)) for p in folder.rglob("*")).encode()
    texts = {"name": NAME, "path": WARD, "header": TEXT}
    return {what for what, text in texts.items() if text.encode() in content or _as_numbers(text) in content + names}


def _as_numbers(text: str) -> bytes:
    return np.frombuffer(text.encode(), np.uint8).tobytes()


def shows_pictures(model: Path, support: SupportSet) -> bool:
    """Whether rows of any tensor look like thumbnails of a labelled slice."""
    slices = torch.cat([one.slices for one in support.slices(Slicer())])
    for tensor in load_file(model / "weights.safetensors").values():
        rows = tensor.float().reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.float()[None]
        side = math.isqrt(rows.shape[1])
        if side >= 8 and side**2 == rows.shape[1] and len(rows) < 100:
            small = F.adaptive_avg_pool2d(slices, side).flatten(1)
            with np.errstate(invalid="ignore"):  # constant rows
                alike = np.corrcoef(torch.cat([rows, small]).numpy())[: len(rows), len(rows) :]
            if np.nan_to_num(alike).max() > 0.95:
                return True
    return False


@pytest.mark.parametrize("kind", MODELS)
def test_the_record_of_a_model_states_what_it_holds(
    kind: str, support: SupportSet, backbone: Backbone, tmp_path: Path
) -> None:
    name = kind.split(",")[0]
    fit_to_folder(name, build_method(name, MODELS[kind]), support, backbone, tmp_path / "m", FitConfig(leave_out=False))
    model = open_model(tmp_path / "m")
    assert set(model.record.holds) == HOLD[kind]
    assert found_in(tmp_path / "m") == {"name", "path"}  # the names of the cases, and where the backbone is
    assert WARD not in (tmp_path / "m" / "README.md").read_text()
    assert shows_pictures(tmp_path / "m", support) == ("pictures" in HOLD[kind])
    content = model.content()
    assert any(NAME in line for line in content.holds)
    assert content.paths == [backbone.name]


@pytest.mark.parametrize("kind", ["lora", "few-shot-prompts"])
def test_an_anonymous_model_holds_no_name_path_or_picture(
    kind: str, support: SupportSet, backbone: Backbone, tmp_path: Path
) -> None:
    out, config = tmp_path / "m", FitConfig(anonymous=True)
    fit_to_folder(kind, build_method(kind, MODELS[kind]), support, backbone, out, config)
    assert found_in(out) == set()
    assert not shows_pictures(out, support)
    model = open_model(out)
    assert (model.record.backbone, model.content().paths) == ("backbone", [])
    assert sorted(model.fitted_on) == ["case-1", "case-2"]
    assert model.load(backbone).labels == LABELS
    assert not any("names" in line for line in model.content().holds)


@pytest.mark.parametrize("kind", ["nearest-slice", "fate", "zero-shot", "lora, cropped"])
def test_a_method_that_keeps_pictures_makes_no_anonymous_model(
    kind: str, support: SupportSet, backbone: Backbone, tmp_path: Path
) -> None:
    name = kind.split(",")[0]
    with pytest.raises(SettingsError, match=f"{name} keeps pictures or masks"):
        fit_to_folder(
            name, build_method(name, MODELS[kind]), support, backbone, tmp_path / "m", FitConfig(anonymous=True)
        )


def test_predictions_hold_the_names_of_their_files_alone(
    ward: Path, support: SupportSet, backbone: Backbone, tmp_path: Path
) -> None:
    method = build_method("nearest-slice", MODELS["nearest-slice"])
    fit_to_folder("nearest-slice", method, support, backbone, tmp_path / "m", FitConfig(leave_out=False))
    (ward / "images" / f"{NAME}-broken.nii").write_bytes(b"no scan")
    cases = read_cohort(ward, images_only=True).cases
    result = predict_cohort(tmp_path / "m", cases, tmp_path / "p", PredictConfig(probabilities=True))
    (ward / "images" / f"{NAME}-broken.nii").unlink()
    assert [failure.case for failure in result.failures] == [f"{NAME}-broken"]
    assert found_in(tmp_path / "p") <= {"name"}
    assert NAME not in (tmp_path / "p" / "run.json").read_text()
