"""Backbones by name, folder, file and hub id."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

import tiny_models
from handful.backbones.base import MemoryBackbone
from handful.backbones.catalog import load_backbone
from handful.backbones.families import FAMILIES
from handful.backbones.names import BACKBONES
from handful.backbones.sam import SamBackbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.backbones.small import SmallShape, save_small
from handful.errors import CheckpointError, SettingsError
from handful.prompts.prompts import Prompts


def _same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (tiny_models.tiny_sam, SamBackbone),
        (tiny_models.tiny_sam2, Sam2Backbone),
        (tiny_models.tiny_sam2_video, Sam2VideoBackbone),
    ],
)
def test_a_folder_that_transformers_saved_is_loaded_as_what_it_is(tmp_path: Path, build: object, kind: type) -> None:
    original = build()  # type: ignore[operator]
    original.model.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert type(loaded) is kind
    assert loaded.name == str(tmp_path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    _same_weights(loaded, original)
    assert loaded.digest() == original.digest()


def test_half_precision_weights_are_computed_with_in_single(tmp_path: Path) -> None:
    tiny_models.tiny_sam().model.half().save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_backbone(tmp_path).state_dict().values()} == {torch.float32}


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny_models.tiny_sam2_video().model.save_pretrained(tmp_path)
    capfd.readouterr()
    load_backbone(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_lacks_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    tiny_models.tiny_sam().model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_encoder.neck.conv1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"vision_encoder\.neck\.conv1\.weight"):
        load_backbone(tmp_path)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    tiny_models.tiny_sam().model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_backbone(tmp_path)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="'bert' model"):
        load_backbone(tmp_path)


def test_a_folder_without_config_or_with_a_pickle_alone_is_refused(tmp_path: Path) -> None:
    tiny_models.tiny_sam().model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"config\.json and \.safetensors"):
        load_backbone(tmp_path)


def test_an_authors_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    from backbones.authors_layout import authors_state, sam_pairs

    original = tiny_models.tiny_sam()
    torch.save(authors_state(original.model, sam_pairs(layers=2)), tmp_path / "sam_vit_b.pth")
    loaded = load_backbone(str(tmp_path / "sam_vit_b.pth"))
    _same_weights(loaded, original)


def _sam_file(path: Path) -> Path:
    from backbones.authors_layout import authors_state, sam_pairs

    torch.save(authors_state(tiny_models.tiny_sam().model, sam_pairs(layers=2)), path)
    return path


def _sam2_file(path: Path) -> Path:
    from backbones.authors_layout import authors_state, sam2_video_pairs

    model = tiny_models.tiny_sam2_video().model
    torch.save({"model": authors_state(model, sam2_video_pairs(blocks=12, memory_layers=2))}, path)
    return path


def test_a_family_before_the_colon_decides_what_the_weights_do_not_show(tmp_path: Path) -> None:
    path = _sam_file(tmp_path / "vit_b.pth")
    medsam, sam = load_backbone(f"medsam:{path}"), load_backbone(f"sam:{path}")
    assert (medsam.name, sam.name) == (f"medsam:{path}", f"sam:{path}")
    assert (medsam.family, sam.family) == (FAMILIES["medsam"], FAMILIES["sam"])
    assert medsam.digest() == tiny_models.tiny_medsam().digest() != sam.digest()
    _same_weights(medsam, sam)


def test_the_catalogues_medsam_is_on_medsams_pixels(hub_of_medsam: None) -> None:
    for name in ("medsam", "wanglab/medsam-vit-base"):
        assert load_backbone(name).family == FAMILIES["medsam"]
    assert load_backbone("sam:medsam").family == FAMILIES["sam"]


def test_a_file_that_may_be_medsam_is_not_taken_for_sam_in_silence(tmp_path: Path) -> None:
    path = _sam_file(tmp_path / "medsam_vit_b.pth")
    with pytest.raises(SettingsError, match=rf"write medsam:{path}, or sam:{path}"):
        load_backbone(str(path))
    video = _sam2_file(tmp_path / "MedSAM2_latest.pt")
    with pytest.raises(SettingsError, match=rf"write medsam2:{video}, or sam2:{video}"):
        load_backbone(video)


def test_what_is_called_medsam_is_asked_for_families_that_can_be_in_it(tmp_path: Path) -> None:
    from backbones.authors_layout import authors_state, mobile_sam_encoder, random_state, sam_pairs

    decoder = authors_state(tiny_models.tiny_sam().model, sam_pairs(layers=0))
    encoder = random_state(mobile_sam_encoder((8, 16, 24, 320), (1, 1, 2, 1), (2, 3, 10), (7, 14, 7), channels=64))
    path = tmp_path / "lite_medsam.pth"
    torch.save(encoder | {key: value for key, value in decoder.items() if not key.startswith("image_encoder")}, path)
    with pytest.raises(SettingsError, match=rf"it; write mobile-sam:{path} for weights"):
        load_backbone(str(path))
    assert load_backbone(f"mobile-sam:{path}").family == FAMILIES["mobile-sam"]


def test_weights_that_can_be_no_medsam_load_under_any_name(tmp_path: Path) -> None:
    save_small(tiny_models.tiny_small().model, SmallShape(channels=64), tmp_path / "after-medsam")
    assert load_backbone(tmp_path / "after-medsam").family == FAMILIES["handful-small"]


def test_medsam2_has_512_pixels_and_sam_2s_normalisation(tmp_path: Path) -> None:
    path = _sam2_file(tmp_path / "MedSAM2_latest.pt")
    medsam2, sam2 = load_backbone(f"medsam2:{path}"), load_backbone(f"sam2:{path}")
    assert (medsam2.side, sam2.side) == (512, 1024)
    assert medsam2.family.pixels == sam2.family.pixels
    assert medsam2.digest() != sam2.digest()
    assert medsam2.digest() == load_backbone(f"sam2:{path}@512").digest()


@pytest.mark.parametrize("family", ["sam2", "mobile-sam", "handful-tiny"])
def test_a_family_of_another_architecture_is_refused(tmp_path: Path, family: str) -> None:
    path = _sam_file(tmp_path / "vit_b.pth")
    with pytest.raises(SettingsError, match="its keys are those of sam, medsam, sam-med2d"):
        load_backbone(f"{family}:{path}")
    tiny_models.tiny_sam().model.save_pretrained(tmp_path / "folder")
    with pytest.raises(SettingsError, match="it is one of sam, medsam, sam-med2d"):
        load_backbone(f"{family}:{tmp_path / 'folder'}")


@pytest.mark.parametrize(
    "build", [tiny_models.tiny_sam, tiny_models.tiny_sam2, tiny_models.tiny_sam2_video, tiny_models.tiny_edgetam]
)
def test_the_side_of_the_square_can_be_named(tmp_path: Path, build: object) -> None:
    original = build()  # type: ignore[operator]
    original.model.save_pretrained(tmp_path)
    larger, same = load_backbone(f"{tmp_path}@192"), load_backbone(f"{tmp_path}@128")
    assert (larger.side, larger.feature_side, larger.mask_side) == (192, 12, 48)
    assert same.digest() == original.digest() != larger.digest()
    slices = torch.rand(1, 1, 50, 90, generator=torch.Generator().manual_seed(3))
    point = Prompts(points=torch.tensor([[[[20.0, 30.0]]]]), point_labels=torch.ones(1, 1, 1, dtype=torch.long))
    logits = larger.decode(larger.encode(slices), larger.embed(point, (50, 90)))
    assert logits.shape == (1, 1, 50, 90)
    assert torch.isfinite(logits).all()
    if isinstance(larger, MemoryBackbone):
        memory = larger.memorize(larger.encode(slices), torch.ones(1, 50, 90))
        assert torch.isfinite(larger.decode_recalled(larger.recall(larger.encode(slices), memory)).logits).all()


def test_handful_tiny_is_found_in_a_catalogue_name_with_a_size() -> None:
    larger = load_backbone("handful-tiny@512")
    assert (larger.name, larger.side) == ("handful-tiny@512", 512)
    assert larger.family == load_backbone("handful-tiny").family == FAMILIES["handful-tiny"]
    assert larger.digest() != load_backbone("handful-tiny").digest()


@pytest.mark.parametrize("size", ["500", "0", "16"])
def test_a_side_that_no_model_can_take_is_refused(size: str) -> None:
    with pytest.raises(SettingsError, match=f"multiple of 32 pixels, got {int(size)}"):
        load_backbone(f"handful-tiny@{size}")


def test_a_path_with_an_at_sign_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "run@64"
    tiny_models.tiny_sam().model.save_pretrained(folder)
    assert load_backbone(folder).side == tiny_models.SIDE


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(SettingsError, match=r"\.pth, \.pt, \.safetensors"):
        load_backbone(tmp_path / "model.onnx")


def test_a_misspelt_name_brings_the_right_ones() -> None:
    with pytest.raises(SettingsError, match=r"sam2\.1-hiera-tiny"):
        load_backbone("sam21-hiera-tiny")


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown backbone"):
        load_backbone("checkpoints/sam_vit_b.pth")
    with pytest.raises(SettingsError, match="unknown backbone"):
        load_backbone(tmp_path / "absent")


def test_every_entry_has_its_source_and_its_licence() -> None:
    for name, entry in BACKBONES.items():
        assert entry.description, name
        assert entry.licence == "Apache-2.0", name
        assert entry.embedded == name.startswith("handful-"), name


@pytest.fixture
def hub_of_medsam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that gives a tiny SAM for every name."""
    tiny_models.tiny_sam().model.save_pretrained(tmp_path / "medsam")
    monkeypatch.setattr("handful.backbones.catalog.snapshot_download", lambda *_, **__: str(tmp_path / "medsam"))


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A hub's cache that holds somebody/tiny-sam alone."""
    snapshot = tmp_path / "hub" / "models--somebody--tiny-sam" / "snapshots" / "abc"
    tiny_models.tiny_sam().model.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    return tmp_path / "hub"


def test_the_hubs_cache_is_used_and_a_model_that_cannot_be_had_is_explained(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = partial(snapshot_download, cache_dir=hub, local_files_only=True)
    monkeypatch.setattr("handful.backbones.catalog.snapshot_download", offline)
    assert load_backbone("somebody/tiny-sam").side == tiny_models.SIDE
    with pytest.raises(CheckpointError, match=r"'wanglab/medsam-vit-base' cannot be downloaded.*HF_HOME"):
        load_backbone("medsam")


@pytest.mark.process
def test_offline_the_hubs_cache_is_used_and_an_absent_model_is_explained(hub: Path) -> None:
    script = (
        "from handful.backbones.catalog import load_backbone\n"
        "print(load_backbone('somebody/tiny-sam').side)\n"
        "try: load_backbone('medsam')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = os.environ | {"HF_HOME": str(hub.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    side, refused = done.stdout.splitlines()
    assert side == str(tiny_models.SIDE)
    assert refused.startswith("CheckpointError backbone 'wanglab/medsam-vit-base' cannot be downloaded")
    assert "HF_HOME" in refused


def _edited(folder: Path, changes: dict[str, object]) -> Path:
    """A folder of a tiny SAM whose config.json has other entries, those of a part as "vision_config.KEY"."""
    tiny_models.tiny_sam().model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        part, _, inner = key.rpartition(".")
        (config[part] if part else config)[inner] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_code_of_a_folder_is_neither_run_nor_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(prompt: str = "") -> str:
        raise AssertionError("nothing may be asked")

    monkeypatch.setattr("builtins.input", ask)
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    folder = _edited(tmp_path, {"auto_map": auto_map, "vision_config.auto_map": auto_map})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    _same_weights(load_backbone(folder), tiny_models.tiny_sam())
    assert not (tmp_path / "ran").exists()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    with pytest.raises(CheckpointError, match="'evil' model"):
        load_backbone(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "torch_dtype", "quantization_config"])
def test_entries_that_would_fetch_or_convert_something_are_ignored(tmp_path: Path, key: str) -> None:
    folder = _edited(tmp_path, {key: "attacker/kernel", f"vision_config.{key}": "attacker/kernel"})
    _same_weights(load_backbone(folder), tiny_models.tiny_sam())


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        ("vision_config.num_hidden_layers", 10**9, r"num_hidden_layers = 1000000000"),
        ("vision_config.hidden_size", 10**9, r"hidden_size = 1000000000"),
        ("vision_config.hidden_size", 48_000, r"elements"),
        ("vision_config.image_size", 32_768, r"elements"),
        ("vision_config.window_size", 65_000, r"window_size = 65000"),
        ("vision_config.model_type", "clip_vision_model", "clip_vision_model"),
        ("vision_config.hidden_act", 7, "get the folder again"),
    ],
)
def test_a_config_beyond_its_weights_is_refused(tmp_path: Path, key: str, value: object, finding: str) -> None:
    with pytest.raises(CheckpointError, match=finding):
        load_backbone(_edited(tmp_path, {key: value}))


@pytest.mark.parametrize("content", ["[" * 100_000, "[1, 2]", "{", "\xff\xfe", ""])
def test_a_config_that_is_no_object_is_refused_by_name(tmp_path: Path, content: str) -> None:
    _edited(tmp_path, {})
    (tmp_path / "config.json").write_text(content, "latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json|model"):
        load_backbone(tmp_path)


def test_an_adapter_that_names_other_weights_is_refused(tmp_path: Path) -> None:
    (_edited(tmp_path, {}) / "adapter_config.json").write_text('{"base_model_name_or_path": "attacker/model"}')
    with pytest.raises(CheckpointError, match="merge it"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["attacker/model", "sam-vit-base", "mobile-sam"])
def test_nothing_is_downloaded_unless_it_may_be(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: object) -> None:
        raise AssertionError("no connection may be made")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"--backbone"):
        load_backbone(name, download=False)
