"""What a backbone sees in the slices of one scan: each encoded once, those beside the annotator before she asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import SliceView


class SliceEmbeddings:
    """The slices of a stack, as pixels and as embeddings; at most `keep` embeddings, those nearest to the annotator.

    `lock` is the only one there is: who holds it keeps the background from starting on another slice, so that a
    question waits for one encode at most. The background encodes without the lock and hands over by a future.
    """

    def __init__(
        self, stack: SliceView, backbone: Backbone, keep: int, background: bool, lock: threading.RLock
    ) -> None:
        self.stack, self.backbone = stack, backbone
        self._limit, self._background, self._lock = keep, background, lock
        self._centre = len(stack) // 2
        self._kept: dict[int, ImageEmbeddings] = {}  # in half precision
        self._under_way: dict[int, Future[ImageEmbeddings]] = {}
        self._worker: threading.Thread | None = None
        self._stopped = False

    def pixels(self, number: int) -> Float[Tensor, "1 c h w"]:
        """A slice in [0, 1], on the backbone's device."""
        return self.stack.take([number]).to(self.backbone.device)

    def image(self, number: int) -> ImageEmbeddings:
        """A slice as the encoder sees it, rounded to half precision as a cache on disk rounds it."""
        with self._lock:
            kept = self._kept.get(number)
            if kept is None:
                under_way = self._under_way.get(number)
                kept = under_way.result() if under_way else self._encoded(number)
                self._keep(number, kept)
            return kept.to(torch.float32)

    def look_from(self, number: int) -> None:
        """The annotator is at this slice: it and its neighbours outwards are encoded in the background, if anything
        is."""
        with self._lock:
            self._centre = number
            if self._background and self._worker is None and self._next() is not None:
                self._worker = threading.Thread(target=self._work, name="handful-session", daemon=True)
                self._worker.start()

    def stop(self) -> None:
        """No slice is begun in the background from now on."""
        self._stopped = True

    def wait(self) -> None:
        """Returns when the background has nothing to do, or has stopped."""
        worker = self._worker
        if worker is not None:
            worker.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                number = self._next()
                if number is None:
                    self._worker = None
                    return
                under_way = self._under_way[number] = Future()
            try:
                under_way.set_result(self._encoded(number))
            except Exception as error:  # whoever waits gets it; anybody else when she asks for the slice herself
                under_way.set_exception(error)
            with self._lock:
                del self._under_way[number]
                if under_way.exception() is not None:
                    self._worker = None
                    return
                self._keep(number, under_way.result())

    def _next(self) -> int | None:
        """The slice nearest to the annotator that is to be kept and is not there."""
        if self._stopped:
            return None
        wanted = list(outwards(self._centre, len(self.stack)))[: self._limit]
        return next((n for n in wanted if n not in self._kept and n not in self._under_way), None)

    @torch.no_grad()
    def _encoded(self, number: int) -> ImageEmbeddings:
        return self.backbone.encode(self.pixels(number)).to(torch.float16)

    def _keep(self, number: int, image: ImageEmbeddings) -> None:
        self._kept[number] = image
        while len(self._kept) > self._limit:
            del self._kept[max(self._kept, key=lambda kept: (abs(kept - self._centre), -kept))]


def outwards(centre: int, count: int) -> Iterator[int]:
    """All numbers from 0 to `count` - 1, the nearest to `centre` first; of two equally near ones the higher first."""
    yield from sorted(range(count), key=lambda number: (abs(number - centre), -number))
