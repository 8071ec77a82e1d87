"""Methods that are fitted from several seeds and vote."""

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.catalog import build_method, method_settings
from handful.methods.wrappers.seeds import Seeds, SeedsSegmenter
from phantoms import phantom, support_set
from whole import build_whole

BRIEF = {"channels": 4, "side": 32, "train.iterations": 3}


def fitted(backbone: Backbone, run: Run = Run(), **settings: object) -> SeedsSegmenter:  # noqa: B008
    segmenter = build_whole("unet", BRIEF | {"seeds": 3} | settings).fit(support_set(1), backbone, run)
    assert isinstance(segmenter, SeedsSegmenter)
    return segmenter


@pytest.fixture(scope="module")
def three(sam: Backbone) -> SeedsSegmenter:
    return fitted(sam)


def test_each_is_what_its_seed_alone_would_have_given(three: SeedsSegmenter, sam: Backbone):
    learned = [one.learned() for one in three.voters]
    for seed, found in enumerate(learned):
        alone = build_whole("unet", BRIEF | {"train.seed": seed}).fit(support_set(1), sam).learned()
        assert all(torch.equal(found[name], value) for name, value in alone.items())
    assert any(not torch.equal(value, learned[1][name]) for name, value in learned[0].items())


def test_a_voxel_gets_the_label_of_most(three: SeedsSegmenter):
    image, _ = phantom(7)
    votes = [one.predict(image).array for one in three.voters]
    found = three.predict(image).array
    assert not np.array_equal(found, votes[0])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        agreed = votes[a] == votes[b]
        assert np.array_equal(found[agreed], votes[a][agreed])


def test_single_slices_get_the_mean_of_what_is_held_for_likely(three: SeedsSegmenter):
    slices = torch.rand(2, 1, 24, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        three.eval()
        shares = [torch.cat([torch.zeros(2, 1, 24, 28), one(slices)], 1).softmax(1) for one in three.voters]
        again = torch.cat([torch.zeros(2, 1, 24, 28), three(slices)], 1).softmax(1)
    assert torch.allclose(again, torch.stack(shares).mean(0), atol=1e-6)


def test_pre_training_has_a_seed_of_its_own_each_time_too():
    method = build_whole("unet", {"train.seed": 4, "contrast.seed": 7})
    later = method.seeded(2)
    assert (later.train.seed, later.contrast.seed) == (6, 9)


def test_each_fit_has_its_own_scratch_folder_and_reports_its_name(sam: Backbone, tmp_path):
    notes: list[str] = []
    fitted(sam, Run(scratch=tmp_path, report=lambda step, total, note: notes.append(note), save_every_s=0))
    assert {path.name for path in tmp_path.iterdir()} == {"seed-0", "seed-1", "seed-2"}
    assert {note.split(":")[0] for note in notes} == {"seed-0", "seed-1", "seed-2"}


def test_seeds_reach_the_method_inside_planes_and_roi_crop_and_come_back_from_settings(sam: Backbone):
    settings = BRIEF | {"seeds": 3, "planes": "axial,coronal", "roi_margin": 1.5}
    method = build_whole("unet", settings)
    assert build_method("unet", method_settings(method)) == method
    trained = [plane for one in method.fit(support_set(1), sam).voters for plane in one.voters]
    assert len({float(sum(value.double().sum() for value in one.learned().values())) for one in trained}) == 6


def test_an_ensemble_counts_its_seed_on():
    method = build_whole("ensemble", {"seeds": 3, "seed": 5})
    assert isinstance(method, Seeds)
    assert [method_settings(method.method.seeded(further))["seed"] for further in range(3)] == [5, 6, 7]


@pytest.mark.parametrize("count", [1, 2, 0, -3])
def test_two_cannot_vote(count: int):
    with pytest.raises(SettingsError, match=f"seeds must be 3 or more, got {count}"):
        build_whole("unet", {"seeds": count})


@pytest.mark.parametrize("method", ["fate", "nearest-slice", "zero-shot"])
def test_what_trains_nothing_has_no_seeds(method: str):
    with pytest.raises(SettingsError, match=r"seeds is for .*leave it out"):
        build_whole(method, {"seeds": 3})


def test_no_number_of_seeds_is_refused():
    with pytest.raises(SettingsError, match="seeds = 'many': set a whole number such as 3"):
        build_whole("unet", {"seeds": "many"})
