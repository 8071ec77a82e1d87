"""The training of handful-small: one set of weights at several sides, exact resume, validation, an early end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handful.backbones.base import ImageEmbeddings
from handful.backbones.catalog import load_backbone
from handful.backbones.efficientnet import imagenet_encoder
from handful.backbones.small import SmallBackbone, SmallShape, small_model
from handful.errors import BusyError, SettingsError
from handful.jobs.progress import Run
from handful.pretraining.head_start import take_head, unlike
from handful.pretraining.pretrain import batch_of
from handful.pretraining.small import SmallConfig, pretrain_small, share_tensors
from handful.pretraining.tasks import part_step
from handful.pretraining.validation import dice, validate
from handful.prompts.prompts import Prompts
from handful.synthesis.episodes import random_episode
from handful.synthesis.worlds import WIDE_WORLD
from handful.tuning.loop import TrainConfig

SHORT = SmallConfig(
    shape=SmallShape(channels=64),
    sides=(64,),
    shares=(1.0,),
    subjects=(2,),
    slices=1,
    targets=1,
    rehearsals=1,
    alignment=None,
    validate_every=100,
    validation_episodes=1,
    train=TrainConfig(iterations=3, learning_rate=1e-3, ema=0.5),
)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path):
    def kill(step: int, total: int, note: str) -> None:
        if step == 2:
            raise KeyboardInterrupt

    pretrain_small(SHORT, tmp_path / "whole")
    scratch = tmp_path / "killed" / "partial"
    with pytest.raises(KeyboardInterrupt):
        pretrain_small(SHORT, tmp_path / "killed", Run(scratch, kill, save_every_s=0.0))
    pretrain_small(SHORT, tmp_path / "killed", Run(scratch))
    for file in ("model.safetensors", "metrics.jsonl", "validation.jsonl", "curves.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    assert not scratch.exists()

    backbone = load_backbone(tmp_path / "whole")
    assert isinstance(backbone, SmallBackbone)
    assert (backbone.side, backbone.mask_side) == (64, 32)
    first = imagenet_encoder().state_dict()
    trained = backbone.model.vision_encoder.trunk.state_dict()
    changes = [float((trained[name] - first[name]).abs().max()) for name in first]
    assert 0 < max(changes) < 0.05

    rows = [json.loads(line) for line in (tmp_path / "whole" / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 3]
    assert {"memory", "box", "click_1", "click_5"} <= rows[-1].keys()

    with pytest.raises(SettingsError, match="channels"):
        pretrain_small(replace(SHORT, shape=SmallShape(), start=tmp_path / "whole"), tmp_path / "other")


def test_a_file_named_stop_ends_the_training_and_the_same_call_continues_it(tmp_path: Path):
    config = replace(SHORT, validate_every=2, train=replace(SHORT.train, iterations=6))
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    pretrain_small(config, whole)
    made: list[int] = []

    def stop_after_five(step: int, total: int, note: str) -> None:
        made.append(step)
        if step == 5:
            (out / "STOP").touch()

    def call() -> dict[str, bytes]:
        assert pretrain_small(config, out, Run(out / "partial", stop_after_five, save_every_s=1e9))
        assert not (out / "STOP").exists()
        return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    stopped = call()
    assert made == [1, 2, 3, 4, 5]
    assert [json.loads(line)["step"] for line in stopped["validation.jsonl"].splitlines()] == [0, 2, 4, 5]
    (out / "STOP").touch()
    assert call() == stopped, "no step was made, so nothing is written"
    assert made == [1, 2, 3, 4, 5]
    finished = call()
    assert made[5:] == [6]
    for file in ("model.safetensors", "metrics.jsonl", "curves.png"):
        assert (whole / file).read_bytes() == finished[file]


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("sides", (100,), "multiple of 32 pixels, got 100"),
        ("subjects", (1,), "subjects must be 2 or more, got 1"),
        ("targets", 0, "got 1 and 0"),
        ("validate_every", 0, "validate_every 1 or more, got 1 and 0"),
    ],
)
def test_numbers_of_which_no_task_can_be_made_are_refused(setting: str, value: object, reason: str):
    with pytest.raises(SettingsError, match=reason):
        replace(SHORT, **{setting: value})


def test_the_head_starts_as_that_of_handful_tiny():
    tiny = load_backbone("handful-tiny@64")
    model = small_model(SmallShape(), 64)
    small = SmallBackbone(model, "test")
    take_head(model, tiny, torch.Generator().manual_seed(0))
    image = tiny.encode_exact(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    finest, finer, main = image.features
    enlarged = ImageEmbeddings((finest.repeat_interleave(2, 2).repeat_interleave(2, 3), finer, main), image.size)
    masks = torch.full((1, 1, 16, 16), -6.0)
    masks[..., 4:9, 3:12] = 6.0
    masks = masks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    prompts = Prompts(torch.tensor([[[[24.0, 24.0]]]]), torch.ones(1, 1, 1, dtype=torch.long), masks=masks)
    wanted = tiny.decode_square(image, tiny.embed(prompts, (64, 64)))
    found = small.decode_square(enlarged, small.embed(prompts, (64, 64)))
    both = [wanted.logits.repeat_interleave(2, 2).repeat_interleave(2, 3), found.logits]
    assert float(torch.corrcoef(torch.stack([each.flatten() for each in both]))[0, 1]) > 0.99
    torch.testing.assert_close(found.iou, wanted.iou, atol=0.05, rtol=0)
    with pytest.raises(SettingsError, match="shape"):
        take_head(small_model(SmallShape(channels=64), 64), tiny, torch.Generator())


def test_the_alignment_makes_features_like_those_of_handful_tiny(tmp_path: Path):
    slices = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wanted = load_backbone("handful-tiny@64").encode(slices)

    def align(steps: int) -> Path:
        settings = TrainConfig(iterations=steps, learning_rate=2e-3, warmup=0.0)
        config = replace(SHORT, shape=SmallShape(), alignment=settings)
        out, made = tmp_path / str(steps), []

        def report(step: int, total: int, note: str) -> None:
            made.append(step)
            if total == 3:
                raise KeyboardInterrupt  # with half-done work, the aligned model is kept
            if step == 5:
                (out / "STOP").touch()

        run = Run(out / "partial", report, save_every_s=1e9)
        if steps > 5:
            assert pretrain_small(config, out, run)
            assert not (out / "STOP").exists()
            assert not (out / "model.safetensors").exists(), "no step of the training itself was made"
        with pytest.raises(KeyboardInterrupt):
            pretrain_small(config, out, run)
        assert made == [*range(1, steps + 1), 1], "no step of the alignment is repeated"
        (aligned,) = (out / "partial").glob("*/aligned")
        return aligned

    aligned = {steps: align(steps) for steps in (1, 12)}
    far = {steps: float(unlike(load_backbone(folder).encode(slices), wanted)) for steps, folder in aligned.items()}
    assert far[12] < 0.8 * far[1]
    assert len((tmp_path / "12" / "alignment.jsonl").read_text().splitlines()) == 1
    head, tiny = (load_backbone(source).model.memory_attention for source in (aligned[12], "handful-tiny@64"))
    for own, other in zip(head.parameters(), tiny.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-3)


def test_without_scratch_the_alignment_of_another_configuration_is_not_taken_up(tmp_path: Path):
    weights = []
    for rate in (1e-3, 3e-3):
        settings = TrainConfig(iterations=1, learning_rate=rate, warmup=0.0)
        config = replace(SHORT, shape=SmallShape(), alignment=settings, train=replace(SHORT.train, iterations=1))
        pretrain_small(config, tmp_path, Run(), overwrite=True)
        weights.append((tmp_path / "model.safetensors").read_bytes())
        assert not (tmp_path / "aligned").exists()
    assert weights[0] != weights[1]


def test_models_of_several_sides_share_every_weight():
    shape = SmallShape(channels=64)
    source, other = small_model(shape, 64), small_model(shape, 96)
    share_tensors(other, source)
    shared = other.state_dict()
    assert all(tensor.data_ptr() == shared[name].data_ptr() for name, tensor in source.state_dict().items())
    assert other.prompt_encoder.input_image_size == 96
    slices = torch.rand(1, 1, 40, 40)
    before = SmallBackbone(other, "other").encode(slices).main
    with torch.no_grad():
        source.vision_encoder.pyramid.smooth.bias.add_(1.0)
    torch.testing.assert_close(SmallBackbone(other, "other").encode(slices).main, before + 1, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("slices", [1, 2])
def test_the_losses_of_a_step_reach_the_encoder(slices: int):
    torch.manual_seed(0)
    model = small_model(SmallShape(channels=64), 64)
    backbone = SmallBackbone(model, "test")
    model.requires_grad_(True)
    episode = random_episode(3, slices, 1, 64, torch.Generator().manual_seed(1), WIDE_WORLD)
    names = set()
    for seed in range(4):
        tasks = part_step(backbone, batch_of([episode]), torch.Generator().manual_seed(seed))
        names |= tasks.keys()
        assert {"match", "memory"} < tasks.keys()
        total = torch.stack([task.loss for task in tasks.values()]).sum()
        (gradient,) = torch.autograd.grad(total, model.vision_encoder.trunk.stem.weight)
        assert gradient.abs().sum() > 0
    assert ("neighbour" in names) == (slices > 1)


def test_scores_are_in_float32_whatever_the_training_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.jobs.precision.has_bfloat16", lambda device: True)  # emulated where it is not
    coarse: list[bool] = []

    def scores(*_: object) -> dict[str, float]:
        coarse.append(torch.is_autocast_enabled("cpu"))
        return {}

    monkeypatch.setattr("handful.pretraining.small.validate", scores)
    train = replace(SHORT.train, iterations=1, precision="bfloat16")
    pretrain_small(replace(SHORT, train=train), tmp_path, Run())
    assert coarse == [False, False]


def test_a_second_training_into_the_same_folder_is_refused(tmp_path: Path):
    def second(step: int, total: int, note: str) -> None:
        if step == 1:
            with pytest.raises(BusyError, match="works in this folder"):
                pretrain_small(SHORT, tmp_path)

    pretrain_small(SHORT, tmp_path, Run(report=second))
    assert not (tmp_path / ".handful").exists()


def test_validation_repeats_its_episodes_and_tells_shapes_apart():
    backbone = SmallBackbone(small_model(SmallShape(channels=64), 64), "test")
    scores = validate(backbone, WIDE_WORLD, 2)
    assert scores == validate(backbone, WIDE_WORLD, 2)
    assert {"memory", "box", "click_1", "click_5"} <= scores.keys()
    assert any(name.startswith("memory_") for name in scores)
    assert all(0 <= value <= 1 for value in scores.values())


def test_the_dice_of_two_empty_masks_is_one():
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    masks[0, 1, :2] = True
    truth = masks.clone()
    truth[0, 1, 1:3] = True
    truth[0, 1, 0] = False
    assert dice(masks, truth).tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"shares": (0.5, 0.5)}, "equally many"), ({"world": "flat"}, "world must be"), ({"train": TrainConfig()}, "ema")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(SettingsError, match=message):
        replace(SHORT, **settings)
