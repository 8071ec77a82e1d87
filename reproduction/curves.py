"""The picture of Dice over the number of labelled cases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from reproduction.evidence import Evidence, estimate, scores_of, sets_of
from reproduction.tables import ANNOTATORS, CONFIGURATIONS, OTHERS, sets_with_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 2
"""Numbers of labelled cases without which a configuration is no line, and not drawn."""


Curves = dict[str, dict[str, dict[int, tuple[float, float, float]]]]
"""Mean Dice and the ends of its interval, by data set, configuration and number of labelled cases."""


def numbers(evidence: Evidence) -> Curves:
    """The curves of each data set that has one."""
    found: Curves = {}
    for name in sets_with_curves(evidence):
        pool = next(pool for pool in evidence.plans if name in sets_of([pool]))
        ticks = sorted({n for one, _, n in pool.scores if one == name})
        found[name] = {}
        for configuration in CONFIGURATIONS:
            curve = {n: estimate(one) for n in ticks if (one := scores_of([pool], name, configuration, n))}
            if len(curve) >= LINE:
                found[name][configuration] = {n: (one.mean, one.low, one.high) for n, one in curve.items()}
    return found


def draw(found: Curves) -> Figure:
    """Dice over the number of labelled cases, a panel for each data set that has a curve; bars are the intervals."""
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(5.2 * columns + 2.4, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    lines = {}
    for (name, curves), axes in zip(found.items(), panels, strict=False):
        ticks = sorted({n for curve in curves.values() for n in curve})
        for configuration, curve in curves.items():
            number = CONFIGURATIONS.index(configuration)
            means = [mean for mean, _, _ in curve.values()]
            reach = [[mean - low for mean, low, _ in curve.values()], [high - mean for mean, _, high in curve.values()]]
            style = "--" if configuration in ANNOTATORS else ":" if configuration in OTHERS else "-"
            colour, marker = f"C{number % 10}", "os^D"[number // 10 % 4]
            aside = 1.014 ** (number - len(CONFIGURATIONS) / 2)  # so that bars of one number do not hide each other
            lines[configuration] = axes.errorbar(
                [n * aside for n in curve],
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
    for axes in panels[len(found) :]:
        axes.remove()
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", frameon=False, fontsize=8)
    return figure
