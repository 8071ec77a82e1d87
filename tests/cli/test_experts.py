"""`handful fit --from`, `handful predict --expert` and `handful model inspect` of a model with experts."""

import json
from pathlib import Path

from expert_tasks import NEGATIVES, negative_case
from handful.data.files import write_label_map, write_volume
from handful.data.volume import LabelMap
from small_cohort import Handful


def write_negatives(folder: Path) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in range(2):
        case = negative_case(seed)
        assert isinstance(case.reference, LabelMap)
        write_volume(folder / "images" / f"other-{seed}.nii.gz", case.read_image())
        write_label_map(folder / "labels" / f"other-{seed}.nii.gz", case.reference)
    labels = {str(value): name for value, name in NEGATIVES.as_dict().items()}
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background"} | labels}))
    return folder


def test_a_task_is_added_to_a_model_and_each_scan_gets_its_expert(
    cohort: Path, model: Path, backbone: Path, tmp_path: Path, handful: Handful
) -> None:
    other = write_negatives(tmp_path / "Other hospital")
    common = ("--backbone", backbone, "--no-cache", "-q", "--from", model)
    fit = ("fit", "nearest-slice", "-i", other, "-o", tmp_path / "both", *common)
    result = handful(*fit)
    assert result.exit_code != 0
    assert "--from-input" in result.stderr
    result = handful(*fit, "--from-input", cohort)
    assert result.exit_code == 0, result.output
    assert "label 1 'egg' of Other-hospital becomes 3" in result.stdout
    assert "already fitted" in handful(*fit, "--from-input", cohort).stdout

    shown = handful("model", "inspect", tmp_path / "both").stdout
    for text in ("labels: 1 ball, 2 cube, 3 egg", "expert nearest:", "expert Other-hospital:", "sums of embeddings"):
        assert text in shown
    content = json.loads(handful("model", "inspect", tmp_path / "both", "--json").stdout)
    assert content["experts"]["Other-hospital"]["labels"] == {"1": "ball", "2": "cube", "3": "egg"}

    predict = ("predict", tmp_path / "both", "-i", other, "-q")
    found = handful(*predict, "-o", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "experts: Other-hospital (2)" in found.stdout
    named = handful(*predict, "-o", tmp_path / "named", "--expert", "nearest", "--json")
    assert json.loads(named.stdout)["experts"]["other-0"] == {"name": "nearest", "by": "name", "margin": None}
    scan = handful("predict", tmp_path / "both", "-i", other / "images" / "other-0.nii.gz", "-o", tmp_path / "o.nii.gz")
    assert "expert: Other-hospital, picked by the router with a margin of " in scan.stdout
    suggested = handful("suggest", "-i", cohort, "-o", tmp_path / "s", "--model", tmp_path / "both")
    assert suggested.exit_code == 2
    assert "needs the model of one task" in suggested.stderr
    wrong = handful(*predict, "-o", tmp_path / "wrong", "--expert", "neares")
    assert wrong.exit_code != 0
    assert "did you mean" in wrong.stderr
