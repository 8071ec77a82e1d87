"""Learning from corrections without training: slices that a reader has accepted join what a segmenter was shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

from handful.data.cases import Case, SupportSet
from handful.errors import InputError, LabelError, SettingsError
from handful.methods.base import Segmenter
from handful.methods.fate.method import FateSegmenter
from handful.methods.fate.support_bank import SupportBank
from handful.methods.few_shot_prompts.method import FewShotSegmenter


@dataclass(frozen=True)
class AcceptedSlices(SupportSet):
    """Labelled slices that join a support: they need not hold every label, for the others do."""

    def __post_init__(self) -> None:
        if not self.cases:
            raise InputError("no accepted slices; accept some first")


def refreshed(segmenter: Segmenter, case: Case) -> Segmenter:
    """A segmenter that has also seen the labelled slices of `case`; the one given stays as it was.

    FATE remembers them, few-shot prompts ask with their embeddings too; both take seconds. SettingsError for any other
    method: its weights would have to be fitted again. LabelError where the labels are others.
    """
    if case.labels != segmenter.labels:
        raise LabelError(f"the slices are labelled with {case.labels}, the segmenter with {segmenter.labels}")
    slices = AcceptedSlices((case,), segmenter.labels)
    if isinstance(segmenter, FewShotSegmenter):
        return segmenter.extend(slices)
    if isinstance(segmenter, FateSegmenter):
        same = replace(segmenter.method, slicer=segmenter.slicer)  # as resolved then, whatever this scan asks for
        shown = same.fit(slices, segmenter.backbone)
        bank = SupportBank.joined([segmenter.bank, shown.bank])
        return FateSegmenter(segmenter.labels, segmenter.slicer, segmenter.backbone, segmenter.method, bank)
    raise SettingsError(
        f"{type(segmenter).__name__} learned by training and cannot be refreshed from corrections; "
        "fit its method again with session.case(name) among the support, or take fate or few-shot-prompts"
    )
