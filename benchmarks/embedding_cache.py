"""What it saves to encode a slice once: in training, and from one fit to the next; and that no result depends on it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.cached import cached
from handful.data.support import SupportSet
from handful.methods.base import Segmenter
from handful.methods.few_shot_prompts.method import FewShotPrompts, TokenDecoder
from handful.tuning.loop import TrainConfig
from handful.tuning.losses import dice_bce
from material import support, tiny
from measure import Check, Section, Table, interleaved

BATCH = 8
METHOD = FewShotPrompts(views=2, background=False, train=TrainConfig(iterations=2))


def measure(rounds: int) -> Section:
    backbone, shown = tiny(), support()
    epoch = Epoch(backbone, shown)
    kept = epoch.encode(range(len(epoch.slices))).to(torch.float16)
    times = interleaved(
        {
            "kept embeddings": lambda: epoch.run(lambda rows: kept[rows].to(torch.float32)),
            "encoded at each step": lambda: epoch.run(epoch.encode),
        },
        rounds,
    )
    base = times["kept embeddings"]
    rows = tuple((name, *time.per(len(epoch.slices)), time.over(base)) for name, time in times.items())
    columns = ("training epoch", "core-s a slice", "wall s a slice", "× kept")
    title = f"An epoch over {len(epoch.slices)} slices, 2 labels, batches of {BATCH}"
    fits, checks = _fits(backbone, shown, len(epoch.slices))
    return Section((Table(title, columns, rows), fits), checks)


class Epoch:
    """Steps of few-shot prompts over every labelled slice once, asked with given class embeddings."""

    def __init__(self, backbone: Backbone, shown: SupportSet) -> None:
        self.backbone = backbone
        labelled = list(shown.slices(METHOD.slicer))
        self.slices = torch.cat([one.slices for one in labelled])
        truth = torch.cat([one.masks() for one in labelled])
        self.truth = (backbone.to_model_frame(truth, backbone.mask_side) >= 0.5).float()
        self.decoder = TokenDecoder(backbone, METHOD)
        self.tokens = torch.randn(len(shown.labels), 8, backbone.channels, generator=torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.AdamW(self.decoder.trained.parameters(), lr=1e-5)

    @torch.no_grad()
    def encode(self, rows: range) -> ImageEmbeddings:
        return self.backbone.encode(self.slices[list(rows)])

    def run(self, embeddings: Callable[[range], ImageEmbeddings]) -> None:
        for start in range(0, len(self.slices), BATCH):
            rows = range(len(self.slices))[start : start + BATCH]
            logits = self.decoder(embeddings(rows), self.tokens.expand(len(rows), -1, -1, -1))
            truth = self.truth[list(rows)]
            self.optimizer.zero_grad(set_to_none=True)
            loss = dice_bce(logits, truth, torch.ones_like(truth[:, 0], dtype=torch.bool))
            torch.autograd.backward(loss)
            self.optimizer.step()


def _fits(backbone: Backbone, shown: SupportSet, slices: int) -> tuple[Table, tuple[Check, ...]]:
    """One support fitted without a cache, with an empty one, and with the one that this left."""
    passes: list[int] = []
    hook = backbone.image_encoder.register_forward_hook(lambda _, given, out: passes.append(len(given[0])))
    found: dict[str, tuple[Segmenter, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        variants = {"no cache": backbone, "empty cache": cached(backbone, Path(folder))}
        variants["filled cache"] = cached(backbone, Path(folder))
        for name, one in variants.items():
            passes.clear()
            found[name] = (METHOD.fit(shown, one), sum(passes))
        some = torch.cat([one.slices for one in shown.slices(METHOD.slicer)])[:4]
        with torch.no_grad():
            logits = {name: segmenter(some) for name, (segmenter, _) in found.items()}
    hook.remove()
    plain, empty, filled = (found[name][0].learned() for name in variants)
    learned = max(float((plain[n].float() - other[n].float()).abs().max()) for other in (empty, filled) for n in plain)
    gap = {name: float((logits[name] - logits["filled cache"]).abs().max()) for name in variants}
    views = slices * METHOD.views
    encoded = [found[name][1] for name in variants]
    table = Table(
        f"Fits to one support, {slices} slices in {METHOD.views} views",
        ("fit", "slices through the encoder", "largest difference of logits to the filled cache"),
        tuple((name, found[name][1], gap[name]) for name in variants),
    )
    return table, (
        Check(f"each of {views} views encoded once, and never again", encoded == [views, views, 0]),
        Check(f"fits with and without a cache learn the same (difference {learned:g})", learned == 0),
        Check("the logits are the same without a cache, with an empty and with a filled one", max(gap.values()) == 0),
    )
