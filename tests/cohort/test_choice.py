import pytest
import torch

from handful.cohort.choice import choose_cases, choose_support
from handful.data.cases import Case, Cohort
from handful.errors import InputError, SettingsError
from handful.jobs.devices import choose_device


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def test_cases_come_in_the_order_asked_for(cohort: Cohort):
    assert names(choose_cases(cohort, ["case-2", "case-0"])) == ["case-2", "case-0"]


def test_an_unknown_case_is_refused_and_a_near_name_offered(cohort: Cohort):
    with pytest.raises(InputError, match=r"no case 'csae-1'.*case-1"):
        choose_cases(cohort, ["csae-1"])


def test_without_a_choice_every_labelled_case_is_support(cohort: Cohort):
    assert names(choose_support(cohort).cases) == ["case-0", "case-1", "case-2", "case-3"]


def test_one_draw_is_one_support(cohort: Cohort):
    assert choose_support(cohort, shots=2, draw=5) == choose_support(cohort, shots=2, draw=5)
    assert {tuple(names(choose_support(cohort, shots=1, draw=d).cases)) for d in range(8)} > {("case-0",)}


def test_names_and_shots_together_are_refused(cohort: Cohort):
    with pytest.raises(SettingsError, match="either named or drawn"):
        choose_support(cohort, ["case-0"], shots=1)


def test_a_cohort_without_labels_has_no_support(cohort: Cohort):
    bare = Cohort(tuple(Case(case.name, case.image) for case in cohort.cases), None, "bare")
    with pytest.raises(InputError, match="no labelled case"):
        choose_support(bare)


def test_the_device_is_found_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="tpu"):
        choose_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has it")
def test_a_device_that_is_not_there_is_refused():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(SettingsError, match="no cuda"):
        choose_device("cuda")
