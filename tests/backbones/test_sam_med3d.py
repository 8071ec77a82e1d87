"""SAM-Med3D's file gives a model that computes what the authors' computes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.authors_layout import random_state, sam_med3d
from handful.backbones.official import from_official_state
from handful.backbones.sam_med3d import SamMed3d, _shape_of, load_sam_med3d, sam_med3d_of
from handful.errors import CheckpointError

SMALL = {"side": 32, "width": 48, "depth": 2, "heads": 2, "global_blocks": (1,), "channels": 48}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(sam_med3d(**SMALL))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(state: dict[str, Tensor]) -> SamMed3d:
    return sam_med3d_of(state, "random")


def waves(side: int) -> Tensor:
    d, h, w = torch.meshgrid(*[torch.arange(float(side))] * 3, indexing="ij")
    return torch.sin(d / 5) + torch.cos(h / 7) * torch.sin(w / 3)


def test_it_computes_what_the_authors_model_does(model: SamMed3d):
    """Recorded from uni-medical/SAM-Med3D at commit f3de1fa, with these weights and these sizes."""
    embeddings = model.encode(waves(32))
    assert embeddings.shape == (1, 48, 2, 2, 2)
    assert (float(embeddings.mean()), float(embeddings.std())) == pytest.approx((-0.020578, 1.019638), abs=1e-5)
    assert embeddings[0, ::12, 0, 1, 0].tolist() == pytest.approx([0.790048, 0.083391, -1.992231, -0.404668], abs=1e-4)
    eight = [0.676693, 0.921436, -1.492102, 0.237116, 0.737868, 0.795371, -0.241483, 0.690573]
    assert embeddings[0, 5].flatten().tolist() == pytest.approx(eight, abs=1e-4)
    clicks, positive = torch.tensor([[[9.0, 20.0, 14.0], [3.0, 4.0, 30.0]]]), torch.tensor([[True, False]])
    first = model.decode(embeddings, clicks, positive)
    assert (float(first.logits.mean()), float(first.logits.std())) == pytest.approx((-0.042740, 0.177859), abs=1e-5)
    assert first.logits[0, 0, 3, ::2].tolist() == pytest.approx([0.061473, 0.052352, 0.099781, 0.041340], abs=1e-4)
    assert float(first.iou) == pytest.approx(-0.445177, abs=1e-4)
    second = model.decode(embeddings, clicks, positive, waves(8)[None])
    assert second.logits[0, 0, 3, ::2].tolist() == pytest.approx([-0.041255, 0.051262, -0.019750, 0.044639], abs=1e-4)
    assert second.logits[0, 7, ::3, 1].tolist() == pytest.approx([-0.061928, 0.200684, -0.108753], abs=1e-4)
    assert float(second.iou) == pytest.approx(0.035824, abs=1e-4)


def test_the_published_sizes_are_read_from_the_weights():
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in sam_med3d().items()}
        model = SamMed3d(_shape_of(state))
    shape = model.shape
    assert (shape.side, shape.grid, shape.mask_side, shape.window) == (128, 8, 32, 14)
    assert (shape.width, shape.depth, shape.heads, shape.channels) == (768, 12, 12, 384)
    assert shape.global_blocks == (2, 5, 8, 11)
    theirs = sum(tensor.numel() for tensor in state.values())
    assert sum(weight.numel() for weight in model.parameters()) == theirs == 100_509_616


def test_objects_are_decoded_together_as_they_are_alone(model: SamMed3d):
    embeddings = model.encode(waves(32))
    clicks, positive = torch.tensor([[[9.0, 20.0, 14.0]], [[25.0, 3.0, 8.0]]]), torch.ones(2, 1, dtype=torch.bool)
    together = model.decode(embeddings, clicks, positive)
    for number in range(2):
        alone = model.decode(embeddings, clicks[number : number + 1], positive[number : number + 1])
        torch.testing.assert_close(together.logits[number], alone.logits[0], atol=1e-5, rtol=1e-4)
    assert (together.logits[0] - together.logits[1]).abs().max() > 1e-3


def test_the_file_of_a_training_is_read_and_nothing_but_tensors(state: dict[str, Tensor], tmp_path: Path):
    torch.save({"epoch": 3, "model_state_dict": state, "losses": [0.5]}, tmp_path / "sam_med3d.pth")
    model = load_sam_med3d(str(tmp_path / "sam_med3d.pth"))
    assert not any(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(model.encode(waves(32)), sam_med3d_of(state, "random").encode(waves(32)))
    torch.save({"model_state_dict": state, "path": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_sam_med3d(tmp_path / "code.pth")


def test_other_models_and_damaged_ones_are_refused(state: dict[str, Tensor]):
    with pytest.raises(CheckpointError, match="no SAM-Med3D"):
        sam_med3d_of({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 8)}, "sam.pth")
    with pytest.raises(CheckpointError, match="a model of volumes"):
        from_official_state(state, "sam_med3d.pth")
    lacking = {key: tensor for key, tensor in state.items() if key != "mask_decoder.iou_token.weight"}
    with pytest.raises(CheckpointError, match="iou_token"):
        sam_med3d_of(lacking, "damaged.pth")
    with pytest.raises(CheckpointError, match=r"lacks 'image_encoder.neck.0.weight'"):
        sam_med3d_of({k: t for k, t in state.items() if not k.startswith("image_encoder.neck")}, "damaged.pth")
