"""Charts show each configuration's mean where it belongs, over several numbers of labelled cases or beside its name."""

from handful.evaluation.evaluate import Estimate
from handful.reports.charts import Curve, Style, curve_chart


def curve(name: str, index: int, points: dict[int, float]) -> Curve:
    return Curve(name, Style(index), {n: Estimate(mean, 0.1, mean - 0.05, mean + 0.05) for n, mean in points.items()})


def test_configurations_with_a_single_number_of_labels_stand_below_each_other():
    configurations = [curve("one", 0, {4: 0.5}), curve("a name that is far too long", 4, {4: 0.7})]
    drawing = curve_chart(configurations, "Dice", 1.0)
    names = [text for text in drawing.iter("text") if text.get("class") == "name"]
    assert [text.text for text in names] == ["one", "a name that is far…"]
    dots = list(drawing.iter("circle"))
    assert float(dots[0].get("cx", "")) < float(dots[1].get("cx", ""))
    assert float(dots[0].get("cy", "")) < float(dots[1].get("cy", ""))
    said = [title.text for title in drawing.iter("title")]
    assert said[0] == "one, 4 labelled: Dice 0.500 [0.450, 0.550]"
    bars = [line for line in drawing.iter("line") if line.get("class") == "bar"]
    for bar, dot in zip(bars, dots, strict=True):
        assert float(bar.get("x1", "")) < float(dot.get("cx", "")) < float(bar.get("x2", ""))


def test_several_numbers_of_labels_make_one_curve_per_configuration():
    drawing = curve_chart([curve("one", 0, {1: 0.5, 4: 0.7}), curve("two", 4, {4: 0.6})], "Dice", 1.0)
    assert not [text for text in drawing.iter("text") if text.get("class") == "name"]
    assert len(list(drawing.iter("polyline"))) == 2
    first, second, _ = (float(dot.get("cy", "")) for dot in drawing.iter("circle"))
    assert second < first, "better is higher"


def test_an_axis_ends_at_the_largest_value_that_is_possible():
    perfect = Estimate(1.0, 0.0, 1.0, 1.0)
    drawing = curve_chart([Curve("one", Style(0), {1: perfect, 4: perfect})], "Dice", 1.0)
    ticks = [float(text.text or "") for text in drawing.iter("text") if text.get("text-anchor") == "end"]
    assert min(ticks) < max(ticks) == 1.0
