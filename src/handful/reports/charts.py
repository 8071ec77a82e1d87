"""Charts as inline SVG with the colours of the page: curves over the number of labelled cases, and box plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from handful.evaluation.evaluate import Estimate
from handful.jobs.plain_text import counted
from handful.reports.markup import Attributes, Element, element

COLOURS = 10
"""Number of colour classes c0 … c9 of the page; from the eleventh configuration on they repeat, with dashed lines."""
WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 40
SHAPES = 4
NAME_WIDTH = 128
"""Width of the names of configurations in front of their rows."""
ROW = 21


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of a configuration, the same in all charts."""

    index: int
    dashed: bool = False

    @property
    def colour(self) -> str:
        """The colour class."""
        return f"c{self.index % COLOURS}"

    @property
    def dash(self) -> str:
        """The `stroke-dasharray` of lines."""
        return "6 4" if self.dashed else "2 3" if self.index >= COLOURS else "none"


@dataclass(frozen=True)
class Curve:
    """A configuration's scores by the number of labelled cases."""

    name: str
    style: Style
    points: dict[int, Estimate]


def curve_chart(curves: Sequence[Curve], measure: str, largest: float | None) -> Element:
    """Means and intervals over the number of shots; `largest` is the upper bound of the measure, if it has one.

    For a single number of shots, the configurations are listed below each other.
    """
    shots = sorted({n for curve in curves for n in curve.points})
    estimates = [estimate for curve in curves for estimate in curve.points.values()]
    ends = [end for estimate in estimates for end in (estimate.mean, estimate.low, estimate.high)]
    scale = _Scale.of([end for end in ends if not math.isnan(end)], largest)
    if len(shots) == 1:
        return _rows(curves, shots[0], scale, measure)
    drawing = _svg(WIDTH, HEIGHT, f"{measure} over the number of labelled cases")
    drawing.extend(_y_axis(scale, measure))
    drawing.extend(_x_axis(shots))
    for number, curve in enumerate(curves):
        nudge = (number - (len(curves) - 1) / 2) * min(5.0, 30 / max(len(curves), 1))
        drawing.append(_curve(curve, shots, scale, nudge, measure))
    return drawing


def box_chart(boxes: Sequence[tuple[str, Style, Sequence[float]]], title: str) -> Element:
    """Box plots of values in [0, 1]: quartiles, whiskers (at most 1.5 interquartile ranges), and outliers."""
    height = len(boxes) * ROW + 28
    drawing = _svg(WIDTH, height, title)
    left, right = NAME_WIDTH, WIDTH - RIGHT
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * (right - left)
        drawing.append(element("line", {"class": "grid", "x1": x, "x2": x, "y1": 4, "y2": height - 22}))
        drawing.append(
            element("text", {"class": "tick", "x": x, "y": height - 7, "text-anchor": "middle"}, f"{tick:g}")
        )
    for number, (name, style, values) in enumerate(boxes):
        drawing.append(_box(name, style, np.asarray(values, dtype=np.float64), 4 + (number + 0.5) * ROW, left, right))
    return drawing


def marker(style: Style, x: float, y: float, size: float = 4.0) -> Element:
    """The marker of a configuration: a dot, square, triangle or diamond."""
    shape = style.index % SHAPES
    if shape == 0:
        return element("circle", {"class": "mark", "cx": x, "cy": y, "r": size})
    corners = {
        1: [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        2: [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        3: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    }[shape]
    points = " ".join(f"{x + size * dx:.4g},{y + size * dy:.4g}" for dx, dy in corners)
    return element("polygon", {"class": "mark", "points": points})


def swatch(style: Style) -> Element:
    """The line and marker of a configuration, for the legend."""
    line = element("line", {"class": "curve", "x1": 1, "x2": 27, "y1": 7, "y2": 7, "stroke-dasharray": style.dash})
    return element(
        "svg",
        {"class": f"swatch {style.colour}", "viewBox": "0 0 28 14", "width": 28, "height": 14, "aria-hidden": "true"},
        line,
        marker(style, 14, 7),
    )


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    step: float

    @classmethod
    def of(cls, values: Sequence[float], largest: float | None) -> _Scale:
        """A scale with round ends around the values and four to seven steps; it starts at 0 without an upper bound."""
        if not values:
            return cls(0.0, largest or 1.0, (largest or 1.0) / 5)
        bottom, top = (min(values), max(values)) if largest else (0.0, max(max(values), 1e-6))
        step = _round_step(max(top - bottom, 0.05 if largest else 0.0) / 5)
        low, high = math.floor(bottom / step + 1e-9) * step, math.ceil(top / step - 1e-9) * step
        if largest:
            low, high = max(low, 0.0), min(high, largest)
        if high <= low:  # all values are the same round number
            low, high = (low - step, high) if high == largest else (low, low + step)
        return cls(low, high, step)

    def ticks(self) -> list[float]:
        return [self.low + k * self.step for k in range(round((self.high - self.low) / self.step) + 1)]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.share(value) * (HEIGHT - TOP - BOTTOM)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _svg(width: int, height: int, title: str) -> Element:
    return element("svg", {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": title})


def _y_axis(scale: _Scale, measure: str) -> list[Element]:
    axis = []
    for tick in scale.ticks():
        y = scale.y(tick)
        axis.append(element("line", {"class": "grid", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": y, "y2": y}))
        text: Attributes = {"class": "tick", "x": LEFT - 6, "y": y + 4, "text-anchor": "end"}
        axis.append(element("text", text, f"{round(tick, 6):g}"))
    return axis


def _x_axis(shots: Sequence[int]) -> list[Element]:
    ticks = [
        element(
            "text", {"class": "tick", "x": _x(n, shots), "y": HEIGHT - BOTTOM + 17, "text-anchor": "middle"}, str(n)
        )
        for n in shots
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    title = element("text", {"class": "axis", "x": middle, "y": HEIGHT - 5, "text-anchor": "middle"}, "labelled cases")
    return [*ticks, title]


def _x(n: int, shots: Sequence[int]) -> float:
    first, last = math.log2(shots[0]), math.log2(shots[-1])
    left, right = LEFT + 26, WIDTH - RIGHT - 26
    return (left + right) / 2 if first == last else left + (math.log2(n) - first) / (last - first) * (right - left)


def _curve(curve: Curve, shots: Sequence[int], scale: _Scale, nudge: float, measure: str) -> Element:
    group = element("g", {"class": curve.style.colour})
    places = [(_x(n, shots) + nudge, point, n) for n, point in sorted(curve.points.items())]
    for x, point, _ in places:
        if not math.isnan(point.low):
            bar: Attributes = {"class": "bar", "x1": x, "x2": x, "y1": scale.y(point.low), "y2": scale.y(point.high)}
            group.append(element("line", bar))
    path = " ".join(f"{x:.4g},{scale.y(point.mean):.4g}" for x, point, _ in places)
    group.append(element("polyline", {"class": "curve", "points": path, "stroke-dasharray": curve.style.dash}))
    for x, point, n in places:
        title = element("title", None, _tooltip(curve, n, measure))
        group.append(element("g", None, title, marker(curve.style, x, scale.y(point.mean))))
    return group


def _rows(curves: Sequence[Curve], shots: int, scale: _Scale, measure: str) -> Element:
    """Mean and interval of each configuration, one per row."""
    height = len(curves) * ROW + 28
    drawing = _svg(WIDTH, height, f"{measure} with {shots} labelled")
    left, right = NAME_WIDTH, WIDTH - RIGHT

    def x(value: float) -> float:
        return left + scale.share(value) * (right - left)

    for tick in scale.ticks():
        drawing.append(element("line", {"class": "grid", "x1": x(tick), "x2": x(tick), "y1": 4, "y2": height - 22}))
        text: Attributes = {"class": "tick", "x": x(tick), "y": height - 7, "text-anchor": "middle"}
        drawing.append(element("text", text, f"{round(tick, 6):g}"))
    for number, curve in enumerate(curves):
        point, y = curve.points[shots], 4 + (number + 0.5) * ROW
        row = element("g", {"class": curve.style.colour}, element("title", None, _tooltip(curve, shots, measure)))
        row.append(_name(curve.name, left, y))
        if not math.isnan(point.low):
            row.append(element("line", {"class": "bar", "x1": x(point.low), "x2": x(point.high), "y1": y, "y2": y}))
        row.append(marker(curve.style, x(point.mean), y))
        drawing.append(row)
    return drawing


def _tooltip(curve: Curve, shots: int, measure: str) -> str:
    point = curve.points[shots]
    ends = "" if math.isnan(point.low) else f" [{point.low:.3f}, {point.high:.3f}]"
    return f"{curve.name}, {shots} labelled: {measure} {point.mean:.3f}{ends}"


def _name(name: str, left: float, y: float) -> Element:
    """The name of a configuration in front of its row."""
    short = name if len(name) <= 19 else f"{name[:18]}…"
    return element("text", {"class": "name", "x": left - 8, "y": y + 4, "text-anchor": "end"}, short)


def _box(name: str, style: Style, values: np.ndarray, y: float, left: float, right: float) -> Element:
    group = element("g", {"class": style.colour}, element("title", None, name), _name(name, left, y))
    if not len(values):
        return group
    q1, middle, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    near = values[(values >= q1 - 1.5 * (q3 - q1)) & (values <= q3 + 1.5 * (q3 - q1))]
    x = [left + float(value) * (right - left) for value in (near.min(), q1, middle, q3, near.max())]
    group.append(element("line", {"class": "bar", "x1": x[0], "x2": x[4], "y1": y, "y2": y}))
    box: Attributes = {"class": "box", "x": x[1], "y": y - 6, "width": max(x[3] - x[1], 1.0), "height": 12, "rx": 1.5}
    group.append(element("rect", box))
    group.append(element("line", {"class": "median", "x1": x[2], "x2": x[2], "y1": y - 6, "y2": y + 6}))
    for value in np.unique(np.round(values[(values < near.min()) | (values > near.max())], 3)):
        place = left + float(value) * (right - left)
        group.append(element("circle", {"class": "mark", "cx": place, "cy": y, "r": 1.8}))
    group[0].text = f"{name}: median {middle:.3f}, quartiles {q1:.3f} and {q3:.3f}, {counted(len(values), 'value')}"
    return group
