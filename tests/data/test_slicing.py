"""Slices: which way they are cut, which values they show, and that they go back where they came from."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from handful.data.slice_grid import evenly_spaced
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import GeometryMismatch, SettingsError, UnsupportedInput


def _on(array: np.ndarray, *spacing: float, modality: str | None = None) -> Volume:
    """An array (left, back, feet) or (channels, ...) on axes along just these directions."""
    channels = array[None] if array.ndim == 3 else array
    i, j, k = channels.shape[1:]
    affine = np.diag([-spacing[0], -spacing[1], -spacing[2], 1.0]) if spacing else np.diag([-1.0, -1, -1, 1])
    return Volume(channels, Geometry((i, j, k), affine), modality)


@pytest.fixture
def body() -> np.ndarray:
    return np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def test_rows_and_columns_run_in_radiological_display_order(body: np.ndarray) -> None:
    """Axes of `body` run to the left, the back and the feet."""
    shown = {"axial": body.transpose(2, 1, 0), "coronal": body.transpose(1, 2, 0), "sagittal": body.transpose(0, 2, 1)}
    for plane, expected in shown.items():
        view = Slicer(plane=plane).view(_on(body))
        np.testing.assert_array_equal(view.of(body), expected)
        assert (len(view), *view.size) == expected.shape


def test_slices_are_alike_however_the_volume_is_stored(body: np.ndarray) -> None:
    reference = Slicer(plane="axial", window="percentile").cut(_on(body, 1, 2, 3))
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            stored = body.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            affine = np.eye(4)
            affine[:3, :3] = -np.diag([1.0, 2, 3])[:, order] * signs
            volume = Volume(stored[None], Geometry(stored.shape, affine))
            torch.testing.assert_close(Slicer(plane="axial", window="percentile").cut(volume), reference)


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [
        ((1, 1, 5), "axial"),
        ((1, 5, 1), "coronal"),
        ((5, 1, 1), "sagittal"),
        ((1, 1, 1), "axial"),
        ((1.05, 1, 1), "axial"),
        ((4.6, 4.6, 3), "axial"),
        ((1.2, 1, 1), "sagittal"),
    ],
)
def test_auto_cuts_across_the_largest_spacing_and_axially_on_a_tie(
    body: np.ndarray, spacing: tuple[float, float, float], plane: str
) -> None:
    assert Slicer().resolve([_on(body, *spacing)]).plane == plane


@pytest.mark.parametrize(("axis", "plane"), [(0, "sagittal"), (1, "coronal"), (2, "axial")])
def test_auto_takes_the_plane_of_a_single_slice(body: np.ndarray, axis: int, plane: str) -> None:
    picture = _on(body.take([0], axis=axis), 1, 2, 9)
    assert Slicer().resolve([picture]).plane == plane
    assert len(Slicer().view(picture)) == 1


def test_resolving_follows_the_majority_whatever_the_order(body: np.ndarray) -> None:
    thick, thin = _on(body, 1, 1, 5), _on(body, 1, 5, 1)
    assert Slicer().resolve([thin, thick, thick]).plane == "axial"
    assert Slicer().resolve([thick, thin]) == Slicer().resolve([thin, thick])


def test_resolving_keeps_what_is_set_and_needs_volumes_for_the_rest(body: np.ndarray) -> None:
    assert Slicer(plane="coronal").resolve([_on(body, 1, 1, 5)]) == Slicer(plane="coronal", window="percentile")
    assert Slicer(plane="coronal", window="none").resolve([]) == Slicer(plane="coronal", window="none")
    with pytest.raises(SettingsError, match="no volume to choose plane and window by"):
        Slicer().resolve([])


def test_auto_window_is_soft_tissue_only_for_ct_in_hounsfield_units(body: np.ndarray) -> None:
    ct = _on(body - np.int16(500), modality="CT (abdomen)")
    assert Slicer().resolve([ct]).window == "ct-soft"
    assert Slicer().resolve([_on(body, modality="CT")]).window == "percentile"
    assert Slicer().resolve([_on(body - np.int16(500), modality="MR")]).window == "percentile"


def test_auto_window_leaves_8_bit_colours_as_they_are() -> None:
    colour = np.array([0, 51, 255], dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 4, 5, 1), np.uint8)
    slices = Slicer().cut(_on(colour))
    assert slices.shape == (1, 3, 5, 4)
    torch.testing.assert_close(slices[0, :, 0, 0], torch.tensor([0, 0.2, 1]))


@pytest.mark.parametrize(
    ("window", "at_40"), [("ct-soft", 0.5), ("ct-bone", 0.3), ("ct-brain", 0.5), ((0.0, 50.0), 0.8)]
)
def test_windows_are_linear_and_clipped(body: np.ndarray, window, at_40: float) -> None:
    values = np.full((4, 5, 6), 40, dtype=np.int16)
    values[0, 0, 0], values[1, 1, 1] = -3000, 3000
    slices = Slicer(plane="axial", window=window).cut(_on(values))
    assert (float(slices[0, 0, 0, 0]), float(slices[1, 0, 1, 1])) == (0, 1)
    assert float(slices[2, 0, 2, 2]) == pytest.approx(at_40)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"), [(np.uint8, 51, 0.2), (np.uint16, 13107, 0.2), (np.float32, 0.2, 0.2)]
)
def test_no_window_maps_the_range_of_the_type(dtype, value: float, shown: float) -> None:
    slices = Slicer(plane="axial", window="none").cut(_on(np.full((2, 2, 2), value, dtype=dtype)))
    torch.testing.assert_close(slices, torch.full((2, 1, 2, 2), 0.2))


def test_percentiles_leave_out_zero_background_and_outliers() -> None:
    values = np.zeros((20, 20, 20), dtype=np.float32)
    values[5:15, 5:15, 5:15] = np.linspace(100, 200, 1000).reshape(10, 10, 10)
    values[5, 5, 5] = 1e6
    view = Slicer(window="percentile").view(_on(values))
    assert view.limits[0][0] == pytest.approx(100.5, abs=0.2)
    assert view.limits[0][1] == pytest.approx(199.6, abs=0.2)


def test_percentiles_of_a_huge_volume_come_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).normal(1000, 100, (160, 160, 160)).astype(np.float32)
    seen = []
    percentile = np.percentile
    monkeypatch.setattr(np, "percentile", lambda a, q: seen.append(a.size) or percentile(a, q))
    view = Slicer(window="percentile").view(_on(voxels))
    assert 500_000 < seen[0] <= 2_000_000
    assert view.limits[0][0] == pytest.approx(percentile(voxels, 0.5), abs=2)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_becomes_zeros(value: int) -> None:
    slices = Slicer().cut(_on(np.full((3, 4, 5), value, dtype=np.int16)))
    assert (slices == 0).all()


def test_two_values_of_which_one_is_zero_are_still_distinguished() -> None:
    values = np.zeros((3, 4, 5), dtype=np.uint8)
    values[1] = 9
    assert Slicer(plane="sagittal").cut(_on(values)).amax(dim=(1, 2, 3)).tolist() == [0, 1, 0]


def test_nan_is_refused(body: np.ndarray) -> None:
    values = body.astype(np.float32)
    values[0, 0, 0] = np.nan
    with pytest.raises(UnsupportedInput, match="1 of 120 voxels are NaN"):
        Slicer(window="ct-soft").view(_on(values))


def test_chunks_are_parts_of_the_whole_and_leave_the_volume_alone(body: np.ndarray) -> None:
    volume, before = _on(body, 1, 1, 5), body.copy()
    view = Slicer().view(volume)
    chunks = [view.cut(start, start + 4) for start in range(0, len(view), 4)]
    assert [len(chunk) for chunk in chunks] == [4, 2]
    torch.testing.assert_close(torch.cat(chunks), Slicer().cut(volume))
    torch.testing.assert_close(view.take([5, 0]), Slicer().cut(volume)[[5, 0]])
    chunks[0].fill_(9)
    np.testing.assert_array_equal(volume.array[0], before)


def test_neighbours_are_the_slices_before_and_after_and_repeat_at_the_ends(body: np.ndarray) -> None:
    alone = Slicer(plane="axial").cut(_on(body))[:, 0]
    beside = Slicer(plane="axial", neighbours=True).cut(_on(body))
    assert beside.shape == (6, 3, 5, 4)
    torch.testing.assert_close(beside[:, 1], alone)
    torch.testing.assert_close(beside[:, 0], alone[[0, 0, 1, 2, 3, 4]])
    torch.testing.assert_close(beside[:, 2], alone[[1, 2, 3, 4, 5, 5]])


def test_neighbours_of_a_colour_picture_are_refused() -> None:
    with pytest.raises(UnsupportedInput, match="need a grey volume, not 3 channels; set neighbours=False"):
        Slicer(neighbours=True).view(_on(np.zeros((3, 4, 5, 1), dtype=np.uint8)))


def test_spacing_is_between_slices_rows_and_columns(body: np.ndarray) -> None:
    assert Slicer(plane="axial").view(_on(body, 1, 2, 3)).spacing == (3, 2, 1)
    assert Slicer(plane="coronal").view(_on(body, 1, 2, 3)).spacing == (2, 3, 1)
    assert Slicer(plane="sagittal").view(_on(body, 1, 2, 3)).spacing == (1, 3, 2)


def test_stack_returns_the_grid_it_was_cut_from(volume: Volume, label_map: LabelMap, labels: Labels) -> None:
    for plane in ("auto", "axial", "coronal", "sagittal"):
        slicer = Slicer(plane=plane)
        classes = slicer.view(volume).of(label_map.array).copy()
        back = slicer.stack(classes, volume.geometry, labels)
        np.testing.assert_array_equal(back.array, label_map.array)
        assert back.geometry is volume.geometry


def test_writing_into_the_view_writes_onto_the_grid(volume: Volume) -> None:
    out = np.zeros(volume.geometry.shape, dtype=np.int16)
    Slicer(plane="coronal").view(volume).of(out)[...] = 5
    assert (out == 5).all()


def test_slices_of_another_volume_are_not_stacked(volume: Volume, labels: Labels) -> None:
    with pytest.raises(GeometryMismatch, match=r"\(2, 3, 4\) slices for \(5, 7, 9\) axial ones"):
        Slicer(plane="axial").stack(np.zeros((2, 3, 4), dtype=np.int16), volume.geometry, labels)


@pytest.mark.parametrize("settings", [{"plane": "oblique"}, {"window": "soft"}, {"window": (5.0, 5.0)}])
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises((SettingsError, TypeError), match=r"plane|window"):
        Slicer(**settings)


def test_settings_survive_json() -> None:
    adapter = TypeAdapter(Slicer)
    for slicer in (Slicer(), Slicer(plane="axial", window=(-100.0, 300.0), neighbours=True), Slicer(window="ct-lung")):
        assert adapter.validate_json(adapter.dump_json(slicer)) == slicer


def test_slices_are_taken_evenly_from_the_first_to_the_last():
    assert evenly_spaced(5, 64) == [0, 1, 2, 3, 4]
    assert evenly_spaced(1000, 3) == [0, 500, 999]
    assert len(evenly_spaced(1000, 64)) == 64
    assert evenly_spaced(1, 20) == [0]
    assert evenly_spaced(0, 20) == []
