"""A cache of embeddings that may be shared, damaged, full or stale, and never gives a wrong answer."""

import os
import warnings
from pathlib import Path

import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.cached import (
    USUAL_LIMIT,
    CachedBackbone,
    CachedMemoryBackbone,
    cached,
    set_size_limit,
    size_limit,
)
from handful.backbones.catalog import load_backbone
from handful.errors import SettingsError
from handful.jobs import precision


def _slices(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 40, 60, generator=torch.Generator().manual_seed(seed))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_slice_encoded_before_is_not_encoded_again(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    first = backbone.encode(_slices(3))
    again = backbone.encode(_slices(3))
    assert (backbone.hits, backbone.misses) == (3, 3)
    assert torch.equal(first.main, again.main)
    assert again.size == (40, 60)


def test_all_levels_of_sam_2_come_back(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam2(), tmp_path)
    first, again = backbone.encode(_slices(2)), backbone.encode(_slices(2))
    assert len(again.features) == 3
    for one, other in zip(first.features, again.features, strict=True):
        assert torch.equal(one, other)


def test_the_mean_of_several_sequences_is_stored_as_it_is_encoded_without_a_cache(tmp_path: Path) -> None:
    inner = tiny_models.tiny_sam2()
    backbone = cached(inner, tmp_path)
    slices = torch.rand(2, 4, 40, 60, generator=torch.Generator().manual_seed(0))
    plain, first, again = inner.encode(slices), backbone.encode(slices), backbone.encode(slices)
    assert (backbone.hits, backbone.misses, len(_files(tmp_path))) == (2, 2, 2)
    for level, one, other in zip(plain.features, first.features, again.features, strict=True):
        assert torch.equal(level, one)
        assert torch.equal(level, other)


def test_of_a_batch_only_the_missing_slices_are_encoded_in_one_call(tmp_path: Path) -> None:
    inner = tiny_models.tiny_sam()
    calls: list[int] = []
    inner.image_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    backbone = cached(inner, tmp_path)
    slices = _slices(4)
    backbone.encode(slices[1:2])
    mixed = backbone.encode(slices)
    assert calls == [1, 3]
    torch.testing.assert_close(mixed.main, inner.encode(slices).main, atol=1e-2, rtol=1e-2)


def test_another_process_finds_the_entries(tmp_path: Path) -> None:
    cached(tiny_models.tiny_sam(), tmp_path).encode(_slices(2))
    later = cached(tiny_models.tiny_sam(), tmp_path)
    later.encode(_slices(2))
    assert (later.hits, later.misses) == (2, 0)


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny_models.tiny_sam(seed=1),
        lambda: tiny_models.tiny_sam(side=256),
        tiny_models.tiny_sam2,
        tiny_models.tiny_medsam,
    ],
    ids=["other weights", "other square", "other model", "other pixels"],
)
def test_another_encoder_finds_nothing(tmp_path: Path, other: object) -> None:
    cached(tiny_models.tiny_sam(), tmp_path).encode(_slices(1))
    later = cached(other(), tmp_path)  # type: ignore[operator]
    later.encode(_slices(1))
    assert later.hits == 0


def test_equal_bytes_of_another_shape_are_another_slice(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    backbone.encode(_slices(1))
    backbone.encode(_slices(1).reshape(1, 1, 60, 40))
    assert backbone.hits == 0


def test_a_fork_shares_the_cache_however_its_decoder_is_tuned(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    backbone.encode(_slices(2))
    fork = backbone.fork()
    assert isinstance(fork, CachedBackbone)
    with torch.no_grad():
        for parameter in fork.mask_decoder.parameters():
            parameter.add_(0.1)
    fork.encode(_slices(2))
    assert (backbone.hits, backbone.misses) == (2, 2)


def test_a_paused_cache_is_neither_read_nor_filled_by_any_fork(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    fork = backbone.fork()
    stored = backbone.encode(_slices(1))
    with backbone.without_cache():
        assert torch.equal(fork.encode(_slices(1)).main, stored.main)
        fork.encode(_slices(3))
    assert len(_files(tmp_path)) == 1
    fork.encode(_slices(2))
    assert len(_files(tmp_path)) == 2


@pytest.mark.parametrize("foreach", [False, True])
def test_training_what_the_encoder_runs_through_makes_old_entries_useless(tmp_path: Path, foreach: bool) -> None:
    fork = cached(tiny_models.tiny_sam2(), tmp_path).fork()
    assert isinstance(fork, CachedBackbone)
    stale = fork.encode(_slices(1))
    skip = fork.mask_decoder.conv_s0.requires_grad_(True)
    optimizer = torch.optim.AdamW(skip.parameters(), lr=0.1, foreach=foreach)
    skip(torch.rand(1, 64, 4, 4)).sum().backward()
    optimizer.step()
    fresh = fork.encode(_slices(1))
    assert fork.misses == 2
    assert not torch.equal(fresh.features[0], stale.features[0])


def test_its_weights_bear_the_names_they_have_without_a_cache(backbone: Backbone, tmp_path: Path) -> None:
    wrapped = cached(backbone, tmp_path)
    assert wrapped.state_dict().keys() == backbone.state_dict().keys()
    assert wrapped.image_encoder is backbone.image_encoder


def test_a_memory_backbone_keeps_its_memory(tmp_path: Path) -> None:
    inner = tiny_models.tiny_sam2_video()
    backbone = cached(inner, tmp_path)
    assert isinstance(backbone, CachedMemoryBackbone)
    image = backbone.encode(_slices(2))
    masks = torch.zeros(1, 40, 60)
    masks[:, 10:30, 10:30] = 1.0
    seen = backbone.decode_recalled(backbone.recall(image[1], backbone.memorize(image[0], masks)))
    expected = inner.decode_recalled(inner.recall(image[1], inner.memorize(image[0], masks)))
    torch.testing.assert_close(seen.logits, expected.logits)


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "empty", "not safetensors"])
def test_a_damaged_entry_is_encoded_again_with_one_warning(tmp_path: Path, damage: str) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    good = backbone.encode(_slices(1)).main
    (path,) = _files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    path.write_bytes(
        {
            "truncated": bytes(content[: len(content) // 2]),
            "a flipped bit": bytes(content),
            "empty": b"",
            "not safetensors": b"hello" * 100,
        }[damage]
    )
    with pytest.warns(UserWarning, match="damaged") as caught:
        again = backbone.encode(_slices(1)).main
    assert len(caught) == 1
    assert torch.equal(again, good)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(backbone.encode(_slices(1)).main, good)


def test_swapped_and_retyped_entries_are_encoded_again(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    good = backbone.encode(_slices(2)).main
    one, other = _files(tmp_path)
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert torch.equal(backbone.encode(_slices(2)).main, good)
    assert len(caught) == 2
    for kind in (b'"I16"', b'"U16"'):
        one.write_bytes(one.read_bytes().replace(b'"F16"', kind))
        with pytest.warns(UserWarning, match="damaged"):
            again = backbone.encode(_slices(2)).main
        torch.testing.assert_close(again, good, atol=1e-2, rtol=1e-2)


def test_a_folder_that_cannot_be_written_costs_one_warning_and_no_prediction(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("not a folder")
    inner = tiny_models.tiny_sam()
    backbone = cached(inner, blocked / "cache")
    with pytest.warns(UserWarning, match="no longer cached") as caught:
        seen = backbone.encode(_slices(3))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone.encode(_slices(2, seed=1))
    torch.testing.assert_close(seen.main, inner.encode(_slices(3)).main, atol=1e-2, rtol=1e-2)


def test_a_full_disk_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        backbone.encode(_slices(2))
    assert list(tmp_path.iterdir()) == []


def test_the_longest_unused_entries_go_when_it_grows_too_large(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    backbone.encode(_slices(1, seed=0))
    (oldest,) = _files(tmp_path)
    size = oldest.stat().st_size
    backbone.encode(_slices(1, seed=1))
    unused = next(path for path in _files(tmp_path) if path != oldest)
    for age, path in enumerate([oldest, unused]):
        os.utime(path, (1e9 + age, 1e9 + age))
    small = cached(tiny_models.tiny_sam(), tmp_path, max_bytes=int(2.5 * size))
    small.encode(_slices(1, seed=0))  # used just now
    small.encode(_slices(1, seed=2))
    assert oldest.exists()
    assert not unused.exists()
    assert len(_files(tmp_path)) == 2


def test_an_encoder_that_trains_is_refused(tmp_path: Path) -> None:
    inner = tiny_models.tiny_sam()
    backbone = cached(inner, tmp_path)
    inner.image_encoder.requires_grad_(True)
    with pytest.raises(SettingsError, match="trains"):
        backbone.encode(_slices(1))
    with pytest.raises(SettingsError, match="trains"):
        cached(inner, tmp_path)


def test_entries_are_half_as_large_as_what_they_give(tmp_path: Path) -> None:
    backbone = cached(tiny_models.tiny_sam2(), tmp_path)
    image = backbone.encode(_slices(1))
    (path,) = _files(tmp_path)
    assert path.stat().st_size < 0.5 * sum(level.numel() * 4 for level in image.features) + 1000
    assert all(level.dtype == torch.float32 for level in image.features)


def test_every_process_obeys_the_limit_of_the_folder(tmp_path: Path) -> None:
    assert size_limit(tmp_path) == USUAL_LIMIT
    backbone = cached(tiny_models.tiny_sam(), tmp_path)
    backbone.encode(_slices(1))
    (entry,) = _files(tmp_path)
    set_size_limit(tmp_path, 2.5 * entry.stat().st_size / 2**30)
    cached(tiny_models.tiny_sam(), tmp_path).encode(_slices(5, seed=1))
    assert len(_files(tmp_path)) == 2
    (tmp_path / "limit.json").write_text("damaged")
    assert size_limit(tmp_path) == USUAL_LIMIT
    for gib in (0, -1, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match=f"{gib} GiB; give a positive number"):
            set_size_limit(tmp_path, gib)


def test_a_device_without_bfloat16_reads_no_entry_of_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, slices = load_backbone("handful-tiny@64+fast"), _slices(2)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    in_bfloat16 = cached(fast, tmp_path).encode(slices).main
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    elsewhere = cached(fast, tmp_path)
    in_float32 = elsewhere.encode(slices).main
    assert elsewhere.hits == 0
    assert torch.equal(in_float32, fast.encode(slices).main)
    assert not torch.equal(in_float32, in_bfloat16)
