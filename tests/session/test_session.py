"""What an annotator relies on: her question changes what she asked about, what she accepted stays, and undo is
exact."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.data.files import read_label_map
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import CheckpointError, DamagedFile, InputError, LabelError, SettingsError
from handful.jobs import scratch
from handful.methods.fate.method import Fate, FateSegmenter
from handful.methods.few_shot_prompts.method import FewShotPrompts, FewShotSegmenter
from handful.methods.interactive.method import Interactive
from handful.methods.nearest_slice import NearestSlice
from handful.methods.zero_shot import ZeroShot
from handful.prompts.heuristics import boxes, centre_points
from handful.session import propagation
from handful.session.session import Session, SessionConfig, _numbers
from handful.session.state_file import MOST_STEPS
from handful.tuning.loop import TrainConfig
from phantoms import LABELS, phantom, phantom_case, support_set

BALL, EGG = LABELS.values
MIDDLE = 2
"""A slice that holds both labels."""
QUIET = SessionConfig(background=False)
Scan = tuple[Volume, LabelMap]


def centre(mask: np.ndarray) -> tuple[float, float]:
    points = centre_points(torch.from_numpy(mask)[None, None]).points
    assert points is not None
    x, y = points[0, 0, 0].tolist()
    return x, y


def box_round(mask: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = boxes(torch.from_numpy(mask)[None, None], 0.0, torch.Generator())[0, 0].tolist()
    return x0, y0, x1, y1


def leftmost(mask: np.ndarray) -> tuple[float, float]:
    x, y = np.argwhere(mask.T)[0].tolist()
    return x, y


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def picture(session: Session) -> np.ndarray:
    """The whole segmentation, slice by slice."""
    return np.stack([session.classes(number) for number in range(len(session))])


def draw_truth(session: Session, truth: np.ndarray, number: int) -> None:
    for value in LABELS.values:
        session.paint(number, value, truth[number] == value)


# Asking.


def test_a_box_and_a_click_find_the_label(session: Session, truth: np.ndarray):
    wanted = truth[MIDDLE] == EGG
    session.box(MIDDLE, "egg", box_round(wanted))
    change = session.click(MIDDLE, EGG, centre(wanted))
    assert dice(change.mask, wanted) > 0.8
    assert np.array_equal(session.mask_of(MIDDLE, "egg"), change.mask)


def test_a_click_changes_its_slice_and_label_only_and_reports_where(session: Session, truth: np.ndarray):
    session.box(MIDDLE, BALL, box_round(truth[MIDDLE] == BALL))
    before = picture(session)
    change = session.click(MIDDLE, EGG, centre(truth[MIDDLE] == EGG))
    after = picture(session)
    changed = np.argwhere(before != after)
    assert set(changed[:, 0]) == {MIDDLE}
    assert (change.number, change.label) == (MIDDLE, EGG)
    assert change.rows == (changed[:, 1].min(), changed[:, 1].max() + 1)
    assert change.columns == (changed[:, 2].min(), changed[:, 2].max() + 1)
    assert (before[MIDDLE][~change.mask] == after[MIDDLE][~change.mask]).all()


def test_a_correction_uses_the_previous_mask(session: Session, truth: np.ndarray):
    both, at = truth[MIDDLE] > 0, centre(truth[MIDDLE] == BALL)
    fresh = session.click(MIDDLE, BALL, at).mask
    session.undo()
    session.paint(MIDDLE, BALL, both)
    assert dice(session.click(MIDDLE, BALL, at).mask, both) > dice(fresh, both)


def test_a_label_with_negative_clicks_only_is_absent(session: Session):
    assert not session.click(MIDDLE, EGG, (12, 12), positive=False).mask.any()
    assert session.click(MIDDLE, EGG, (14, 18)).mask.any()


def test_a_proposed_label_is_corrected_not_started_again(scan: Scan, handful_tiny: Backbone):
    segmenter = NearestSlice().fit(support_set(2), handful_tiny)
    session = Session(scan[0], segmenter, config=QUIET)
    session.propose()
    shown = session.mask_of(MIDDLE, BALL)
    change = session.click(MIDDLE, BALL, leftmost(shown), positive=False)
    assert dice(change.mask, shown) > 0.5  # one negative click alone would have answered nothing


def test_a_scribble_is_used_as_a_few_of_its_points(session: Session, truth: np.ndarray):
    wanted = truth[MIDDLE] == EGG
    y, x = np.nonzero(wanted)
    middle = y == round(y.mean())
    stroke = [(float(a), float(b)) for a, b in zip(x[middle], y[middle], strict=True)]
    assert dice(session.scribble(MIDDLE, EGG, stroke).mask, wanted) > 0.5
    many = [point for point in stroke for _ in range(50)]
    assert session.scribble(MIDDLE, EGG, many, positive=True).mask.any()


def test_a_rough_mask_is_refined_and_a_painted_one_is_taken_as_it_is(session: Session, truth: np.ndarray):
    wanted = truth[MIDDLE] == EGG
    rough = np.roll(wanted, 2, axis=0)
    assert not np.array_equal(session.mask(MIDDLE, EGG, rough).mask, rough)
    assert np.array_equal(session.paint(MIDDLE, EGG, rough).mask, rough)


def test_where_labels_overlap_the_larger_logit_decides_and_what_is_painted_wins(session: Session, truth: np.ndarray):
    wanted = truth[MIDDLE] == EGG
    session.box(MIDDLE, EGG, box_round(wanted))
    before = session.mask_of(MIDDLE, EGG)
    session.click(MIDDLE, BALL, centre(wanted))
    assert not (session.mask_of(MIDDLE, BALL) & session.mask_of(MIDDLE, EGG)).any()
    session.paint(MIDDLE, BALL, wanted)
    assert np.array_equal(session.mask_of(MIDDLE, BALL), wanted)
    session.paint(MIDDLE, BALL, np.zeros_like(wanted))
    assert np.array_equal(session.mask_of(MIDDLE, EGG), before)


@pytest.mark.parametrize(
    "source",
    [
        lambda backbone: ZeroShot().promptable(LABELS, backbone, Slicer()),
        lambda backbone: ZeroShot(box_crop=True).promptable(LABELS, backbone, Slicer()),
        lambda backbone: ZeroShot().fit(support_set(1), backbone),
        lambda backbone: Interactive(train=TrainConfig(iterations=0)).fit(support_set(1), backbone),
        lambda backbone: Interactive(train=TrainConfig(iterations=0)).fit(support_set(1), backbone).promptable(),
        lambda backbone: NearestSlice().fit(support_set(1), backbone),
    ],
    ids=["frozen", "zoomed", "zero-shot", "interactive", "interactive-promptable", "any-segmenter"],
)
def test_every_promptable_segmenter_returns_masks(
    source: Callable[[Backbone], object], scan: Scan, truth: np.ndarray, handful_tiny: Backbone
):
    session = Session(scan[0], source(handful_tiny), config=QUIET)
    wanted = truth[MIDDLE] == EGG
    session.box(MIDDLE, EGG, box_round(wanted))
    assert dice(session.click(MIDDLE, EGG, centre(wanted)).mask, wanted) > 0.4
    assert not session.mask_of(MIDDLE, BALL).any()


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda s: s.click(6, BALL, (3, 3)), InputError, "slices 0 to 5"),
        (lambda s: s.click(2, 2, (3, 3)), LabelError, "no label 2"),
        (lambda s: s.click(2, "eye", (3, 3)), LabelError, "'eye'"),
        (lambda s: s.click(2, BALL, (28, 3)), InputError, "outside the slice of 28 by 24"),
        (lambda s: s.box(2, BALL, (9, 3, 4, 8)), InputError, "is empty"),
        (lambda s: s.scribble(2, BALL, []), InputError, "one"),
        (lambda s: s.click(2, BALL, (3, float("nan"))), InputError, "give 2 finite numbers"),
        (lambda s: s.restore("missing.npz"), InputError, "missing.npz: no such file"),
        (lambda s: s.paint(2, BALL, np.zeros((3, 3), bool)), InputError, "(24, 28)"),
        (lambda s: s.propagate(), SettingsError, "on no slice yet"),
        (lambda s: s.propose(), SettingsError, "fitted segmenter"),
        (lambda s: s.case("c"), InputError, "accept"),
    ],
)
def test_an_invalid_prompt_is_refused_and_changes_nothing(
    ask: Callable[[Session], object], error: type[Exception], said: str, session: Session
):
    with pytest.raises(error) as refused:
        ask(session)
    assert said in str(refused.value)
    assert session.undo() == ()


@pytest.mark.parametrize("given", [(3.0, 3.0, 1.0), (3.0, float("nan")), (float("inf"), 1.0), ()])
def test_points_of_other_than_two_finite_numbers_are_refused(given: tuple[float, ...]):
    with pytest.raises(InputError, match=r"a point must be \(x, y\) in pixels, is .* give 2 finite numbers"):
        _numbers(given, "a point", "x, y")


def test_a_scribble_may_be_an_array(session: Session):
    points = np.array([[3.0, 3.0], [5.0, 4.0]])
    session.scribble(2, BALL, [(3, 3), (5, 4)])
    first = picture(session)
    session.undo()
    session.scribble(2, BALL, points)
    assert np.array_equal(picture(session), first)


def test_a_backbone_needs_labels_and_a_segmenter_takes_no_others(scan: Scan, sam: Backbone):
    with pytest.raises(SettingsError, match="labels="):
        Session(scan[0], sam)
    promptable = ZeroShot().promptable(LABELS, sam)
    with pytest.raises(SettingsError, match="own"):
        Session(scan[0], promptable, replace(LABELS, names=("a", "b")))


# Keeping and taking back.


def several_prompts(session: Session, truth: np.ndarray) -> None:
    """As one step, the last of them for a slice that there is not."""
    with session.one_step():
        session.click(MIDDLE, EGG, centre(truth[MIDDLE] == EGG))
        with session.one_step():
            session.click(MIDDLE + 1, BALL, centre(truth[MIDDLE] == BALL))
            session.propagate()
        session.click(999, EGG, (1, 1))


def test_several_prompts_in_one_step_are_undone_together_even_after_an_error(session: Session, truth: np.ndarray):
    session.box(MIDDLE, EGG, box_round(truth[MIDDLE] == EGG))
    before = picture(session)
    with pytest.raises(InputError):
        several_prompts(session, truth)
    after = picture(session)
    assert not np.array_equal(before, after)
    session.undo()
    assert np.array_equal(picture(session), before)
    session.redo()
    assert np.array_equal(picture(session), after)


def test_undo_and_redo_restore_bit_for_bit(session: Session, truth: np.ndarray):
    egg, ball = truth[MIDDLE] == EGG, truth[MIDDLE] == BALL
    states = [picture(session)]
    steps: list[Callable[[], object]] = [
        lambda: session.box(MIDDLE, EGG, box_round(egg)),
        lambda: session.click(MIDDLE, EGG, centre(egg)),
        lambda: session.click(MIDDLE, BALL, centre(ball)),
        lambda: session.propagate(),
        lambda: session.accept(MIDDLE),
        lambda: session.click(MIDDLE + 1, EGG, centre(egg)),
    ]
    for step in steps:
        step()
        states.append(picture(session))
    for state in reversed(states[:-1]):
        session.undo()
        assert np.array_equal(picture(session), state)
    assert session.accepted == ()
    for state in states[1:]:
        session.redo()
        assert np.array_equal(picture(session), state)
    assert session.accepted == (MIDDLE,)
    assert session.redo() == ()


def test_after_an_undo_the_same_prompt_gives_the_same_mask(session: Session, truth: np.ndarray):
    egg = truth[MIDDLE] == EGG
    session.box(MIDDLE, EGG, box_round(egg))
    first = session.click(MIDDLE, EGG, centre(egg)).mask
    session.undo()
    assert np.array_equal(session.click(MIDDLE, EGG, centre(egg)).mask, first)
    assert session.redo() == ()


def test_at_most_history_steps_can_be_undone(scan: Scan, handful_tiny: Backbone):
    session = Session(scan[0], handful_tiny, LABELS, config=replace(QUIET, history=2))
    for number in range(3):
        session.paint(number, BALL, np.ones(session.size, bool))
    assert [session.undo() for _ in range(3)] == [(2,), (1,), ()]


def test_an_accepted_slice_never_changes(scan: Scan, truth: np.ndarray, handful_tiny: Backbone):
    segmenter = Fate(top_k=2).fit(support_set(2), handful_tiny)
    session = Session(scan[0], segmenter, config=QUIET)
    session.propose()
    session.click(MIDDLE, EGG, centre(truth[MIDDLE] == EGG))
    session.accept(MIDDLE)
    kept = session.classes(MIDDLE)
    with pytest.raises(InputError, match="reopen"):
        session.click(MIDDLE, EGG, (3, 3), positive=False)
    session.box(MIDDLE + 1, BALL, box_round(truth[MIDDLE + 1] == BALL))
    session.propagate()
    session.propose(session.refresh())
    assert np.array_equal(session.classes(MIDDLE), kept)
    session.reopen(MIDDLE)
    session.paint(MIDDLE, EGG, np.zeros(session.size, bool))
    assert not np.array_equal(session.classes(MIDDLE), kept)


# The other slices.


@pytest.mark.parametrize("model", ["memory", "passing"])
def test_propagation_finds_the_label_on_the_neighbours(
    model: str, scan: Scan, truth: np.ndarray, handful_tiny: Sam2VideoBackbone
):
    backbone = handful_tiny if model == "memory" else Sam2Backbone(handful_tiny.model, "without its memory")
    session = Session(scan[0], backbone, LABELS, config=QUIET)
    draw_truth(session, truth, MIDDLE)
    session.accept(MIDDLE)
    changed = session.propagate()
    assert MIDDLE not in changed
    for value in LABELS.values:
        for number in (MIDDLE - 1, MIDDLE + 1):
            assert dice(session.mask_of(number, value), truth[number] == value) > 0.6


class Scripted(propagation._Propagator):
    """Finds its label on some slices; notes which slices it is asked about."""

    present: ClassVar[set[int]] = {2, 3, 5}
    visited: ClassVar[list[int]] = []

    def logits(self, number: int, before: int) -> torch.Tensor | None:
        self.visited.append(number)
        return torch.full(self.embeddings.stack.size, 1.0) if number in self.present else None


def test_propagation_ends_after_some_slices_without_the_label(
    handful_tiny: Backbone, scan: tuple[Volume, LabelMap], monkeypatch: pytest.MonkeyPatch
):
    rows, _, columns = scan[0].geometry.shape
    long = replace(scan[0].geometry, shape=(rows, 20, columns))
    array = np.random.default_rng(0).random((1, *long.shape), dtype=np.float32)
    session = Session(Volume(array, long), handful_tiny, LABELS, config=QUIET)
    monkeypatch.setattr(propagation, "_propagator", lambda p, e, label, given, _: Scripted(p, e, label, given))
    session.mask(2, EGG, np.ones(session.size, bool))
    session.propagate(stop_after=2)
    assert Scripted.visited == [3, 4, 5, 6, 7, 1, 0]
    found = session.grid.of(session.export().array)
    assert [number for number in range(20) if found[number].any()] == [2, 3, 5]
    Scripted.visited.clear()
    session.propagate()
    assert sorted(Scripted.visited) == [number for number in range(20) if number != 2]
    Scripted.visited.clear()


def test_only_the_labels_named_are_propagated_and_prompted_slices_keep_their_masks(session: Session, truth: np.ndarray):
    draw_truth(session, truth, MIDDLE)
    square = np.zeros(session.size, bool)
    square[:3, :3] = True
    session.paint(MIDDLE + 1, EGG, square)
    session.propagate(["egg"])
    assert np.array_equal(session.mask_of(MIDDLE + 1, EGG), square)
    assert session.mask_of(MIDDLE - 1, EGG).any()
    assert not session.mask_of(MIDDLE - 1, BALL).any()


def test_a_label_does_not_pass_a_slice_on_which_it_was_found_absent(session: Session, truth: np.ndarray):
    draw_truth(session, truth, MIDDLE)
    session.paint(MIDDLE + 1, EGG, np.zeros(session.size, bool))
    session.propagate([EGG])
    assert not any(session.mask_of(number, EGG).any() for number in range(MIDDLE + 1, len(session)))
    assert session.mask_of(MIDDLE - 1, EGG).any()


# Learning from corrections.


def test_fate_uses_the_accepted_slices(scan: Scan, truth: np.ndarray, handful_tiny: Backbone):
    segmenter = Fate(top_k=1).fit(support_set(2), handful_tiny)
    session = Session(scan[0], segmenter, config=QUIET)
    draw_truth(session, truth, MIDDLE)
    session.accept(MIDDLE)
    better = session.refresh(name="mine")
    assert isinstance(better, FateSegmenter)
    _, confidence = better.predict_explained(scan[0])
    assert confidence.retrieved[MIDDLE] == (("mine", MIDDLE),)
    of_others = {better.bank.source(support) for support in range(len(better.bank.cases))} - {("mine", MIDDLE)}
    assert of_others == {segmenter.bank.source(support) for support in range(len(segmenter.bank.cases))}


def test_few_shot_prompts_use_the_accepted_slices_too(scan: Scan, truth: np.ndarray, handful_tiny: Backbone):
    segmenter = FewShotPrompts(train=TrainConfig(iterations=0)).fit(support_set(1), handful_tiny)
    session = Session(scan[0], segmenter, config=QUIET)
    session.paint(MIDDLE, EGG, truth[MIDDLE] == EGG)  # a slice without the other label is welcome, too
    session.accept(MIDDLE)
    better = session.refresh(name="mine")
    assert isinstance(better, FewShotSegmenter)
    assert set(better.sources()) - set(segmenter.sources()) == {("mine", MIDDLE, "egg"), ("mine", MIDDLE, "background")}


def test_a_trained_method_cannot_be_refreshed_but_fitted_with_the_case(
    scan: Scan, truth: np.ndarray, handful_tiny: Backbone
):
    segmenter = NearestSlice().fit(support_set(1), handful_tiny)
    session = Session(scan[0], segmenter, config=QUIET)
    draw_truth(session, truth, MIDDLE)
    session.accept(MIDDLE)
    with pytest.raises(SettingsError, match="fit the method again"):
        session.refresh()
    case = session.case("mine")
    reference = case.read_reference()
    assert reference is not None
    labelled = session.slicer.view(scan[0]).of(reference.array)
    assert np.array_equal(labelled[MIDDLE], truth[MIDDLE])
    assert (np.delete(labelled, MIDDLE, axis=0) == IGNORE).all()
    NearestSlice().fit(SupportSet((phantom_case(0), case), LABELS), handful_tiny)


# Encoding.


def test_every_slice_is_encoded_once(scan: Scan, handful_tiny: Backbone, encoded: list[torch.Tensor]):
    session = Session(scan[0], handful_tiny, LABELS, config=QUIET)
    for number in (2, 3, 2):
        for x in (5, 12, 20):
            session.click(number, BALL, (x, 12))
    assert len(encoded) == 2
    session.propagate()
    assert len(encoded) == len(session)


def test_in_the_background_the_annotators_slice_comes_first_and_then_its_neighbours(
    scan: Scan, handful_tiny: Backbone, encoded: list[torch.Tensor]
):
    slices = Slicer().cut(scan[0])
    for one in slices:
        handful_tiny.encode(one[None])
    inputs = list(encoded)
    encoded.clear()
    with Session(scan[0], handful_tiny, LABELS, config=SessionConfig(keep=5)) as session:
        session.wait()
        order = [next(n for n, one in enumerate(inputs) if torch.equal(one, seen)) for seen in encoded]
        assert order == [3, 4, 2, 5, 1]
        session.click(0, BALL, (10, 10))
        session.wait()
        assert len(encoded) == 6  # 0 itself: its neighbours 1 to 4 are still there
        assert torch.equal(encoded[-1], inputs[0])


def test_slices_are_displayed_while_a_long_step_runs(session: Session):
    with ThreadPoolExecutor(1) as pool, session.one_step():
        assert pool.submit(session.look_at, MIDDLE).result(timeout=60).ndim == 3
        assert pool.submit(session.classes, MIDDLE).result(timeout=60).ndim == 2


def test_memory_holds_no_more_slices_than_configured(scan: Scan, handful_tiny: Backbone, encoded: list[torch.Tensor]):
    session = Session(scan[0], handful_tiny, LABELS, config=replace(QUIET, keep=1))
    for number in (0, 0, 5, 5, 0):
        session.click(number, BALL, (10, 10))
    assert len(encoded) == 3


def test_a_session_gives_the_same_masks_with_and_without_its_background(
    scan: Scan, truth: np.ndarray, handful_tiny: Backbone
):
    answers = []
    for config in (QUIET, SessionConfig()):
        with Session(scan[0], handful_tiny, LABELS, config=config) as session:
            session.box(MIDDLE, EGG, box_round(truth[MIDDLE] == EGG))
            session.propagate()
            answers.append(picture(session))
    assert np.array_equal(*answers)


def test_what_fails_in_the_background_is_tried_again_when_needed(scan: Scan, handful_tiny: Backbone):
    def fail(module: torch.nn.Module, arguments: object) -> None:
        raise RuntimeError("no memory left")

    handle = handful_tiny.image_encoder.register_forward_pre_hook(fail)
    session = Session(scan[0], handful_tiny, LABELS)
    session.wait()
    handle.remove()
    assert session.click(MIDDLE, BALL, (9, 11)).mask.any()
    session.close()


def test_many_threads_may_prompt_and_no_prompt_is_lost(scan: Scan, handful_tiny: Backbone):
    with Session(scan[0], handful_tiny, LABELS) as session:
        threads = [
            threading.Thread(target=session.click, args=(number, label, (12, 12)))
            for number in range(6)
            for label in LABELS.values
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.prompted == (0, 1, 2, 3, 4, 5)
        undone = [session.undo() for _ in range(13)]
        assert sorted(undone) == [(), *sorted([(number,) for number in range(6)] * 2)]
        assert not picture(session).any()


# Going out, and coming back.


def test_what_is_saved_lies_on_the_scans_grid(session: Session, scan: Scan, truth: np.ndarray, tmp_path: Path):
    for number in range(len(session)):
        draw_truth(session, truth, number)
    session.save(tmp_path / "found.nii.gz")
    read = read_label_map(tmp_path / "found.nii.gz", LABELS)
    assert np.array_equal(read.array, scan[1].array)
    assert np.allclose(read.geometry.affine, scan[0].geometry.affine, atol=1e-5)


def test_a_restored_session_is_the_same_and_goes_on_the_same(
    session: Session, scan: Scan, truth: np.ndarray, handful_tiny: Backbone, tmp_path: Path
):
    egg = truth[MIDDLE] == EGG
    session.box(MIDDLE, EGG, box_round(egg))
    session.click(MIDDLE, EGG, centre(egg))
    session.click(MIDDLE + 1, BALL, (9, 9), positive=False)
    session.propagate([EGG])
    session.accept(1)
    session.save_state(tmp_path / "state.npz")
    again = Session(scan[0], handful_tiny, LABELS, config=QUIET)
    again.restore(tmp_path / "state.npz")
    assert np.array_equal(picture(again), picture(session))
    assert (again.accepted, again.prompted) == (session.accepted, session.prompted) == ((1,), (2, 3))
    masks = [one.click(MIDDLE, EGG, (1, 1), positive=False).mask for one in (session, again)]
    assert np.array_equal(*masks)
    again.undo()
    again.undo()
    assert not picture(again).any()


def test_a_state_of_another_scan_or_backbone_is_refused(
    session: Session, handful_tiny: Backbone, sam: Backbone, tmp_path: Path
):
    session.save_state(tmp_path / "state.npz")
    with pytest.raises(CheckpointError, match="scan"):
        Session(phantom(8)[0], handful_tiny, LABELS, config=QUIET).restore(tmp_path / "state.npz")
    with pytest.raises(CheckpointError, match="backbone"):
        Session(session.volume, sam, LABELS, config=QUIET).restore(tmp_path / "state.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_state_is_refused(content: bytes, session: Session, tmp_path: Path):
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(DamagedFile, match="state"):
        session.restore(tmp_path / "state.npz")


def test_a_pickle_is_never_opened(session: Session, tmp_path: Path):
    np.savez(tmp_path / "state.npz", notes=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DamagedFile, match="state"):
        session.restore(tmp_path / "state.npz")


# Steps on disk.


def kept(session: Session, scan: Scan, handful_tiny: Backbone, folder: Path) -> Session:
    """A new session that has the steps in a folder, as after a kill."""
    again = Session(scan[0], handful_tiny, LABELS, config=QUIET)
    again.keep_in(folder)
    assert np.array_equal(picture(again), picture(session))
    assert (again.accepted, again.prompted) == (session.accepted, session.prompted)
    return again


def test_every_step_is_on_disk_when_its_call_returns(
    session: Session, scan: Scan, truth: np.ndarray, handful_tiny: Backbone, tmp_path: Path
):
    session.keep_in(tmp_path)
    egg = truth[MIDDLE] == EGG
    for step in (
        lambda: session.box(MIDDLE, EGG, box_round(egg)),
        lambda: session.click(MIDDLE, EGG, centre(egg)),
        lambda: session.paint(1, BALL, truth[1] == BALL),
        lambda: session.accept(1),
        lambda: session.undo(),
        lambda: session.redo(),
        lambda: session.propagate([EGG]),
        lambda: session.accept_all([2, 3]),
    ):
        step()
        kept(session, scan, handful_tiny, tmp_path)


def test_what_was_restored_from_the_steps_on_disk_cannot_be_undone(
    session: Session, scan: Scan, truth: np.ndarray, handful_tiny: Backbone, tmp_path: Path
):
    session.keep_in(tmp_path)
    session.paint(1, BALL, truth[1] == BALL)
    session.accept(1)
    session.undo()
    again = Session(scan[0], handful_tiny, LABELS, config=QUIET)
    again.accept(3)  # before the steps on disk are there; an undo of it would replace what they restore
    again.keep_in(tmp_path)
    before = picture(again)
    assert (again.undo(), again.redo()) == ((), ())
    assert np.array_equal(picture(again), before)
    again.accept(1)
    assert again.undo() == (1,)
    assert (again.accepted, again.undo()) == ((3,), ())


def test_some_slices_are_exported_without_the_others_and_large_ones_through_a_file(
    session: Session, scan: Scan, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scratch, "LARGE", 1)
    session.propose_map(scan[1])
    session.accept_all([1, MIDDLE])
    whole, some = session.export(), session.export(session.accepted)
    assert np.array_equal(whole.array, scan[1].array)
    kept, nothing = session.grid.of(some.array)[1 : MIDDLE + 1], session.grid.of(some.array)[MIDDLE + 1 :]
    assert np.array_equal(kept, truth[1 : MIDDLE + 1])
    assert not nothing.any()
    reference = session.case("scan").read_reference()
    assert reference is not None
    assert [(plane != IGNORE).all() for plane in session.grid.of(reference.array)] == [0, 1, 1, 0, 0, 0]
    assert all(isinstance(array.base, np.memmap) for array in (whole.array, some.array))


def test_what_was_done_before_there_was_a_folder_is_on_disk_too(
    session: Session, scan: Scan, truth: np.ndarray, handful_tiny: Backbone, tmp_path: Path
):
    kept(session, scan, handful_tiny, tmp_path)
    assert list(tmp_path.iterdir()) == []
    session.paint(1, BALL, truth[1] == BALL)
    session.accept_all([1, 3])
    session.keep_in(tmp_path)
    kept(session, scan, handful_tiny, tmp_path)
    session.undo()
    kept(session, scan, handful_tiny, tmp_path)


def test_a_step_that_cannot_be_written_is_not_taken(session: Session, tmp_path: Path):
    session.keep_in(tmp_path / "steps")
    session.accept(0)
    before = picture(session)
    (tmp_path / "steps").rename(tmp_path / "elsewhere")
    (tmp_path / "steps").write_text("in the way")
    for step in (lambda: session.box(1, EGG, (2, 2, 9, 9)), session.undo):
        with pytest.raises(OSError, match="steps"):
            step()
    assert np.array_equal(picture(session), before)
    assert session.accepted == (0,)


def test_many_steps_become_one_file(session: Session, scan: Scan, handful_tiny: Backbone, tmp_path: Path):
    session.keep_in(tmp_path)
    for _ in range(MOST_STEPS):
        session.accept(0)
        session.reopen(0)
    session.accept(2)
    kept(session, scan, handful_tiny, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    kept(session, scan, handful_tiny, tmp_path).accept(1)
    assert len(list(tmp_path.iterdir())) == 2


def test_steps_with_fewer_labels_are_read_and_those_with_others_refused(
    session: Session, scan: Scan, handful_tiny: Backbone, tmp_path: Path
):
    session.keep_in(tmp_path)
    session.paint(1, BALL, np.ones(session.size, bool))
    more = Labels.of({**LABELS.as_dict(), 7: "ring"})
    again = Session(scan[0], handful_tiny, more, config=QUIET)
    again.keep_in(tmp_path)
    assert np.array_equal(picture(again), picture(session))
    with pytest.raises(CheckpointError, match="labels"):
        Session(scan[0], handful_tiny, Labels.of({2: "ring"}), config=QUIET).keep_in(tmp_path)


def test_a_proposed_value_that_is_no_label_is_refused(session: Session, scan: Scan):
    other = LabelMap(np.full(scan[1].array.shape, 2, np.int16), scan[1].geometry, Labels.of({2: "other"}))
    with pytest.raises(LabelError, match="values that are not labels: 2"):
        session.propose_map(other)


def test_a_proposed_label_map_leaves_accepted_slices(session: Session, scan: Scan, truth: np.ndarray):
    session.accept(1)
    changed = session.propose_map(scan[1])
    assert 1 not in changed
    expected = truth.copy()
    expected[1] = 0
    assert np.array_equal(picture(session), expected)
