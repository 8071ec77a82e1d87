import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.checkpoint.model import load, open_model, save
from handful.checkpoint.record import describe_support
from handful.errors import CheckpointError, InputError, SettingsError
from handful.jobs.digests import digest_of_file
from handful.methods.base import Segmenter
from handful.methods.catalog import build_method
from handful.methods.nearest_slice import NearestSlice
from phantoms import phantom, support_set
from small_cohort import files_below


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_models.tiny_sam()


@pytest.fixture(scope="module")
def segmenter(backbone: Backbone) -> Segmenter:
    return NearestSlice().fit(support_set(2), backbone)


def keep(segmenter: Segmenter, folder: Path, **provenance: object) -> Path:
    save(segmenter, folder, method_name="nearest-slice", method=NearestSlice(), provenance=provenance)
    return folder


def edit(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "segmenter.json").read_text())
    (folder / "segmenter.json").write_text(json.dumps(record | changes))


def test_a_saved_segmenter_gives_the_same_prediction(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    again = load(keep(segmenter, tmp_path / "s"), backbone)
    slices = torch.rand(2, 1, 24, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(slices), segmenter(slices))
    assert (again.labels, again.slicer) == (segmenter.labels, segmenter.slicer)


def test_the_backbone_is_found_by_its_name_where_none_is_given(backbone: Backbone, tmp_path: Path):
    backbone.model.save_pretrained(tmp_path / "model")
    own = load_backbone(tmp_path / "model")
    method = NearestSlice(similarity="embedding")
    segmenter = method.fit(support_set(1), own)
    save(segmenter, tmp_path / "s", method_name="nearest-slice", method=method, provenance={})
    slices = torch.rand(2, 1, 24, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(tmp_path / "s")(slices), segmenter(slices))


SHORT: dict[str, object] = {"train.iterations": 2, "side": 32, "channels": 4, "encoder": "none", "mirror": False}
OF_AUTO: dict[str, object] = {f"unet.{key}": value for key, value in SHORT.items()} | {"check": False}


@pytest.mark.parametrize(
    ("name", "settings", "alone"),
    [
        ("unet", SHORT, True),
        ("unet", SHORT | {"roi_margin": 1.4, "largest_piece": "auto", "seeds": 3}, True),
        ("unet", SHORT | {"planes": ["axial", "coronal"]}, True),
        ("auto", OF_AUTO, True),
        ("nearest-slice", {}, True),
        ("nearest-slice", {"similarity": "embedding"}, False),
    ],
)
def test_a_model_that_predicts_without_a_backbone_needs_none(
    name: str, settings: dict[str, object], alone: bool, tmp_path: Path
):
    tiny_models.tiny_sam2_video(side=64).model.save_pretrained(tmp_path / "model")
    method = build_method(name, settings)
    segmenter = method.fit(support_set(2), load_backbone(tmp_path / "model"))
    save(segmenter, tmp_path / "s", method_name=name, method=method, provenance={})
    shutil.rmtree(tmp_path / "model")
    saved = open_model(tmp_path / "s")
    with pytest.raises(CheckpointError, match="give the backbone"):
        saved.load()
    if alone:
        scan, _ = phantom(7)
        again = saved.load(only_to_predict=True)
        assert np.array_equal(again.predict(scan).array, segmenter.predict(scan).array)
        with pytest.raises(SettingsError, match="was not loaded"):
            again.backbone.encode(torch.rand(1, 1, 24, 28))
    else:
        with pytest.raises(CheckpointError, match="give the backbone"):
            saved.load(only_to_predict=True)


def test_the_record_has_the_input_of_the_backbone_and_the_settings_from_its_defaults(tmp_path: Path):
    backbone = tiny_models.tiny_sam2_video(side=64)
    method = build_method("fate", {"window": 2})
    save(method.fit(support_set(1), backbone), tmp_path / "s", method_name="fate", method=method, provenance={})
    record = json.loads((tmp_path / "s" / "segmenter.json").read_text())
    assert record["backbone_input"] == backbone.input_description()
    assert record["settings_from_backbone"] == {"top_k": 3}
    assert (record["settings"]["top_k"], record["settings"]["window"]) == (3, 2)
    assert "Settings taken from the backbone's defaults: top_k = 3." in (tmp_path / "s" / "README.md").read_text()


def test_a_saved_model_comes_back_on_the_pixels_it_was_fitted_on(tmp_path: Path):
    tiny_models.tiny_sam().model.save_pretrained(tmp_path / "weights")
    name = f"medsam:{tmp_path / 'weights'}@64"
    method = NearestSlice(similarity="embedding")
    segmenter = method.fit(support_set(1), load_backbone(name))
    save(segmenter, tmp_path / "s", method_name="nearest-slice", method=method, provenance={})
    again = load(tmp_path / "s")
    assert again.backbone.input_description() == segmenter.backbone.input_description()
    assert (again.backbone.side, again.backbone.family.pixels.min_max) == (64, True)
    with pytest.raises(CheckpointError, match=r"with other pixels .*min_max True there, False here.*medsam:"):
        load(tmp_path / "s", load_backbone(f"sam:{tmp_path / 'weights'}@64"))


def test_the_card_names_the_licence_of_a_backbone_of_the_catalogue(backbone: Backbone, tmp_path: Path):
    known = backbone.fork()
    known.name = "sam-vit-base@512"
    keep(NearestSlice().fit(support_set(1), known), tmp_path / "s")
    assert "base weights: Apache-2.0" in (tmp_path / "s" / "README.md").read_text()


def test_the_folder_holds_three_files_and_leaves_no_others(segmenter: Segmenter, tmp_path: Path):
    keep(segmenter, tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["README.md", "segmenter.json", "weights.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_the_card_names_labels_cases_and_where_the_data_came_from(segmenter: Segmenter, tmp_path: Path):
    keep(segmenter, tmp_path / "s", **describe_support(support_set(2)))
    card = (tmp_path / "s" / "README.md").read_text()
    for word in ("ball", "egg", "phantom-0", "phantom-1", "nearest-slice", "patient-derived", "Licence"):
        assert word in card


@pytest.mark.parametrize("settings", [{}, {"roi_margin": 1.5}, {"planes": "axial,coronal"}])
def test_the_card_of_fate_states_that_the_folder_holds_pictures_of_patients(
    settings: dict[str, object], tmp_path: Path
):
    method = build_method("fate", settings)
    fitted = method.fit(support_set(1), tiny_models.tiny_sam2_video(side=64))
    save(fitted, tmp_path / "s", method_name="fate", method=method, provenance={})
    card = " ".join((tmp_path / "s" / "README.md").read_text().split())
    assert "patient-derived data" in card
    assert "small pictures of the labelled slices" in card


@pytest.mark.parametrize(("similarity", "kept"), [("embedding", False), ("pixels", True)])
def test_the_card_mentions_pictures_only_if_some_are_stored(
    similarity: str, kept: bool, backbone: Backbone, tmp_path: Path
):
    method = NearestSlice(similarity=similarity)
    save(
        method.fit(support_set(1), backbone), tmp_path / "s", method_name="nearest-slice", method=method, provenance={}
    )
    card = (tmp_path / "s" / "README.md").read_text()
    assert "patient-derived data" in card
    assert ("pictures" in card) == kept


def test_the_support_is_described_by_name_and_content():
    one, two = describe_support(support_set(2))["support"]
    assert one["case"] == "phantom-0"
    assert one["image_sha256"] != two["image_sha256"]
    assert describe_support(support_set(2))["support"] == [one, two]


def test_an_earlier_segmenter_is_replaced(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    keep(segmenter, tmp_path / "s", note="first")
    keep(segmenter, tmp_path / "s", note="second")
    assert json.loads((tmp_path / "s" / "segmenter.json").read_text())["provenance"] == {"note": "second"}
    load(tmp_path / "s", backbone)


def test_a_folder_of_other_things_is_left_alone(segmenter: Segmenter, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a segmenter"):
        keep(segmenter, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("foreign", ["predictions/ben.nii.gz", "notes.txt", "experts/a/mask.png", ".git/HEAD"])
def test_a_model_folder_with_other_things_in_it_is_left_alone(foreign: str, segmenter: Segmenter, tmp_path: Path):
    folder = keep(segmenter, tmp_path / "s", note="first")
    file = folder / foreign
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("hours of work")
    before = files_below(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"{foreign.partition('/')[0]}.* is not part of the model in .*move it out"
    ):
        keep(segmenter, folder, note="second")
    assert files_below(tmp_path) == before
    assert (file.read_text(), open_model(folder).record.provenance) == ("hours of work", {"note": "first"})


def test_files_of_file_managers_are_no_reason_to_keep_a_model(segmenter: Segmenter, tmp_path: Path):
    (keep(segmenter, tmp_path / "s", note="first") / ".DS_Store").write_bytes(b"")
    assert open_model(keep(segmenter, tmp_path / "s", note="second")).record.provenance == {"note": "second"}


@pytest.mark.parametrize("name", [".", "..", "s/.."])
def test_a_path_without_a_name_is_refused(
    name: str, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "s").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"cannot be a model folder.*name a folder in it, such as .*model"):
        keep(segmenter, Path(name))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_save_that_fails_leaves_nothing(segmenter: Segmenter, tmp_path: Path):
    with pytest.raises(CheckpointError, match="plain JSON"):
        keep(segmenter, tmp_path / "s", where=object())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["segmenter.json", "weights.safetensors"])
def test_a_half_written_folder_is_refused(name: str, segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    (keep(segmenter, tmp_path / "s") / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path / "s", backbone)


def test_changed_weights_are_refused(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    keep(segmenter, tmp_path / "s")
    save_file({"signatures": torch.zeros(1, 1)}, tmp_path / "s" / "weights.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "s", backbone)


def test_a_cut_off_record_is_refused(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    path = keep(segmenter, tmp_path / "s") / "segmenter.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(CheckpointError, match="not JSON"):
        load(tmp_path / "s", backbone)


def test_a_newer_format_needs_an_update(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    edit(keep(segmenter, tmp_path / "s"), format=99, something_new=1)
    with pytest.raises(CheckpointError, match=r"format 99.*update"):
        load(tmp_path / "s", backbone)


def test_a_model_of_an_earlier_format_is_refused_with_the_command_to_fit_again(
    segmenter: Segmenter, backbone: Backbone, tmp_path: Path
):
    edit(keep(segmenter, tmp_path / "s"), format=1, settings={"closer": 1.4})
    with pytest.raises(CheckpointError, match=r"earlier version.*fit again: handful fit .* -i COHORT -o .*--overwrite"):
        load(tmp_path / "s", backbone)


def test_an_unknown_key_is_refused(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    edit(keep(segmenter, tmp_path / "s"), colour="blue")
    with pytest.raises(CheckpointError, match="colour"):
        load(tmp_path / "s", backbone)


def test_an_unknown_setting_is_refused(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    edit(keep(segmenter, tmp_path / "s"), settings={"colour": "blue"})
    with pytest.raises(CheckpointError, match="colour"):
        load(tmp_path / "s", backbone)


def test_an_unknown_method_is_refused(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    edit(keep(segmenter, tmp_path / "s"), method="nearest")
    with pytest.raises(CheckpointError, match="no method 'nearest'"):
        load(tmp_path / "s", backbone)


def test_another_backbone_is_refused_and_both_are_named(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    keep(segmenter, tmp_path / "s")
    other = backbone.fork()
    other.name = "someone else"
    with torch.no_grad():
        next(other.mask_decoder.parameters()).add_(1)
    with pytest.raises(CheckpointError, match=rf"{backbone.name}.*someone else"):
        load(tmp_path / "s", other)


def test_the_record_holds_no_path_of_this_machine(segmenter: Segmenter, tmp_path: Path):
    keep(segmenter, tmp_path / "s", **describe_support(support_set(2)))
    for name in ("segmenter.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "s" / name).read_text()


@pytest.mark.parametrize("settings", [{"seeds": 10**9}, {"seeds": "10000000"}, {"channels": 10**9}])
def test_settings_beyond_the_weights_are_refused_at_once(
    settings: dict[str, object], backbone: Backbone, tmp_path: Path
):
    method = build_method("unet", {"encoder": "none", "channels": 4, "side": 32, "train.iterations": 1, "batch": 1})
    segmenter = method.fit(support_set(1), backbone)
    save(segmenter, tmp_path / "s", method_name="unet", method=method, provenance={})
    edit(tmp_path / "s", settings=json.loads((tmp_path / "s" / "segmenter.json").read_text())["settings"] | settings)
    with pytest.raises(CheckpointError, match=r"segmenter\.json|weights\.safetensors"):
        load(tmp_path / "s", backbone)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "3", "", "\xff"])
def test_a_record_of_any_content_is_refused_by_name(content: str, segmenter: Segmenter, tmp_path: Path):
    (keep(segmenter, tmp_path / "s") / "segmenter.json").write_text(content, "latin-1")
    with pytest.raises(CheckpointError, match=r"segmenter\.json.*fit again"):
        load(tmp_path / "s")


def test_a_record_with_impossible_labels_is_refused(segmenter: Segmenter, tmp_path: Path):
    for labels in ({}, {"0": "none"}, {str(2**31): "far"}, {str(value): "x" for value in range(1, 2000)}, {"²": "x"}):
        edit(keep(segmenter, tmp_path / "s"), labels=labels)
        with pytest.raises(CheckpointError, match=r"labels"):
            load(tmp_path / "s")


def test_a_model_never_downloads_its_backbone(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def connect(*arguments: object) -> None:
        raise AssertionError("no connection may be made")

    monkeypatch.setattr("socket.socket.connect", connect)
    edit(keep(segmenter, tmp_path / "s"), backbone="attacker/model")
    with pytest.raises(CheckpointError, match=r"with --backbone \(recorded as 'attacker/model'\)"):
        load(tmp_path / "s")


def test_tensors_that_a_segmenter_does_not_have_are_refused(segmenter: Segmenter, backbone: Backbone, tmp_path: Path):
    folder = keep(segmenter, tmp_path / "s")
    save_file({**segmenter.learned(), "classes/9": torch.zeros(1)}, folder / "weights.safetensors")
    edit(folder, weights_sha256=digest_of_file(folder / "weights.safetensors"))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors.*'classes/"):
        load(folder, backbone)


def test_an_error_in_a_prediction_names_the_model(segmenter: Segmenter, tmp_path: Path):
    saved = open_model(keep(segmenter, tmp_path / "model"))
    with pytest.raises(CheckpointError, match="fails on this scan"), saved.predicting():
        raise RuntimeError("shapes")
    with pytest.raises(MemoryError), saved.predicting():
        raise MemoryError
