"""What handful computes by itself and transformers' modules compute too: equal results, and core-seconds of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from handful.backbones import sam2_video
from handful.backbones.base import ImageEmbeddings, Memory, PromptEmbeddings
from handful.backbones.decoder import no_mask
from handful.backbones.prompted import PromptedBackbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.tuning.losses import dice_ce, whole_batch
from material import sam2_video_tiny, sam_vit_b, tiny
from measure import Check, Section, Spread, Table, interleaved

SQUARE = 2048
CLOSE = 1e-4


def measure(rounds: int) -> Section:
    small, large = tiny(), sam_vit_b(layers=1)
    assert isinstance(small, PromptedBackbone)
    pairs = {
        "SAM 2 memory attention, 512 px, 9 memories": recalls(sam2_video_tiny(512)),
        "training step of a decoder, handful-tiny, 8 slices × 3 sets of 10 tokens": steps(small, 8, 3, 8),
        "training step of a decoder, SAM ViT-B at 1024 px, 4 slices × 1 set of 9 tokens": steps(large, 4, 1, 4),
    }
    matrix = torch.rand(SQUARE, SQUARE, generator=torch.Generator().manual_seed(0))
    work: dict[str, Callable[[], object]] = {"mm": lambda: matrix @ matrix}
    for name, (theirs, own) in pairs.items():
        work |= {f"{name} (transformers)": theirs, name: own}
    times = interleaved(work, rounds)
    rows = []
    for name in pairs:
        theirs, own = times[f"{name} (transformers)"], times[name]
        rows.append((name, Spread.of(theirs.core), Spread.of(own.core), own.over(theirs)))
    rate = Spread.of([2 * SQUARE**3 / seconds / 1e9 for seconds in times["mm"].core])
    checks = [
        Check(f"{name}: equal", float((theirs() - own()).abs().max()) < CLOSE) for name, (theirs, own) in pairs.items()
    ]
    table = Table(
        "transformers and handful in turn", ("", "transformers, core-s", "handful, core-s", "ratio"), tuple(rows)
    )
    return Section((table,), tuple(checks), (f"mm: {SQUARE}³ in fp32, {rate} GFLOP a core-second.",))


def recalls(backbone: Sam2VideoBackbone) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A slice combined with three labelled slices and six neighbours."""
    image, seeded = embeddings(backbone, 1), torch.Generator().manual_seed(1)
    spatial, position = torch.randn(2, 1, 9, backbone.feature_side**2, 64, generator=seeded)
    pointers = torch.randn(1, 9, backbone.channels, generator=seeded)
    memory = Memory(spatial, position, pointers, (0, 0, 0, 1, 2, 3, 4, 5, 6), (1, 1, 1, 1, 2, 3, 4, 5, 6))

    @torch.inference_mode()
    def own() -> Tensor:
        return backbone.recall(image, memory).main

    def theirs() -> Tensor:
        with modules_of_transformers():
            return own()

    return theirs, own


@contextmanager
def modules_of_transformers() -> Iterator[None]:
    """Within it memories are recalled by transformers' module."""
    kept = sam2_video.computes_faster
    sam2_video.computes_faster = lambda *_: False
    try:
        yield
    finally:
        sam2_video.computes_faster = kept


def steps(
    backbone: PromptedBackbone, slices: int, sets: int, tokens: int
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Forward and backward pass of a mask decoder, with the loss of few-shot prompts; each returns the logits."""
    image, seeded = embeddings(backbone, slices), torch.Generator().manual_seed(1)
    prompt = torch.randn(slices, sets, tokens, backbone.channels, generator=seeded)
    decoder = backbone.mask_decoder.requires_grad_(True)
    side = backbone.mask_side
    target = (torch.arange(sets)[:, None, None] == torch.randint(4, (slices, 1, side, side), generator=seeded)).float()
    known = torch.ones(slices, side, side, dtype=torch.bool)
    levels = {"high_resolution_features": list(image.features[:-1])} if len(image.features) > 1 else {}

    def learned(logits: Tensor) -> Tensor:
        decoder.zero_grad(set_to_none=True)
        dice_ce(*whole_batch(logits, target, known)).backward()  # type: ignore[no-untyped-call]
        return logits.detach()

    def theirs() -> Tensor:
        masks = decoder(
            image_embeddings=image.main + backbone.no_memory(),
            image_positional_embeddings=backbone.position_encoding().expand(slices, -1, -1, -1),
            sparse_prompt_embeddings=prompt,
            dense_prompt_embeddings=no_mask(backbone.prompt_encoder).expand_as(image.main),
            multimask_output=False,
            **levels,
        )[0]
        return learned(masks[:, :, 0])

    return theirs, lambda: learned(backbone.decode_square(image, PromptEmbeddings(prompt)).logits)


def embeddings(backbone: PromptedBackbone, count: int) -> ImageEmbeddings:
    """Random embeddings, of the levels that the decoder takes."""
    seeded, cells = torch.Generator().manual_seed(0), backbone.feature_side
    shapes = [(backbone.channels, cells)]
    if hasattr(backbone.mask_decoder, "conv_s0"):
        shapes = [(backbone.channels // 8, 4 * cells), (backbone.channels // 4, 2 * cells), *shapes]
    levels = [torch.randn(count, wide, side, side, generator=seeded) for wide, side in shapes]
    return ImageEmbeddings(tuple(levels), (224, 224))
