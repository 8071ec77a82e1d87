"""Embeddings of the slices of one scan; slices around the current one are encoded ahead of time."""

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
    """The slices of a stack, as pixels and as embeddings; at most `keep` embeddings are stored.

    The session's `lock` protects the embeddings. The background thread takes it to choose the next slice, and encodes
    without it, so that a prompt waits for one encoder pass at most. Another lock protects which slice is the current
    one and whether the thread runs, so that a display can move while a long step has the lock of the session.
    """

    def __init__(
        self, stack: SliceView, backbone: Backbone, keep: int, background: bool, lock: threading.RLock
    ) -> None:
        self.stack, self.backbone = stack, backbone
        self._limit, self._background, self._lock = keep, background, lock
        self._centre = len(stack) // 2
        self._stored: dict[int, ImageEmbeddings] = {}  # in half precision
        self._pending: dict[int, Future[ImageEmbeddings]] = {}
        self._moving = threading.Lock()
        self._worker: threading.Thread | None = None
        self._stopped = False

    def pixels(self, number: int) -> Float[Tensor, "1 c h w"]:
        """A slice with values in [0, 1], on the backbone's device."""
        return self.stack.take([number]).to(self.backbone.device)

    def image(self, number: int) -> ImageEmbeddings:
        """The embeddings of a slice, rounded to half precision as in a cache on disk."""
        with self._lock:
            stored = self._stored.get(number)
            if stored is None:
                pending = self._pending.get(number)
                stored = pending.result() if pending else self._encoded(number)
                self._store(number, stored)
            return stored.to(torch.float32)

    def move_to(self, number: int) -> None:
        """Make this the current slice: it and its neighbours are encoded next in the background, if that is enabled."""
        with self._moving:
            self._centre = number
            if self._background and self._worker is None and not self._stopped:
                self._worker = threading.Thread(target=self._work, name="handful-session", daemon=True)
                self._worker.start()

    def stop(self) -> None:
        """Let the background thread end after its present slice."""
        self._stopped = True

    def wait(self) -> None:
        """Wait until the background thread has nothing to do or has stopped."""
        worker = self._worker
        if worker is not None:
            worker.join()

    def _work(self) -> None:
        while True:
            with self._lock, self._moving:
                number = self._next()
                if number is None:
                    self._worker = None
                    return
                pending = self._pending[number] = Future()
            try:
                pending.set_result(self._encoded(number))
            except Exception as error:  # raised in the thread that waits; others get it when they encode the slice
                pending.set_exception(error)
            with self._lock:
                del self._pending[number]
                if pending.exception() is not None:
                    with self._moving:
                        self._worker = None
                    return
                self._store(number, pending.result())

    def _next(self) -> int | None:
        """The slice nearest to the current one that is to be stored and is not; None if there is none."""
        if self._stopped:
            return None
        nearest = list(outwards(self._centre, len(self.stack)))[: self._limit]
        return next((n for n in nearest if n not in self._stored and n not in self._pending), None)

    @torch.no_grad()
    def _encoded(self, number: int) -> ImageEmbeddings:
        slices, place = self.stack.around(number, self.backbone.reach)
        return self.backbone.encode(slices.to(self.backbone.device))[place].to(torch.float16)

    def _store(self, number: int, image: ImageEmbeddings) -> None:
        self._stored[number] = image
        while len(self._stored) > self._limit:
            del self._stored[max(self._stored, key=lambda other: (abs(other - self._centre), -other))]


def outwards(centre: int, count: int) -> Iterator[int]:
    """The numbers from 0 to `count` - 1 by their distance from `centre`; of two equal ones, the higher first."""
    yield from sorted(range(count), key=lambda number: (abs(number - centre), -number))
