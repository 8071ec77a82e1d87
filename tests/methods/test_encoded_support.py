"""Stored views of a support set: how many fit into memory, and that random ones leave the user's cache alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels
from handful.methods import encoded_support
from handful.methods.encoded_support import (
    EncodedSupport,
    SparseMaps,
    StoredEmbeddings,
    encode_support,
    views_to_keep,
)
from phantoms import phantom, support_set

SLICER = Slicer(window=(0.0, 350.0))
BUILDERS = [tiny_models.tiny_sam, tiny_models.tiny_sam2, tiny_models.tiny_edgetam]


def _encoded(backbone: Backbone, support: SupportSet, views: int, pixels: int = 0) -> EncodedSupport:
    slices = support.slices(SLICER)
    return encode_support(slices, backbone, views=views, seed=0, side=backbone.mask_side, pixels=pixels)


def _bytes(encoded: EncodedSupport) -> int:
    assert isinstance(encoded.source, StoredEmbeddings)
    stored = [*encoded.source.image.features, encoded.regions, encoded.target, encoded.valid_mask]
    return sum(one.nbytes for one in stored)


def test_only_the_slices_themselves_are_stored_in_the_users_cache(tmp_path: Path) -> None:
    support = support_set(2)
    keeping = cached(tiny_models.tiny_sam(), tmp_path)
    encoded = _encoded(keeping, support, views=4)
    slices = sum(facts.labelled_slices(SLICER) for facts in support.facts)
    assert len(encoded) == 4 * slices
    assert len(list(tmp_path.glob("*.safetensors"))) == keeping.misses == slices
    plain = _encoded(tiny_models.tiny_sam(), support, views=4)
    everything = torch.arange(len(plain))
    torch.testing.assert_close(encoded.rows(everything).main, plain.rows(everything).main, atol=2e-3, rtol=2e-3)
    assert encoded.digest == plain.digest


@pytest.mark.parametrize("build", BUILDERS)
def test_the_size_of_embeddings_is_that_of_all_their_levels(build: object, tmp_path: Path) -> None:
    backbone = build()  # type: ignore[operator]
    numbers = sum(level[0].numel() for level in backbone.encode(torch.rand(1, 1, 40, 60)).features)
    assert backbone.embedding_size == cached(backbone, tmp_path).embedding_size == numbers


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("pixels", [0, 32])
def test_as_many_views_are_kept_as_fit_into_memory(build: object, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, support = build(), support_set(2)  # type: ignore[operator]
    one = _bytes(_encoded(backbone, support, views=1, pixels=pixels))
    monkeypatch.setattr(encoded_support, "MOST_BYTES", 7 * one + one // 2)
    kept = views_to_keep(64, support, SLICER, backbone, side=backbone.mask_side, pixels=pixels)
    assert 4 <= kept <= 7
    assert views_to_keep(3, support, SLICER, backbone, side=backbone.mask_side, pixels=pixels) == 3


def test_sam_has_one_level_so_more_of_its_views_fit() -> None:
    """In half precision 2 MiB a view for SAM ViT-B at 1024 pixels, and 8 for SAM 2."""
    tiny = load_backbone("handful-tiny")
    assert tiny.embedding_size == 4 * tiny.channels * tiny.feature_side**2
    assert tiny_models.tiny_sam().embedding_size == 64 * 8**2


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_maps_come_back_as_they_were(dtype: torch.dtype) -> None:
    dense = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    dense = torch.where(dense > 0.7, dense, 0).to(dtype)
    maps = SparseMaps()
    for row in dense:
        maps.add(row)
    assert torch.equal(maps[torch.tensor([2, 0, 2])], dense[[2, 0, 2]])
    assert torch.equal(maps.sums, dense.sum(dim=(2, 3)))
    assert maps.shape == (3, 5, 5)


def test_maps_of_many_labels_take_no_more_memory_than_those_of_few() -> None:
    image, reference = phantom(0)
    held = {}
    for count in (2, 40):
        labels = Labels(tuple(range(1, count + 1)), tuple(f"label {value}" for value in range(1, count + 1)))
        size = [-(-side // 4) for side in reference.array.shape]
        blocks = (np.arange(np.prod(size), dtype=np.int16) % count + 1).reshape(size)  # of four voxels along each axis
        whole = blocks.repeat(4, 0).repeat(4, 1).repeat(4, 2)
        array = whole[tuple(slice(0, side) for side in reference.array.shape)]
        support = SupportSet((Case("one", image, LabelMap(array, reference.geometry, labels), labels),), labels)
        encoded = _encoded(tiny_models.tiny_sam(), support, views=1)
        held[count] = encoded.target.nbytes
    assert held[40] <= 1.5 * held[2]
