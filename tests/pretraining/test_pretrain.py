"""The recipe runs, resumes exactly, and leaves a folder that transformers loads by itself."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import Sam2VideoModel

import handful
import tiny_models
from handful.backbones.base import MaskPrediction
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import BusyError, SettingsError
from handful.jobs.digests import digest_of
from handful.jobs.progress import Run
from handful.pretraining.output import fingerprint, write_note
from handful.pretraining.pretrain import PretrainConfig, _Tasks, make_batch, pretrain, processors
from handful.pretraining.tasks import REPLAYED, Task, choose_supports, largest_pieces, replay, score, train_step
from handful.tuning.loop import TrainConfig

WEIGHTS = Path(handful.__file__).parent / "backbones" / "weights"
SHORT = TrainConfig(iterations=7, ema=0.5)
SMALL = PretrainConfig(side=64, subjects=2, slices=2, targets=2, matching=2, train=SHORT)


def test_a_batch_groups_slices_by_episode_and_individual() -> None:
    config = replace(SMALL, episodes=2, crowd=0.0)
    batch = make_batch(config, torch.Generator().manual_seed(0))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.masks.shape == (8, 2, 64, 64)
    assert batch.group.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert batch.subject.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    crowd = make_batch(replace(config, crowd=1.0), torch.Generator().manual_seed(0))
    assert crowd.subject.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_every_seed_has_episodes_of_its_own() -> None:
    def shown(seed: int) -> torch.Tensor:
        config = replace(SMALL, crowd=0.0, subjects=2, slices=1, targets=1, train=replace(SHORT, seed=seed))
        tasks = _Tasks(config, tiny_models.tiny_sam2_video(side=64), torch.device("cpu"), rank=0)
        return tasks._batch(0).images

    assert not torch.equal(shown(10**15), shown(10**15 + 1))


def test_supports_are_of_others_and_hold_the_target_where_they_can() -> None:
    batch = make_batch(replace(SMALL, subjects=4, crowd=0.0, targets=3), torch.Generator().manual_seed(1))
    held = batch.masks.flatten(2).any(dim=2)
    strangers = 0
    for seed in range(20):
        support = choose_supports(batch, 3, torch.Generator().manual_seed(seed))
        assert support.shape == (8, 3, 3)
        assert not (support == torch.arange(8)[:, None, None]).any()
        if (batch.subject[support] == batch.subject[:, None, None]).any():
            continue  # once in five times the own stack is among them
        strangers += 1
        others = batch.subject[:, None] != batch.subject
        for query in range(8):
            for target in range(3):
                holders = int((others[query] & held[:, target]).sum())
                assert int(held[support[query, target], target].sum()) == min(3, holders)
    assert strangers > 8


def test_pretraining_writes_a_folder_that_transformers_loads_and_another_side_goes_on_from(tmp_path: Path) -> None:
    pretrain(SMALL, tmp_path / "a")
    model = Sam2VideoModel.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert model.config.image_size == 64
    code = model.shared_image_embedding.positional_embedding
    assert torch.equal(code, model.prompt_encoder.shared_embedding.positional_embedding)
    assert (tmp_path / "a" / "curves.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 7
    assert 0 <= rows[0]["memory_dice"] <= 1

    larger = replace(SMALL, side=128, targets=1, start=tmp_path / "a", train=TrainConfig(iterations=1))
    pretrain(larger, tmp_path / "b")
    assert Sam2VideoModel.from_pretrained(tmp_path / "b").config.image_size == 128


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("side", 100, "multiple of 32 pixels, got 100"),
        ("subjects", 1, "subjects must be 2 or more, got 1"),
        ("slices", 0, "got 0 and 2"),
        ("targets", 0, "got 2 and 0"),
        ("episodes", 0, "episodes must be 1 or more, got 0"),
        ("workers", 0, "workers must be 1 or more, got 0"),
        ("rehearsals", -1, "rehearsals must be 0 or more, got -1"),
    ],
)
def test_numbers_of_which_no_task_can_be_made_are_refused(setting: str, value: int, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        replace(SMALL, **{setting: value})


def test_processes_are_as_many_as_cores_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(61)), raising=False)
    assert processors() == 61


@pytest.mark.parametrize("start", ["handful-small", "sam2"])
def test_weights_of_another_model_are_no_start(start: str, tmp_path: Path) -> None:
    if start == "sam2":
        tiny_models.tiny_sam2_video().model.save_pretrained(tmp_path / start)
    folder = tmp_path / start if start == "sam2" else WEIGHTS / start
    with pytest.raises(SettingsError, match=f"{start} holds no handful-tiny"):
        pretrain(replace(SMALL, start=folder), tmp_path / "out")


def test_a_second_training_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    config = replace(SMALL, targets=1, train=TrainConfig(iterations=1))

    def second(step: int, total: int, note: str) -> None:
        with pytest.raises(BusyError, match="works in this folder"):
            pretrain(config, tmp_path)

    pretrain(config, tmp_path, Run(report=second))
    assert not (tmp_path / ".handful").exists()


def test_a_training_goes_by_the_weights_it_starts_from_not_by_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"part1": b"1", "copy": b"1", "other": b"2"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    found = {
        start: fingerprint(replace(SMALL, start=Path(start)), tmp_path / "out")
        for start in ("part1", str(tmp_path / "part1"), "copy", "other", "missing")
    }
    assert len(set(found.values())) == 3
    assert found["part1"] == found[str(tmp_path / "part1")] == found["copy"]
    plain = fingerprint(SMALL, tmp_path / "out")
    assert plain == digest_of(json.dumps(asdict(SMALL), sort_keys=True))[:16], "as earlier versions had it"


def test_a_training_that_an_earlier_version_began_keeps_its_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "part1").mkdir()
    (tmp_path / "part1" / "model.safetensors").write_bytes(b"1")
    config = replace(SMALL, start=tmp_path / "part1")
    earlier = digest_of(json.dumps(asdict(config), default=str, sort_keys=True))[:16]
    assert fingerprint(config, tmp_path / "out") != earlier
    (tmp_path / "out").mkdir()
    write_note(tmp_path / "out", earlier, finished=False)
    assert fingerprint(config, tmp_path / "out") == earlier


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.process)])
def test_a_killed_pretraining_goes_on_to_the_same_weights(tmp_path: Path, workers: int) -> None:
    short = TrainConfig(iterations=4, ema=0.5)
    config = replace(SMALL, targets=1, matching=2, workers=workers, train=short)

    def kill(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    pretrain(config, tmp_path / "whole")
    scratch = tmp_path / "killed" / "partial"
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path / "killed", Run(scratch, kill, save_every_s=0.0))
    pretrain(config, tmp_path / "killed", Run(scratch))
    for file in ("model.safetensors", "metrics.jsonl", "curves.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    assert not scratch.exists()


BY_TORCHRUN = """
import json
import sys
from pathlib import Path
from handful.pretraining.pretrain import PretrainConfig, pretrain
from handful.tuning.loop import TrainConfig
pretrain(PretrainConfig(**json.loads(sys.argv[1]), train=TrainConfig(iterations=2)), Path(sys.argv[2]))
"""


@pytest.mark.process
def test_two_processes_of_torchrun_train_what_two_workers_train(tmp_path: Path) -> None:
    settings = {name: getattr(SMALL, name) for name in ("side", "subjects", "slices", "crowd")}
    settings |= {"targets": 1, "matching": 1}
    script = tmp_path / "script.py"
    script.write_text(BY_TORCHRUN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(script), json.dumps(settings), str(tmp_path / "torchrun")], check=True, timeout=900)
    pretrain(PretrainConfig(**settings, workers=2, train=TrainConfig(iterations=2)), tmp_path / "own")
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "torchrun"))
    assert ours == theirs
    assert not (tmp_path / "torchrun" / "partial").exists()


def test_the_loss_of_every_task_reaches_the_encoder() -> None:
    from handful.pretraining.architecture import tiny_config

    torch.manual_seed(0)
    model = Sam2VideoModel(tiny_config(side=64, width=16, channels=64))
    backbone = Sam2VideoBackbone(model, "test")
    model.requires_grad_(True)
    batch = make_batch(replace(SMALL, crowd=0.0), torch.Generator().manual_seed(0))
    tasks = train_step(backbone, batch, torch.Generator().manual_seed(0))
    assert set(tasks) == {"memory", "neighbour", "tokens", "points", "box", "mask", "correction", "match"}
    first = next(model.vision_encoder.parameters())
    for task in tasks.values():
        (gradient,) = torch.autograd.grad(task.loss, first, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", REPLAYED)
def test_a_decoder_only_step_leaves_the_encoder_unchanged(name: str) -> None:
    from handful.pretraining.architecture import tiny_config

    torch.manual_seed(0)
    model = Sam2VideoModel(tiny_config(side=64, width=16, channels=64))
    backbone = Sam2VideoBackbone(model, "test")
    model.requires_grad_(True)
    batch = make_batch(SMALL, torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = backbone.encode(batch.images)
    (task,) = replay(backbone, image, batch, name, torch.Generator().manual_seed(0)).values()
    task.loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for part in backbone.encoding_parts() for p in part.parameters())
    upscale = next(model.mask_decoder.upscale_conv1.parameters())
    assert upscale.grad is not None
    assert upscale.grad.abs().sum() > 0


def test_prompts_stand_for_the_largest_piece_of_a_target() -> None:
    masks = torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    masks[0, 0, 2:4, 2:4] = True
    masks[0, 0, 8:14, 8:14] = True
    pieces = largest_pieces(masks)
    assert pieces[0, 0].sum() == 36
    assert not pieces[0, 0, :8].any()
    assert not pieces[0, 1].any()


def test_a_target_thinner_than_half_a_cell_is_trained_as_present() -> None:
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 60, :] = 1
    mask[..., 20:84, 40] = 1  # two vessels one pixel wide
    target = F.avg_pool2d(mask, 4)
    assert float(target.max()) < 0.5
    logits, iou, tokens = torch.where(target > 0, 9.0, -9.0), torch.ones(1, 1), torch.zeros(1, 1, 4)
    found, missed = (score(MaskPrediction(logits, iou, torch.tensor([[s]]), tokens), target) for s in (5.0, -5.0))
    assert float(found.loss) + 0.5 < float(missed.loss)
    assert (found.detected, missed.detected, found.rejected) == (1.0, 0.0, None)
    assert (found.dice, found.iou_error) == (1.0, 0.0)


def test_a_positive_object_score_of_an_absent_target_costs_more_than_a_negative_one() -> None:
    target = torch.zeros(1, 2, 8, 8)
    target[0, 0, 2:6, 2:6] = 1
    logits = torch.where(target > 0, 9.0, -9.0)

    def scored(absent_score: float) -> Task:
        object_score = torch.tensor([[5.0, absent_score]])
        return score(MaskPrediction(logits, torch.ones(1, 2), object_score, torch.zeros(1, 2, 4)), target)

    right, wrong = scored(-5.0), scored(5.0)
    assert float(right.loss) + 0.5 < float(wrong.loss)
    assert (right.detected, right.rejected, wrong.rejected) == (1.0, 1.0, 0.0)
    assert right.dice == 1.0
