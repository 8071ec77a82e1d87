"""What the slices of a session show now, and the steps that led there: to undo, to redo, and to keep in a folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from handful.methods.online import OnlineLearner
from handful.session.slice_state import SliceState
from handful.session.state_file import Saved, StepFolder


@dataclass(frozen=True, eq=False)
class Step:
    """What a step has replaced."""

    states: Mapping[int, SliceState]
    learner: OnlineLearner | None = None
    """None if the step has not changed it."""


class History:
    """The states of all slices and the learner; each change is a step. Not thread-safe."""

    def __init__(self, states: list[SliceState], learner: OnlineLearner | None, most: int) -> None:
        """`most` steps can be undone."""
        self.states, self.learner = states, learner
        self.folder: StepFolder | None = None
        """Where each step is written before it is taken."""
        self._undo: deque[Step] = deque(maxlen=most)
        self._redo: list[Step] = []
        self._joined: Step | None = None

    @property
    def saved(self) -> Saved:
        """The states of all slices, and what the learner has learned."""
        return Saved(dict(enumerate(self.states)), None if self.learner is None else self.learner.packed())

    def commit(self, states: Mapping[int, SliceState], learner: OnlineLearner | None = None) -> tuple[int, ...]:
        """Replace states, and the learner if one is given, as one step that can be undone.

        Returns the slices whose segmentation has changed.
        """
        if not states:
            return ()
        after = Step(states, None if learner is self.learner else learner)
        self._write(after)
        before = self._before(after)
        if self._joined is None:
            self._undo.append(before)
        else:
            joined = self._joined
            self._joined = Step({**before.states, **joined.states}, joined.learner or before.learner)
        self._redo.clear()
        different = tuple(number for number, state in states.items() if state.top != self.states[number].top)
        self._take(after)
        return different

    def undo(self) -> tuple[int, ...]:
        """Undo the last step exactly. Returns the numbers of the slices that it had changed; () if there is none."""
        return self._swap(self._undo, self._redo)

    def redo(self) -> tuple[int, ...]:
        """Redo the last undone step; not possible after another step. Returns as `undo`."""
        return self._swap(self._redo, self._undo)

    def clear(self) -> None:
        """Make the steps so far permanent."""
        self._undo.clear()
        self._redo.clear()

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Everything in the context is one step for `undo`."""
        outermost, self._joined = self._joined is None, self._joined or Step({})
        try:
            yield
        finally:
            if outermost:
                joined, self._joined = self._joined, None
                if joined.states:
                    self._undo.append(joined)

    def keep_in(self, folder: StepFolder, restored: Step) -> None:
        """Write each further step into a folder, after its earlier steps, if there are any, were restored for good."""
        if restored.states:
            self._take(restored)
            self.clear()
        self.folder = folder

    def _swap(self, steps: deque[Step] | list[Step], others: deque[Step] | list[Step]) -> tuple[int, ...]:
        if not steps:
            return ()
        step = steps[-1]
        self._write(step)
        others.append(self._before(step))
        self._take(step)
        steps.pop()
        return tuple(step.states)

    def _before(self, step: Step) -> Step:
        """What the step replaces."""
        return Step({number: self.states[number] for number in step.states}, step.learner and self.learner)

    def _take(self, step: Step) -> None:
        for number, state in step.states.items():
            self.states[number] = state
        self.learner = step.learner or self.learner

    def _write(self, step: Step) -> None:
        """Write a step, and the learner if it changes, into the folder."""
        if self.folder:
            self.folder.write(Saved(step.states, step.learner.packed() if step.learner else None))
