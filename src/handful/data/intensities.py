"""What a support set's grey values are, and how they are shown, in sentences for its user."""

from __future__ import annotations

from collections import Counter

from handful.data.slicing import Slicer
from handful.data.support import SupportSet


def intensity_notes(support: SupportSet, slicer: Slicer) -> tuple[str, ...]:
    """The modality of the scans and the window that `slicer` takes; then each contradiction between sources."""
    kinds = Counter(str(facts.evidence) for facts in support.facts)
    counted = "; ".join(f"{kind} ({count} of {len(support.facts)})" for kind, count in kinds.items())
    kind = counted if len(kinds) > 1 else next(iter(kinds))
    doubts = [f"{facts.case.name}: {doubt}" for facts in support.facts for doubt in facts.evidence.disagreements()]
    return (f"grey values: {kind}; {_window_in_words(support, slicer)}", *doubts)


def sequence_note(support: SupportSet, slicer: Slicer) -> tuple[str, ...]:
    """A sentence on the sequences that a fit uses; `slicer` is that of its segmenter. None for other scans."""
    if not support.sequences:
        return ()
    used = slicer.channels_of(support.sequences)
    names = ", ".join(support.sequences[number] for number in used)
    if len(used) == len(support.sequences):
        return (f"all {len(used)} sequences are used: {names}",)
    every = ", ".join(support.sequences)
    return (
        f"{len(used)} of {len(support.sequences)} sequences are used: {names} (of {every}); "
        "others are chosen by --set slicer.sequences=NAMES, or all",
    )


def _window_in_words(support: SupportSet, slicer: Slicer) -> str:
    window = support.resolve(slicer).window
    if window == "each":
        return (
            "each sequence is shown from the 0.5th to the 99.5th percentile of its own values, and those whose name "
            "starts with CT by the window of soft tissue"
        )
    if window == "percentile":
        return "each scan is shown from the 0.5th to the 99.5th percentile of its own values"
    if window == "none":
        return "shown over the whole range of their type"
    if isinstance(window, str):
        return f"shown by the window {window}"
    low, high = window
    if slicer.window != "auto":
        return f"shown from {low:g} to {high:g}, as set"
    shift = next(facts.evidence.shift or 0.0 for facts in support.facts if facts.limits)
    stored = f" (stored values {low:g} to {high:g})" if shift else ""
    return f"shown from {low - shift:g} to {high - shift:g} HU{stored}, chosen from the labelled voxels"
