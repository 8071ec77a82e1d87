"""A plan is read from TOML, mistakes are named, and its trials are fair."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import dicom_series
import tiny_models
from handful.data.cases import Case
from handful.data.files import read_cohort, write_label_map
from handful.errors import InputError, SettingsError
from handful.experiments.measure import Fingerprints, fit
from handful.experiments.plan import Configuration, DataSet, Plan, compare_plan, read_plan, trials
from handful.experiments.run import run_experiment
from phantoms import phantom

GOOD = """
name = "Hearts"
shots = [1, 2]
splits = [0, 3]
measures = ["dice", "surface_dice"]

[data.hearts]
folder = "hearts"
cases = 6

[configurations.fate]
method = "fate"
settings = { window = 0 }

[configurations."an annotator's box"]
method = "zero-shot"
annotator = "box"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_has_the_content_of_its_file(tmp_path: Path):
    plan = read_plan(written(tmp_path, GOOD))
    assert (plan.name, plan.shots, plan.splits, plan.measures) == ("Hearts", (1, 2), (0, 3), ("dice", "surface_dice"))
    assert plan.data == {"hearts": DataSet(folder=tmp_path / "hearts", cases=6)}
    assert plan.configurations["fate"] == Configuration(method="fate", settings={"window": 0})
    assert plan.configurations["an annotator's box"].annotator == "box"


def test_folders_may_lie_elsewhere(tmp_path: Path):
    plan = read_plan(written(tmp_path, GOOD), Path("/elsewhere"))
    assert plan.data["hearts"].folder == Path("/elsewhere/hearts")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('method = "fate"', 'metod = "fate"', "configurations.fate.metod'; did you mean 'method'"),
        ('method = "fate"', 'method = "fates"', "no method 'fates'; did you mean 'fate'"),
        ("window = 0", "windw = 0", "no setting 'windw'"),
        ("window = 0", 'window = "wide"', "'wide'"),
        ('annotator = "box"', 'annotator = "circle"', "no annotator 'circle'"),
        ('annotator = "box"', "shots = [2, 4]", "an annotator's box\": shots [2, 4] must be some of the plan's, 1, 2"),
        ('annotator = "box"', "shots = []", "shots [] must be some of the plan's"),
        ('annotator = "box"', 'annotator = "boxes"\njitter = 1.5', "a fraction from 0 to below 1, got 1.5"),
        ('annotator = "box"', 'annotator = "box"\njitter = nan', "a fraction from 0 to below 1, got nan"),
        ("shots = [1, 2]", "shots = [1]\ntolerance = nan", "tolerance and pictures must be numbers from 0 on, got nan"),
        ("shots = [1, 2]", "shots = [1]\npictures = -1", "numbers from 0 on, got 1.0 and -1"),
        ("shots = [1, 2]", "shots = [0, 2]", "shots must be at least 1, got 0"),
        ("shots = [1, 2]", "shots = []", "has no shots"),
        ("shots = [1, 2]", 'shots = ["one"]', "shots.0 = 'one'"),
        ("shots = [1, 2]", "shot = [1, 2]", "no entry 'shot'; did you mean 'shots'"),
        ("cases = 6", "cases = 0", "cases must be at least 1, got 0"),
        ("cases = 6", "case = 6", "no entry 'data.hearts.case'; did you mean 'cases'"),
        ('folder = "hearts"', "", "'data.hearts.folder' is missing"),
        ('folder = "hearts"', "folder = 3", "data.hearts.folder = 3: Input is not a valid path"),
        ('"surface_dice"', '"speed"', "measures ['speed']; choose from dice"),
        ("[data.hearts]", "[data.hearts", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_the_file(old: str, new: str, said: str, tmp_path: Path):
    assert old in GOOD
    with pytest.raises(SettingsError) as caught:
        read_plan(written(tmp_path, GOOD.replace(old, new)))
    assert said in str(caught.value)
    assert "plan.toml" in str(caught.value)


def test_a_plan_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.toml: no such file"):
        read_plan(tmp_path / "none.toml")


def test_every_configuration_is_measured_on_every_split(make_plan: Callable[..., Plan]):
    plan = make_plan(
        configurations={"a": Configuration(method="nearest-slice"), "b": Configuration(method="zero-shot")},
        splits=(0, 1),
    )
    found, left_out = trials(plan)
    assert [(trial.split, trial.shots, trial.configuration_name) for trial in found] == [
        (split, shots, configuration) for split in (0, 1) for shots in (1, 2) for configuration in "ab"
    ]
    assert left_out == []


def test_shots_that_leave_no_test_patient_are_left_out_and_reported(make_plan: Callable[..., Plan]):
    found, left_out = trials(make_plan(shots=(1, 5, 8)))
    assert {trial.shots for trial in found} == {1}
    assert left_out == [
        f"phantoms with {n} labelled: only 5 labelled patients, so none is left to score; take at most 4"
        for n in (5, 8)
    ]


def test_a_plan_that_leaves_nothing_to_measure_is_refused(make_plan: Callable[..., Plan], tmp_path: Path):
    with pytest.raises(SettingsError, match="nothing to measure: phantoms with 5 labelled"):
        run_experiment(make_plan(shots=(5,)), tmp_path)


def test_all_numbers_of_shots_are_tried_on_the_same_unseen_cases(make_plan: Callable[..., Plan], folder: Path):
    cohort = read_cohort(folder)
    for split in range(4):
        found, _ = trials(make_plan(shots=(1, 2, 3), splits=(split,)))
        splits = [trial.divide(cohort) for trial in found]
        assert len({tuple(case.name for case in unseen) for _, unseen in splits}) == 1
        supports = [{case.name for case in drawn} for drawn, _ in splits]
        assert supports[0] < supports[1] < supports[2]
        assert not supports[2] & {case.name for case in splits[0][1]}


def test_other_splits_have_other_cases(make_plan: Callable[..., Plan], folder: Path):
    cohort = read_cohort(folder)
    found, _ = trials(make_plan(shots=(1,), splits=tuple(range(8))))
    assert len({tuple(case.name for case in trial.divide(cohort)[1]) for trial in found}) > 3


def test_no_patient_is_on_both_sides(make_plan: Callable[..., Plan], folder: Path, tmp_path: Path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    facts = json.loads((own / "dataset.json").read_text())
    facts["patient"] = {"case-0": "anna", "case-1": "anna", "case-2": "ben", "case-3": "ben", "case-4": "carl"}
    (own / "dataset.json").write_text(json.dumps(facts))
    cohort = read_cohort(own)
    for split in range(5):
        found, _ = trials(make_plan(data={"own": DataSet(folder=own)}, splits=(split,)))
        for trial in found:
            drawn, unseen = trial.divide(cohort)
            assert not {case.patient for case in drawn} & {case.patient for case in unseen}
            assert len(unseen) in (1, 2)


def test_the_seed_is_the_split_unless_the_settings_name_one():
    assert [Configuration(method="few-shot-prompts").build(split)[1] for split in (0, 5)] == [0, 5]
    assert Configuration(method="few-shot-prompts", settings={"train.seed": 7}).build(5)[1] == 7
    assert Configuration(method="zero-shot").build(5)[1] == 5
    assert Configuration(method="nearest-slice").build(5)[1] is None


def test_a_folder_of_ones_own_is_compared_up_to_half_of_it(folder: Path):
    plan = compare_plan(folder)
    assert (plan.shots, plan.splits) == ((1, 2), (0, 1, 2))
    assert {"fate", "nearest-slice"} <= plan.configurations.keys()
    assert "lora" not in plan.configurations
    assert "unet" in compare_plan(folder, ("all",)).configurations
    assert list(compare_plan(folder, ("lora", "fate"), shots=(3,)).configurations) == ["lora", "fate"]


def test_a_folder_without_labels_cannot_be_compared(folder: Path):
    with pytest.raises(InputError, match="0 labelled patients"):
        compare_plan(folder / "images")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "experiments").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_plans_that_come_with_handful_can_be_read(path: Path):
    assert read_plan(path, Path("data")).configurations


def test_a_configuration_may_have_fewer_numbers_of_shots(make_plan: Callable[..., Plan]):
    configurations = {"all": Configuration(method="fate"), "most": Configuration(method="fate", shots=(2,))}
    planned, _ = trials(make_plan(configurations=configurations))
    assert [(trial.configuration_name, trial.shots) for trial in planned] == [("all", 1), ("all", 2), ("most", 2)]


def test_scribbles_replace_the_masks_that_are_learned_from(make_plan: Callable[..., Plan]):
    sam = tiny_models.tiny_sam(side=64)
    short = {"encoder": "none", "channels": 4, "side": 32, "train.iterations": 1}
    configurations = {
        name: Configuration(method="unet", settings=short, scribbles=name == "scribbles")
        for name in ("masks", "scribbles")
    }
    masks, scribbles = trials(make_plan(configurations=configurations, shots=(1,)))[0]
    prints = Fingerprints()
    assert prints.of(masks, sam, "") != prints.of(scribbles, sam, "")
    assert masks.fit != scribbles.fit
    said = [" ".join(fit(trial, sam).segmenter.decisions) for trial in (masks, scribbles)]
    assert ["learned from scribbles" in one for one in said] == [False, True]


def test_the_voxels_of_a_case_are_hashed_once_for_all_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "labels").mkdir()
    for number in range(3):
        image, reference = phantom(number)
        about = {"series": f"1.2.{number}", "StudyInstanceUID": f"1.3.{number}", "PatientID": f"{number}"}
        dicom_series.write(tmp_path / "images" / f"case-{number}", dicom_series.of_volume(image, **about))
        write_label_map(tmp_path / "labels" / f"case-{number}.nii.gz", reference)
    read, digest = [], Case.image_digest
    monkeypatch.setattr(Case, "image_digest", lambda case: read.append(case.name) or digest(case))
    nearest = Configuration(method="nearest-slice")
    plan = Plan(
        name="a", data={"a": DataSet(folder=tmp_path)}, configurations={"a": nearest}, shots=(1, 2), splits=(0, 1)
    )
    found, _ = trials(plan)
    sam, prints = tiny_models.tiny_sam(side=64), Fingerprints()
    assert len([prints.of(trial, sam, "") for trial in found]) == 4
    assert sorted(read) == ["case-0", "case-1", "case-2"]
