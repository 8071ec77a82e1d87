"""Three methods that learn from the same labels and vote."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_models
from handful.backbones.base import MemoryBackbone
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Segmenter
from handful.methods.wrappers.ensemble import EnsembleSegmenter
from handful.methods.wrappers.planes import PlanesSegmenter
from methods.variants import believing
from phantoms import LABELS, phantom, support_set
from whole import build_whole

BRIEF = {
    "auto_sam_unet.views": 1,
    "auto_sam_unet.train.iterations": 2,
    "unet.channels": 4,
    "unet.side": 32,
    "unet.train.iterations": 2,
}


class Saying(Segmenter):
    """Says the same of every volume and every slice."""

    def __init__(self, like: Segmenter, array: np.ndarray, logits: tuple[float, float]) -> None:
        super().__init__(like.labels, like.slicer, like.backbone)
        self.array, self.logits = array, logits

    def forward(self, slices: Tensor) -> Tensor:
        n, _, h, w = slices.shape
        return torch.tensor(self.logits)[None, :, None, None].expand(n, 2, h, w)

    def learned(self) -> dict[str, Tensor]:
        return {}

    def predict(self, volume: Volume) -> LabelMap:
        return LabelMap(self.array, volume.geometry, self.labels)


def fitted(backbone: MemoryBackbone, support: SupportSet | None = None, **settings: object) -> EnsembleSegmenter:
    segmenter = build_whole("ensemble", BRIEF | settings).fit(support or support_set(1), backbone)
    assert isinstance(segmenter, EnsembleSegmenter)
    return segmenter


@pytest.fixture(scope="module")
def video() -> MemoryBackbone:
    return believing(tiny_models.tiny_sam2_video(side=64))


@pytest.fixture(scope="module")
def brief(video: MemoryBackbone) -> EnsembleSegmenter:
    return fitted(video)


def test_two_of_three_win_and_the_first_decides_where_no_two_agree(brief: EnsembleSegmenter):
    image, _ = phantom(7)
    votes = [np.zeros(image.geometry.shape, dtype=np.int16) for _ in range(3)]
    cases = {0: (1, 3, 3), 1: (1, 1, 3), 2: (0, 3, 3), 3: (3, 1, 0), 4: (3, 0, 0)}
    for voxel, said in cases.items():
        for array, value in zip(votes, said, strict=True):
            array[voxel, 0, 0] = value
    members = {name: Saying(brief, votes[place], (0.0, 0.0)) for place, name in enumerate(brief.fitted)}
    assert list(members) == ["auto-sam-unet", "unet", "fate"]
    found = EnsembleSegmenter(members, three_planes=False).predict(image).array
    assert [int(found[voxel, 0, 0]) for voxel in cases] == [3, 1, 3, 3, 0]


def test_forward_is_the_mean_of_probabilities(brief: EnsembleSegmenter):
    image, _ = phantom(7)
    said = [(2.0, -1.0), (0.0, 0.0), (-3.0, 1.0)]
    members = {str(place): Saying(brief, image.array[0], logits) for place, logits in enumerate(said)}
    logits = EnsembleSegmenter(members, three_planes=False)(torch.zeros(1, 1, 2, 2))[0, :, 0, 0]
    mean = torch.tensor([(0.0, *one) for one in said]).softmax(dim=1).mean(dim=0)
    assert torch.allclose(torch.cat([torch.zeros(1), logits]).softmax(dim=0), mean)


def test_fate_uses_three_planes_only_for_nearly_isotropic_voxels(brief: EnsembleSegmenter, video: MemoryBackbone):
    assert not isinstance(brief.fitted["fate"], PlanesSegmenter), "the phantoms' slices are thick and few"
    rng, shape = np.random.default_rng(0), (20, 18, 16)
    geometry = Geometry(shape, np.diag([1.0, 1.0, 1.5, 1.0]))
    classes = np.zeros(shape, dtype=np.int16)
    classes[3:9, 3:9, 3:9], classes[11:17, 9:15, 6:12] = LABELS.values
    image = Volume((rng.normal(0, 0.1, shape) + classes).astype(np.float32)[None], geometry, modality="MR")
    case = Case(name="cube", image=image, reference=LabelMap(classes, geometry, LABELS), labels=LABELS)
    segmenter = fitted(video, SupportSet((case,), LABELS))
    assert isinstance(segmenter.fitted["fate"], PlanesSegmenter)
    again = build_whole("ensemble", BRIEF).restore(LABELS, segmenter.slicer, video, segmenter.learned())
    assert isinstance(again, EnsembleSegmenter)
    assert isinstance(again.fitted["fate"], PlanesSegmenter)
    kept = again.learned()
    assert all(torch.equal(kept[name], value) for name, value in segmenter.learned().items())


def test_another_seed_gives_other_weights(brief: EnsembleSegmenter, video: MemoryBackbone):
    other = fitted(video, seed=1).learned()
    for member in ("auto-sam-unet", "unet"):
        same = [torch.equal(value, other[name]) for name, value in brief.learned().items() if name.startswith(member)]
        assert not all(same), member


def test_progress_names_who_is_at_work(video: MemoryBackbone):
    notes: list[str] = []
    run = Run(report=lambda step, total, note: notes.append(note))
    build_whole("ensemble", BRIEF).fit(support_set(1), video, run)
    assert list(dict.fromkeys(note.split(":")[0] for note in notes)) == ["auto-sam-unet", "unet", "fate"]


def test_a_slicer_of_one_alone_is_refused():
    with pytest.raises(SettingsError, match=r"unet\.slicer is set"):
        build_whole("ensemble", {"unet.slicer.plane": "coronal"})


def test_each_member_keeps_settings_of_its_own():
    method = build_whole("ensemble", BRIEF | {"fate.top_k": 3})
    assert dataclasses.asdict(method)["fate"]["top_k"] == 3
