"""What models and outputs hold of a planted patient: a name, a path, a header text, and the pictures themselves."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.checkpoint.model import open_model
from handful.cli import app
from handful.cohort.fit import FitConfig, fit_to_folder
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.data.files import read_cohort, read_volume, write_label_map, write_volume
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.errors import SettingsError
from handful.methods.catalog import METHODS, build_method
from handful.session.session import Session
from phantoms import LABELS, phantom

NAME, WARD, TEXT = "Jane-Doe-1970", "ward-7-secret", "UID 1.2.840.99"
SMALL = {"train.iterations": 2, "batch": 2}
NET = {"encoder": "none", "channels": 4, "side": 32, "roi_margin": "none", **SMALL}
MODELS = {
    "nearest-slice": {"roi_margin": "none"},
    "fate": {"roi_margin": "none"},
    "zero-shot": {"roi_margin": "none"},
    "few-shot-prompts": {"views": 1, "roi_margin": "none", **SMALL},
    "lora": {"rank": 2, "roi_margin": "none", **SMALL},
    "lora, cropped": {"rank": 2, "roi_margin": 1.5, **SMALL},
    "volume-adapter": {"rank": 2, "width": 2, "depth": 3, "roi_margin": "none", **SMALL},
    "interactive": {"rounds": 1, **SMALL},
    "unet": NET,
    "self-training": {"initial": "none", **NET},
    "know-sam": NET,
    "auto-sam": {"views": 1, "roi_margin": "none", **SMALL},
    "auto-sam-unet": {"views": 1, "roi_margin": "none", **SMALL},
    "auto": {f"unet.{key}": value for key, value in NET.items() if key != "roi_margin"}
    | {"check": False, "roi_margin": "none"},
    "ensemble": {f"unet.{key}": value for key, value in NET.items() if key != "roi_margin"}
    | {f"auto_sam_unet.{key}": value for key, value in ({"views": 1} | SMALL).items()}
    | {"roi_margin": "none"},
}
"""Settings of a fit of each kind; the method is what stands before the comma."""
HOLD = {
    "nearest-slice": {"masks", "pictures"},
    "fate": {"pictures", "masks", "embeddings", "names"},
    "zero-shot": {"pictures"},
    "few-shot-prompts": {"embeddings", "names"},
    "lora": set(),
    "lora, cropped": {"sums"},
    "volume-adapter": set(),
    "interactive": {"embeddings"},
    "unet": set(),
    "self-training": set(),
    "know-sam": set(),
    "auto-sam": set(),
    "auto-sam-unet": set(),
    "auto": {"names"},
    "ensemble": {"pictures", "masks", "embeddings", "names"},
}
TABLE = Path(__file__).parent.parent / "docs" / "explanation" / "privacy.md"


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort in a telling folder, whose scans have a telling name and a telling header."""
    folder = tmp_path_factory.mktemp("private") / WARD / "cohort"
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
        rows = tensor.float().reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.float().reshape(1, -1)
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


@pytest.mark.parametrize("kind", ["lora", "lora, cropped", "few-shot-prompts"])
def test_an_anonymous_model_holds_no_name_path_or_picture(
    kind: str, support: SupportSet, backbone: Backbone, tmp_path: Path
) -> None:
    out, config = tmp_path / "m", FitConfig(anonymous=True)
    name = kind.split(",")[0]
    fit_to_folder(name, build_method(name, MODELS[kind]), support, backbone, out, config)
    assert found_in(out) == set()
    assert not shows_pictures(out, support)
    model = open_model(out)
    assert (model.record.backbone, model.content().paths) == ("backbone", [])
    assert sorted(model.fitted_on) == ["case-1", "case-2"]
    assert model.load(backbone).labels == LABELS
    assert not any("names" in line for line in model.content().holds)


@pytest.mark.parametrize("kind", ["nearest-slice", "fate", "zero-shot"])
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


def test_the_table_of_the_documents_agrees_with_the_records() -> None:
    """Each method is in a row, and a column says "no" exactly where its models hold nothing of the kind."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text("utf-8").splitlines() if line.startswith("| `")]
    stated = {name: row[1:] for row in rows if len(row) == 5 for name in re.findall(r"`([a-z-]+)`", row[0])}
    assert set(METHODS) <= stated.keys()
    for method in set(METHODS) - {"auto"}:  # which holds what its choice does
        pictures, masks, embeddings, names = stated[method]
        said = {"pictures": pictures, "masks": masks, "embeddings": embeddings}
        held = {what for what, cell in said.items() if not cell.startswith(("no", "with"))}
        assert held | ({"names"} if "weights" in names else set()) == HOLD[method], method


@pytest.fixture(scope="module")
def model(support: SupportSet, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "m"
    method = build_method("nearest-slice", MODELS["nearest-slice"])
    first = SupportSet(support.cases[:1], support.labels)
    fit_to_folder("nearest-slice", method, first, backbone, out, FitConfig(leave_out=False))
    return out


@pytest.mark.parametrize("command", ["review", "evaluate", "suggest", "compare", "export", "doctor", "inspect"])
def test_outputs_and_messages_of_commands_hold_no_header_and_no_path(
    command: str, ward: Path, model: Path, backbone: Backbone, tmp_path: Path
) -> None:
    out, predictions = tmp_path / "out", tmp_path / "p"
    out.mkdir()
    if command in ("review", "evaluate"):
        predict_cohort(model, read_cohort(ward, images_only=True).cases, predictions)
    lines = {
        "review": f"review {predictions} -m {model} -i {ward} -o {out}/r",
        "evaluate": f"evaluate -p {predictions} -r {ward} -o {out}/e.json --csv {out}/e.csv",
        "suggest": f"suggest -i {ward} -o {out}/s --backbone {backbone.name}",
        "compare": f"compare -i {ward} -o {out}/c --methods nearest-slice --shots 1 --splits 1 --workers 1 "
        f"--backbone {backbone.name}",
        "export": f"export nnunet -i {ward} -o {out}/raw",
        "doctor": f"doctor -i {ward}",
        "inspect": f"model inspect {model}",
    }
    result = CliRunner().invoke(app, lines[command].split())
    if result.exit_code == 2 and command == "suggest":
        assert "no unlabelled slice" in result.stderr
    else:
        assert result.exit_code in (0, 3), result.output
    assert found_in(out) <= {"name", *(["path"] if command == "compare" else [])}  # the path of the backbone
    assert TEXT not in result.output
    assert WARD not in result.output or command == "inspect"


def test_the_steps_of_a_session_hold_no_name_path_or_header(ward: Path, backbone: Backbone, tmp_path: Path) -> None:
    session = Session(read_volume(ward / "images" / f"{NAME}.nii"), backbone, LABELS)
    session.keep_in(tmp_path / "steps")
    session.click(2, LABELS.values[0], (10, 10))
    session.accept(2)
    session.close()
    assert any((tmp_path / "steps").iterdir())
    assert found_in(tmp_path / "steps") == set()
