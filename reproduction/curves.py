"""The picture of Dice over the number of labelled cases."""

from __future__ import annotations

import math
from pathlib import Path

from reproduction.evidence import Evidence, estimate, scores_of, sets_of
from reproduction.tables import ANNOTATORS, CONFIGURATIONS, OTHERS, sets_with_curves

LINE = 2
"""Numbers of labelled cases without which a configuration is no line, and not drawn."""


def draw_curves(evidence: Evidence, path: Path) -> None:
    """Dice over the number of labelled cases, a panel a data set that has a curve; bars are the intervals."""
    from matplotlib.figure import Figure

    names = sets_with_curves(evidence)
    if not names:
        return
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.2 * columns + 2.4, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    lines = {}
    for name, axes in zip(names, panels, strict=False):
        pool = next(pool for pool in evidence.plans if name in sets_of([pool]))
        ticks = sorted({n for one, _, n in pool.scores if one == name})
        for number, configuration in enumerate(CONFIGURATIONS):
            found = {n: estimate(one) for n in ticks if (one := scores_of([pool], name, configuration, n))}
            if len(found) < LINE:
                continue
            means = [one.mean for one in found.values()]
            reach = [[one.mean - one.low for one in found.values()], [one.high - one.mean for one in found.values()]]
            style = "--" if configuration in ANNOTATORS else ":" if configuration in OTHERS else "-"
            colour, marker = f"C{number % 10}", "os^D"[number // 10 % 4]
            aside = 1.014 ** (number - len(CONFIGURATIONS) / 2)  # so that bars of one number do not hide each other
            lines[configuration] = axes.errorbar(
                [n * aside for n in found],
                means,
                reach,
                color=colour,
                linestyle=style,
                marker=marker,
                ms=4,
                elinewidth=0.6,
            )
        axes.set(title=name, xlabel="labelled cases", ylabel="mean Dice of unseen cases", xscale="log", ylim=(0, 1))
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    for axes in panels[len(names) :]:
        axes.remove()
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
