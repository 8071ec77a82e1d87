from dataclasses import replace
from pathlib import Path

import pytest

from handful.backbones.base import Backbone
from handful.backbones.cached import CachedBackbone
from handful.checkpoint.model import open_segmenter
from handful.cohort.choice import choose_cases, choose_encoder, choose_support, choose_unlabelled, open_source
from handful.data.cases import Case, Cohort
from handful.errors import InputError, SettingsError
from handful.evaluation.evaluate import Failure
from handful.methods.base import Segmenter
from phantoms import LABELS, phantom_case, sequence_case, sequence_support


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def test_cases_come_in_the_order_of_the_names(cohort: Cohort):
    assert names(choose_cases(cohort, ["case-2", "case-0"])) == ["case-2", "case-0"]


def test_without_names_all_cases_are_chosen(cohort: Cohort):
    assert choose_cases(cohort, []) == cohort.cases


def test_an_unknown_case_is_refused_and_a_near_name_offered(cohort: Cohort):
    with pytest.raises(InputError, match=r"no case 'csae-1'.*case-1"):
        choose_cases(cohort, ["csae-1"])


def test_without_a_choice_every_labelled_case_is_support(cohort: Cohort):
    assert names(choose_support(cohort).cases) == ["case-0", "case-1", "case-2", "case-3"]


def test_one_split_is_one_support(cohort: Cohort):
    assert choose_support(cohort, shots=2, split=5) == choose_support(cohort, shots=2, split=5)
    assert {tuple(names(choose_support(cohort, shots=1, split=d).cases)) for d in range(8)} > {("case-0",)}


def test_names_and_shots_together_are_refused(cohort: Cohort):
    with pytest.raises(SettingsError, match="give only one of them"):
        choose_support(cohort, ["case-0"], shots=1)


def test_a_cohort_without_labels_has_no_support(cohort: Cohort):
    bare = Cohort(tuple(Case(case.name, case.image) for case in cohort.cases), None, "bare")
    with pytest.raises(InputError, match="no labelled case"):
        choose_support(bare)


def test_a_folder_with_a_segmenter_is_opened_as_one_and_any_other_name_as_a_backbone(
    model: Path, backbone: Backbone, tmp_path: Path
):
    assert isinstance(open_source(str(model)), Segmenter)
    opened = open_source(backbone.name, cache=tmp_path)
    assert isinstance(opened, CachedBackbone)
    assert opened.digest() == backbone.digest()


def test_the_encoder_is_the_named_backbone_else_that_of_the_model(model: Path, backbone: Backbone):
    segmenter = open_segmenter(model)
    assert choose_encoder(None, segmenter) is segmenter.backbone
    assert choose_encoder(backbone.name, segmenter) is not segmenter.backbone
    assert choose_encoder(None, None).name == "handful-tiny"


def test_the_unlabelled_scans_are_those_without_labels(cohort: Cohort):
    bare = Cohort(
        (*cohort.cases[:2], *(replace(case, reference=None) for case in cohort.cases[2:])), cohort.labels, "c"
    )
    support = choose_support(bare, shots=1)
    assert names(choose_unlabelled(bare, support).cases) == names(bare.cases[2:])
    assert not choose_unlabelled(bare, support, "none")


def test_unlabelled_scans_that_lack_a_sequence_are_left_out_with_the_reason():
    support = sequence_support(1)
    others = (
        sequence_case(3),
        sequence_case(4, ("T1", "T2")),
        phantom_case(5),
        sequence_case(6, ("T2", "FLAIR", "T1")),
    )
    cases = tuple(replace(case, reference=None) for case in others)
    failures: list[Failure] = []
    scans = choose_unlabelled(Cohort((*support.cases, *cases), LABELS, "c"), support, failures=failures)
    assert names(scans.cases) == ["phantom-3", "phantom-6"]
    assert [failure.case for failure in failures] == ["phantom-4", "phantom-5"]
    assert "no FLAIR" in failures[0].reason
    assert "no T1, FLAIR" in failures[1].reason


def test_of_a_named_folder_all_scans_but_the_support_are_unlabelled(cohort: Cohort, folder: Path):
    support = choose_support(cohort, ["case-1"])
    unlabelled = choose_unlabelled(cohort, support, str(folder))
    assert names(unlabelled.cases) == [name for name in names(cohort.cases) if name != "case-1"]
    assert all(case.reference is None for case in unlabelled.cases)
    with pytest.raises(InputError, match="check the name"):
        choose_unlabelled(cohort, support, str(folder / "no such folder"))
