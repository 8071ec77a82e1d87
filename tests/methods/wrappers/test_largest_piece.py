import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_models
from handful.backbones.base import Backbone
from handful.checkpoint.model import load, open_model, save
from handful.cohort.fit import FitConfig, fit_to_folder
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import build_method, method_settings
from handful.methods.interactive.method import Interactive, InteractivePromptable
from handful.methods.wrappers.largest_piece import LargestPiece, LargestPieceSegmenter, OnePiece
from phantoms import phantom

LABELS = Labels((1, 4), ("organ", "nuclei"))
SLICES = 4


def scan(name: str, *, speck: bool = False, slices: int = SLICES) -> Case:
    """An organ in the middle of all slices, and nuclei in the corners; a speck of the organ's grey far from it."""
    labels = np.zeros((24, 24, slices), dtype=np.int16)
    labels[8:16, 8:16] = 1
    labels[1:3, 1:3], labels[20:22, 20:22] = 4, 4
    image = np.where(labels == 1, 200.0, np.where(labels == 4, 120.0, 0.0)).astype(np.float32)
    if speck:
        image[20:22, 1:3, :1] = 200.0
    geometry = Geometry(labels.shape, np.diag([1.0, 1.0, 5.0, 1.0]))
    return Case(name, Volume(image[None], geometry), LabelMap(labels, geometry, LABELS), LABELS)


@dataclasses.dataclass(frozen=True)
class Grey(Method):
    """Each label by its grey value: a method whose mistakes are known."""

    slicer: Slicer = Slicer(window=(0.0, 200.0))

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> Segmenter:  # noqa: B008
        return GreySegmenter(support.labels, support.resolve(self.slicer), backbone)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> Segmenter:
        return GreySegmenter(labels, slicer, backbone)


class GreySegmenter(Segmenter):
    def forward(self, slices: Tensor) -> Tensor:
        return torch.cat([100 * (slices - 0.9), 100 * (0.2 - (slices - 0.6).abs())], dim=1)

    def learned(self) -> dict[str, Tensor]:
        return {}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_models.tiny_sam(side=64)


def fitted(backbone: Backbone, *cases: Case) -> LargestPieceSegmenter:
    return LargestPiece(Grey()).fit(SupportSet(cases, LABELS), backbone)


def test_a_speck_is_removed_from_a_label_in_one_piece_and_nuclei_stay(backbone: Backbone):
    segmenter, shown = fitted(backbone, scan("a"), scan("b")), scan("c", speck=True)
    volume, expected = shown.read_image(), shown.read_reference().array
    assert int((segmenter.inner.predict(volume).array != expected).sum()) == 4
    assert np.array_equal(segmenter.predict(volume).array, expected)
    assert np.array_equal(segmenter.predict_explained(volume).label_map.array, expected)


def test_the_decision_names_labels_on_both_sides(backbone: Backbone):
    assert fitted(backbone, scan("a")).decisions == (
        "keep only the largest piece of: organ",
        "keep all pieces of: nuclei (50% in the largest)",
    )


def test_one_reference_in_several_pieces_is_enough_to_keep_them_all(backbone: Backbone):
    other = scan("b")
    other.read_reference().array[18:22, 2:6] = 1
    one_piece = fitted(backbone, scan("a"), other).one_piece
    assert (one_piece.whole_volumes, one_piece.single_slices) == ((), ())
    assert one_piece.several[1] == pytest.approx(0.8)


def test_where_only_slices_are_labelled_each_slice_keeps_its_largest_piece(backbone: Backbone):
    partly = scan("a")
    partly.read_reference().array[:, :, 2:] = IGNORE
    segmenter = fitted(backbone, partly)
    assert segmenter.one_piece == OnePiece((), (1,))
    assert segmenter.decisions[0] == "keep only the largest piece on each slice of: organ"
    shown = scan("c", speck=True)
    volume = shown.read_image()
    volume.array[0, :, :, 1] = 0
    volume.array[0, 5:7, 5:7, 1] = 200.0  # the only piece of its slice, and the smaller one of the volume
    found = segmenter.predict(volume).array
    assert (found[20:22, 1:3, 0] == 0).all()
    assert (found[5:7, 5:7, 1] == 1).all()


def test_pictures_are_single_slices_and_complete_volumes_decide_if_there_are_any(backbone: Backbone):
    assert fitted(backbone, scan("a", slices=1)).one_piece == OnePiece((), (1,))
    assert fitted(backbone, scan("a", slices=1), scan("b")).one_piece == OnePiece((1,), ())


def heart(name: str, *, apart: bool = False, liver: bool = False, slices: int = SLICES) -> Case:
    """A cavity (1) and its wall (4), side by side or `apart`; something larger of the cavity's grey far from them."""
    labels = np.zeros((24, 24, slices), dtype=np.int16)
    labels[2:8, 2:8] = 1
    labels[9 if apart else 8 : 12, 2:8] = 4
    image = np.where(labels == 1, 200.0, np.where(labels == 4, 120.0, 0.0)).astype(np.float32)
    if liver:
        image[14:22, 14:23] = 200.0
    geometry = Geometry(labels.shape, np.diag([1.0, 1.0, 5.0, 1.0]))
    return Case(name, Volume(image[None], geometry), LabelMap(labels, geometry, LABELS), LABELS)


@pytest.mark.parametrize("slices", [1, SLICES])
def test_a_larger_false_positive_does_not_replace_an_organ_that_touches_another(backbone: Backbone, slices: int):
    segmenter = fitted(backbone, heart("a", slices=slices), heart("b", slices=slices))
    assert segmenter.one_piece.touching == {(1, 4), (4, 1)}
    assert "prefer pieces that touch, as in all labelled cases: organ and nuclei" in segmenter.decisions
    shown = heart("c", liver=True, slices=slices)
    assert np.array_equal(segmenter.predict(shown.read_image()).array, shown.read_reference().array)


def test_labels_that_are_apart_in_one_case_need_not_touch(backbone: Backbone):
    segmenter = fitted(backbone, heart("a"), heart("b", apart=True))
    assert segmenter.one_piece == OnePiece((1, 4), ())
    found = segmenter.predict(heart("c", liver=True).read_image()).array
    assert (found[14:22, 14:23] == 1).all()


def test_labels_that_touch_are_saved_and_loaded(backbone: Backbone, tmp_path: Path):
    method = build_method("nearest-slice", {"roi_margin": "none"})
    fit_to_folder("nearest-slice", method, SupportSet((heart("a"),), LABELS), backbone, tmp_path / "m", FitConfig())
    again = load(tmp_path / "m", backbone)
    assert isinstance(again, LargestPieceSegmenter)
    assert again.one_piece == OnePiece((1, 4), (), touching=frozenset({(1, 4), (4, 1)}))


@pytest.mark.parametrize("pairs", [[[1, 7]], [[1, 4, 1]], [1, 4]])
def test_touching_labels_that_no_model_has_are_refused(backbone: Backbone, pairs: object):
    segmenter = LargestPiece(Grey()).fit(SupportSet((heart("a"),), LABELS), backbone)
    learned = segmenter.learned()
    restored = LargestPiece(Grey()).restore(LABELS, segmenter.slicer, backbone, learned)
    assert restored.one_piece == segmenter.one_piece
    with pytest.raises(SettingsError, match="touching"):
        LargestPiece(Grey()).restore(
            LABELS, segmenter.slicer, backbone, learned | {"touching": torch.tensor(pairs, dtype=torch.long)}
        )


def test_a_model_of_an_earlier_version_keeps_the_largest_piece(backbone: Backbone):
    segmenter = LargestPiece(Grey()).fit(SupportSet((heart("a"),), LABELS), backbone)
    earlier = {name: tensor for name, tensor in segmenter.learned().items() if name != "touching"}
    assert LargestPiece(Grey()).restore(LABELS, segmenter.slicer, backbone, earlier).one_piece.touching == frozenset()


def test_the_decision_is_saved_and_loaded_and_in_the_record(backbone: Backbone, tmp_path: Path):
    support = SupportSet((scan("a"), scan("b")), LABELS)
    method = build_method("nearest-slice", {"roi_margin": "none"})
    result = fit_to_folder("nearest-slice", method, support, backbone, tmp_path / "model", FitConfig(leave_out=False))
    record = open_model(tmp_path / "model").record
    assert "keep only the largest piece of: organ" in result.decisions
    assert record.settings["largest_piece"] == "auto"
    assert record.provenance["decisions"] == list(result.decisions)
    again = load(tmp_path / "model", backbone)
    assert isinstance(again, LargestPieceSegmenter)
    assert again.one_piece == OnePiece((1,), ())


def test_none_keeps_what_the_method_finds(backbone: Backbone, tmp_path: Path):
    method = build_method("nearest-slice", {"largest_piece": "none", "roi_margin": "none"})
    assert method_settings(method)["largest_piece"] == "none"
    segmenter = method.fit(SupportSet((scan("a"),), LABELS), backbone)
    assert not isinstance(segmenter, LargestPieceSegmenter)
    save(segmenter, tmp_path / "model", method_name="nearest-slice", method=method, provenance={})
    assert not isinstance(load(tmp_path / "model", backbone), LargestPieceSegmenter)


def test_another_rule_is_refused():
    with pytest.raises(SettingsError, match="largest_piece = 'always': set auto, or none"):
        build_method("fate", {"largest_piece": "always"})


def test_prompts_of_a_person_are_answered_with_all_pieces(backbone: Backbone):
    support = SupportSet((scan("a"),), LABELS)
    segmenter = LargestPiece(Interactive(train=dataclasses.replace(Interactive().train, iterations=1))).fit(
        support, backbone
    )
    assert isinstance(segmenter.promptable(), InteractivePromptable)


def test_a_segmenter_that_learns_more_keeps_the_decision():
    support = SupportSet((scan("a"),), LABELS)
    video = tiny_models.tiny_sam2_video(side=64)
    segmenter = build_method("fate", {"roi_margin": "none"}).fit(support, video)
    assert isinstance(segmenter, LargestPieceSegmenter)
    more = segmenter.extend(SupportSet((scan("b"),), LABELS))
    assert isinstance(more, LargestPieceSegmenter)
    assert more.one_piece == segmenter.one_piece
    explained = more.predict_explained(phantom(0)[0])
    assert explained.reasons is not None
    assert more.support_picture("a", 0).case == "a"
