"""A study as one HTML file to look at: it holds its pictures and charts, and asks nothing of the network."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from handful.evaluation.evaluate import Estimate
from handful.evaluation.results import LARGER_IS_BETTER, TITLES, Result
from handful.evaluation.statistics import Comparison
from handful.evaluation.study import Picture, Study
from handful.jobs.atomic import write_atomically
from handful.reports.charts import Curve, Style, box_chart, curve_chart, swatch
from handful.reports.markup import Content, Element, card, element, page, paragraph
from handful.reports.page_style import STYLE

WORST = 2
"""Pictures of a configuration on a data set."""
MOST_FAILURES = 30
"""Missed and false positive labels that are listed one by one."""
SURE = 0.05
FEW = (1, 2, 4)
"""Charts that stand two in a line; others three."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Told to the browser: it loads nothing, whatever the file says."""


def write_html(study: Study, path: Path) -> None:
    """The report of a study: cards, curves, tables, tests, boxes, worst cases, failures, costs, and its origin."""
    styles = {
        configuration: Style(index, configuration in study.annotators)
        for index, configuration in enumerate(study.configurations)
    }
    sections = [
        ("curves", "Labels and scores", _curves(study, styles)),
        ("table", "All scores", _tables(study)),
        ("tests", "Differences", _tests(study)),
        ("labels", "Label by label", _boxes(study, styles)),
        ("worst", "Worst cases", _gallery(study, styles)),
        ("failures", "Missed and false positive", _failures(study)),
        ("cost", "Time and memory", _costs(study)),
        ("origin", "Origin", _origin(study)),
    ]
    shown = [(key, title, content) for key, title, content in sections if content] if study.results else sections[-1:]
    links = [element("a", {"href": f"#{key}"}, title) for key, title, _ in shown]
    body = element("body", None, _header(study), element("nav", None, element("div", None, *links)))
    main = element("main")
    for key, title, content in shown:
        main.append(element("section", {"id": key}, element("h2", None, title), *content))
    body.extend([main, _footer()])
    write_atomically(path, page(f"{study.title} · handful", STYLE, body, POLICY))


def _header(study: Study) -> Element:
    made = element("header", None, element("h1", None, study.title))
    if not study.results:
        made.append(paragraph("Nothing has been measured yet."))
        return made
    made.append(paragraph(_what_was_done(study)))
    for note in _notes(study):
        made.append(element("p", {"class": "note"}, note))
    made.append(element("div", {"class": "cards"}, *_counts(study)))
    made.append(element("div", {"class": "cards wide"}, *[_winner(study, name) for name in study.data_sets]))
    return made


def _what_was_done(study: Study) -> str:
    shots = sorted({row.shots for row in study.results})
    splits = len({row.split for row in study.results})
    backbones = ", ".join(dict.fromkeys(row.backbone for row in study.results))
    return (
        f"Each configuration learned from {_listed(shots)} labelled {'case' if shots == [1] else 'cases'}, chosen at "
        f"random {'once' if splits == 1 else f'{splits} times'}, and then segmented cases of other patients. "
        f"Backbone: {backbones}."
    )


def _notes(study: Study) -> list[str]:
    notes = []
    if study.done < study.trials:
        notes.append(f"Not complete: {study.done} of {study.trials} fits are done. The same command goes on from here.")
    if study.annotators:
        names = ", ".join(configuration for configuration in study.configurations if configuration in study.annotators)
        notes.append(
            f"Dashed: {names}. Their prompts come from a simulated annotator who sees the reference of every "
            "slice: an upper bound for that much work, not an automatic result."
        )
    digests = {(row.backbone, row.backbone_sha256) for row in study.results}
    if len(digests) > len({row.backbone for row in study.results}):
        notes.append("Mixed: some backbone had other weights in some fits. See Origin.")
    if len({row.handful for row in study.results}) > 1:
        notes.append("Mixed: the fits were made by several versions of handful. See Origin.")
    return notes


def _counts(study: Study) -> list[Element]:
    scans = {(row.data_set, row.configuration, row.shots, row.split, row.case): row.predict_s for row in study.results}
    fits = {(row.data_set, row.configuration, row.shots, row.split): row.fit_s for row in study.results}
    status = Counter(row.status for row in study.results)
    asked = status["missed"] + status["scored"]
    seconds = sum(scans.values()) + sum(fits.values())
    return [
        card(
            f"{len(study.configurations)}",
            "configuration" if len(study.configurations) == 1 else "configurations",
            soft=True,
        ),
        card(f"{len(fits):,}", "fits", soft=True),
        card(f"{len(scans):,}", "scans segmented", soft=True),
        card(f"{status['missed'] / asked:.1%}" if asked else "–", f"labels missed ({status['missed']:,})", soft=True),
        card(f"{status['false_positive']:,}", "false positive labels", soft=True),
        card(_duration(seconds), "computing time", soft=True),
    ]


def _winner(study: Study, data_set: str) -> Element:
    """Who is best with the most labels at which all can be compared, and with the fewest."""
    made = element("div", {"class": "card wide"}, element("span", {"class": "soft"}, data_set))
    most, fewest = study.shared_shots(data_set), study.shots_of(data_set)[0]
    title = TITLES[study.main]
    for place, shots in enumerate(dict.fromkeys((most, fewest))):
        ranking = study.ranking(data_set, shots)
        if not ranking:
            continue
        configuration, best = ranking[0]
        if place == 0:
            made.append(element("b", None, f"{configuration} {best.mean:.3f}"))
            second = f"; next {ranking[1][0]} {ranking[1][1].mean:.3f}" if len(ranking) > 1 else ""
            made.append(paragraph(f"{title} with {shots} labelled, {_interval(best)}{second}"))
        else:
            made.append(paragraph(f"With {shots} labelled: {configuration} {best.mean:.3f}"))
    if sentence := _matched(study, data_set):
        made.append(paragraph(sentence))
    return made


def _matched(study: Study, data_set: str) -> str:
    """What a user needs to know: how many labels do for what a U-Net needs many for."""
    for match in reversed(study.matches(data_set)):
        reached = {configuration: n for configuration, n in match.needed.items() if n is not None}
        if reached:
            fewest = min(reached.values())
            configurations = ", ".join(configuration for configuration, n in reached.items() if n == fewest)
            target = f"{match.baseline} with {match.shots} labelled ({match.score:.3f})"
            return f"To match {target}: {fewest} for {configurations}"
    return ""


def _curves(study: Study, styles: dict[str, Style]) -> list[Content]:
    legend = [
        element("li", None, swatch(styles[configuration]), configuration) for configuration in study.configurations
    ]
    made: list[Content] = [
        paragraph(
            "Means over unseen cases and splits. A bar is the 95 % bootstrap interval: splits are drawn again, and the "
            "cases within each. A case's score is the mean over its labels; a missed or false positive label counts as "
            "0, in distances as the diagonal of the image.",
            soft=True,
        ),
        element("ul", {"class": "legend"}, *legend),
    ]
    if len(study.data_sets) == 1:  # the measures side by side
        (name,) = study.data_sets
        made.append(_grid([_chart(study, name, one, styles, _with_unit(study.results, one)) for one in study.measures]))
        return made
    for measure in study.measures:
        made.append(element("h3", None, _with_unit(study.results, measure)))
        made.append(_grid([_chart(study, name, measure, styles, name) for name in study.data_sets]))
    return made


def _grid(charts: Sequence[Element]) -> Element:
    return element("div", {"class": "charts few" if len(charts) in FEW else "charts"}, *charts)


def _chart(study: Study, data_set: str, measure: str, styles: dict[str, Style], caption: str) -> Element:
    curves = []
    for configuration in study.configurations_of(data_set):
        found = {n: study.estimate(data_set, configuration, n, measure) for n in study.shots_of(data_set)}
        points = {n: one for n, one in found.items() if one is not None}
        if points:
            curves.append(Curve(configuration, styles[configuration], points))
    largest = 1.0 if measure in LARGER_IS_BETTER else None
    drawing = curve_chart(curves, TITLES[measure], largest) if curves else paragraph("nothing to score")
    return element("figure", None, element("figcaption", None, caption), drawing)


def _tables(study: Study) -> list[Content]:
    made: list[Content] = []
    for data_set in study.data_sets:
        made.append(element("h3", None, data_set))
        tables = [_score_table(study, data_set, measure) for measure in study.measures]
        made.append(element("div", {"class": "pair"}, *tables))
    return made


def _score_table(study: Study, data_set: str, measure: str) -> Element:
    shots = study.shots_of(data_set)
    of_set = [row for row in study.results if row.data_set == data_set]
    heads = [_with_unit(of_set, measure), *[f"{n} labelled" for n in shots]]
    best = {n: _best(study, data_set, n, measure) for n in shots}
    rows = []
    for configuration in study.configurations_of(data_set):
        cells: list[Element] = []
        for n in shots:
            one = study.estimate(data_set, configuration, n, measure)
            if one is None:
                cells.append(element("td", None, "–"))
                continue
            kind = {"class": "best"} if configuration == best[n] else None
            cells.append(
                element("td", kind, _number(one.mean, measure), element("small", None, _interval(one, measure)))
            )
        rows.append(element("tr", None, element("th", {"scope": "row"}, configuration), *cells))
    return _table(heads, rows)


def _best(study: Study, data_set: str, shots: int, measure: str) -> str | None:
    """The automatic configuration with the best mean."""
    found = {
        configuration: one.mean
        for configuration in study.configurations_of(data_set)
        if configuration not in study.annotators
        and (one := study.estimate(data_set, configuration, shots, measure)) is not None
    }
    if not found:
        return None
    pick = max if measure in LARGER_IS_BETTER else min
    return pick(found, key=lambda configuration: found[configuration])


def _tests(study: Study) -> list[Content]:
    if len(study.configurations) < 2:
        return []
    made: list[Content] = [
        paragraph(
            f"Row minus column, {TITLES[study.main]}, over the cases that both segmented; a case in several splits "
            "counts once, with its mean. Below it p of Wilcoxon's signed-rank test after Holm's correction for all "
            f"pairs of the table; shaded where it is below {SURE}, which takes six cases at least. Configurations with "
            "a simulated annotator are compared among themselves.",
            soft=True,
        )
    ]
    for data_set in study.data_sets:
        for found in study.comparisons(data_set):
            n = (
                f"{min(one.n for one in found)} cases"
                if len({one.n for one in found}) == 1
                else "cases as far as there are"
            )
            made.append(element("h3", None, f"{data_set}, {study.shared_shots(data_set)} labelled, {n}"))
            made.append(_matrix(found))
    return made


def _matrix(found: Sequence[Comparison]) -> Element:
    configurations = list(dict.fromkeys(configuration for one in found for configuration in (one.first, one.second)))
    by_pair = {(one.first, one.second): one for one in found}
    rows = []
    for first in configurations[:-1]:
        cells = []
        for second in configurations[1:]:
            one = by_pair.get((first, second))
            if one is None:
                cells.append(element("td"))
                continue
            sure = {"class": "sure"} if one.p_holm < SURE else {}
            said = f"{first} minus {second}: {one.n} cases, p = {one.p:.3g} before correction"
            p = element("small", None, _p(one.p_holm))
            cells.append(element("td", {**sure, "title": said}, _signed(one.difference.mean), p))
        rows.append(element("tr", None, element("th", {"scope": "row"}, first), *cells))
    return _table(["", *configurations[1:]], rows, "matrix")


def _boxes(study: Study, styles: dict[str, Style]) -> list[Content]:
    made: list[Content] = [
        paragraph(
            "Dice of each label, one value per case and split, with the most labels at which the configurations can "
            "be compared: median, quartiles, whiskers to the last value within 1.5 times their distance, dots beyond. "
            "Cases that lack a label are left out.",
            soft=True,
        )
    ]
    for data_set in study.data_sets:
        shots = study.shared_shots(data_set)
        made.append(element("h3", None, f"{data_set}, {shots} labelled"))
        labels = {row.label: row.name for row in study.results if row.data_set == data_set}
        charts = []
        for label, name in sorted(labels.items()):
            boxes = [
                (
                    configuration,
                    styles[configuration],
                    [r.dice for r in rows if r.label == label and r.status != "absent"],
                )
                for configuration in study.configurations_of(data_set)
                if (rows := study.rows(data_set, configuration, shots))
            ]
            drawing = box_chart(boxes, f"Dice of {name}")
            charts.append(element("figure", None, element("figcaption", None, name), drawing))
        made.append(_grid(charts))
    return made


def _gallery(study: Study, styles: dict[str, Style]) -> list[Content]:
    made: list[Content] = []
    for data_set in study.data_sets:
        cards = [
            _picture(one, styles[configuration])
            for configuration in study.configurations_of(data_set)
            for one in _worst([p for p in study.pictures if (p.data_set, p.configuration) == (data_set, configuration)])
        ]
        if cards:
            made += [element("h3", None, data_set), element("div", {"class": "gallery"}, *cards)]
    if made:
        text = (
            "Each configuration's worst cases, on the slice where prediction (colour) and reference (dashed white) "
            "differ most. The pictures show patients: share this page only where you might share their scans."
        )
        made.insert(0, paragraph(text, soft=True))
    return made


def _worst(pictures: Iterable[Picture]) -> list[Picture]:
    """The lowest scores, a case once, of the largest number of shots there are pictures of."""
    ranked = sorted(pictures, key=lambda one: (-one.shots, one.dice))
    by_case = {one.case: one for one in reversed(ranked) if one.shots == ranked[0].shots}
    return sorted(by_case.values(), key=lambda one: one.dice)[:WORST]


def _picture(one: Picture, style: Style) -> Element:
    source = "data:image/webp;base64," + base64.b64encode(one.webp).decode()
    text = f"{one.configuration}, case {one.case}: prediction and reference"
    image = element("img", {"src": source, "alt": text})
    dot = element("span", {"class": f"dot {style.colour}"})
    where = element("span", {"class": "soft"}, f"{one.case}, split {one.split}, {one.shots} labelled")
    caption = element("figcaption", None, dot, f"{one.configuration}: Dice {one.dice:.2f}", element("br"), where)
    return element("figure", None, image, caption)


def _failures(study: Study) -> list[Content]:
    made: list[Content] = [_failure_counts(study)]
    for one in study.failed:
        made.insert(0, element("p", {"class": "note"}, f"No fit: {one.case}. {one.reason}"))
    seen = {(r.configuration, r.data_set, r.case, r.shots, r.split): r.failure for r in study.results if r.failure}
    for (configuration, data_set, case, shots, split), reason in list(seen.items())[:MOST_FAILURES]:
        where = f"{configuration}, {data_set}, {shots} labelled, split {split}, case {case}"
        made.append(element("p", {"class": "note"}, f"Not segmented: {where}. {reason}"))
    listed = [
        row
        for row in study.results
        if row.status in ("missed", "false_positive") and row.shots == study.shared_shots(row.data_set)
    ]
    if not listed:
        return made
    listed.sort(key=lambda row: -max(row.reference_volume, row.predicted_volume))
    made.append(
        paragraph("The largest ones, with the most labels at which the configurations can be compared:", soft=True)
    )
    rows = [
        element(
            "tr",
            None,
            *[
                element("td", {"class": "text"}, part)
                for part in (row.configuration, row.data_set, row.case, row.name, row.status)
            ],
            element("td", None, _volume(row)),
            element("td", None, str(row.split)),
        )
        for row in listed[:MOST_FAILURES]
    ]
    made.append(_table(["configuration", "data set", "case", "label", "what", "size", "split"], rows, texts=5))
    if len(listed) > MOST_FAILURES:
        made.append(paragraph(f"And {len(listed) - MOST_FAILURES} more; all are in results.csv.", soft=True))
    return made


def _failure_counts(study: Study) -> Element:
    """Missed labels of those that are there, and false positive ones, a configuration a row and a data set a column."""
    rows = []
    for configuration in study.configurations:
        cells = []
        for data_set in study.data_sets:
            of_configuration = [
                row.status for row in study.results if (row.configuration, row.data_set) == (configuration, data_set)
            ]
            missed, there = (
                of_configuration.count("missed"),
                of_configuration.count("missed") + of_configuration.count("scored"),
            )
            said = f"{missed} of {there}" if of_configuration else "–"
            false_positive = (
                element("small", None, f"{of_configuration.count('false_positive')} false positive")
                if of_configuration
                else None
            )
            cells.append(element("td", None, said, false_positive))
        rows.append(element("tr", None, element("th", {"scope": "row"}, configuration), *cells))
    return _table(["missed, over all shots", *study.data_sets], rows)


def _costs(study: Study) -> list[Content]:
    rows = []
    for data_set in study.data_sets:
        shots = study.shared_shots(data_set)
        for configuration in study.configurations_of(data_set):
            cost = study.cost(data_set, configuration, shots)
            if cost is not None:
                figures = (_seconds(cost.fit_s), _seconds(cost.predict_s), f"{cost.peak_mib:,.0f}")
                texts = [element("td", {"class": "text"}, part) for part in (data_set, configuration)]
                rows.append(
                    element(
                        "tr", None, *texts, element("td", None, str(shots)), *[element("td", None, f) for f in figures]
                    )
                )
    devices = ", ".join(sorted({row.device for row in study.results}))
    said = (
        f"Medians; memory is the most that any fit with its predictions held. On {devices}, beside whatever else ran."
    )
    heads = ["data set", "configuration", "labelled", "fit, s", "a case, s", "peak, MiB"]
    return [paragraph(said, soft=True), _table(heads, rows, texts=2)]


def _origin(study: Study) -> list[Content]:
    made: list[Content] = []
    if study.command:
        made += [paragraph("Made by"), element("pre", None, study.command)]
    if not study.results:
        return made or [paragraph("No command was noted.")]
    configurations = {row.configuration: row for row in reversed(study.results)}
    rows = [
        element(
            "tr",
            None,
            element("th", {"scope": "row"}, configuration),
            element(
                "td",
                {"class": "text"},
                configurations[configuration].method
                + (f", {configurations[configuration].annotator}" if configurations[configuration].annotator else ""),
            ),
            element("td", {"class": "text"}, configurations[configuration].backbone),
            element("td", {"class": "long"}, element("code", None, configurations[configuration].settings)),
        )
        for configuration in study.configurations
    ]
    made.append(_table(["configuration", "method", "backbone", "settings"], rows, texts=4))
    digests = sorted({(row.backbone, row.backbone_sha256) for row in study.results})
    versions = ", ".join(sorted({row.handful for row in study.results}))
    made.append(paragraph(f"handful {versions}. Weights, SHA-256:"))
    made.append(element("pre", None, "\n".join(f"{digest}  {name}" for name, digest in digests)))
    made.append(
        paragraph(
            "Which cases each fit learned from, seeds and every single score are in results.csv beside this page."
        )
    )
    return made


def _footer() -> Element:
    text = "Not a medical device. A person must look at every result before anyone acts on it."
    return element("footer", {"class": "soft"}, text)


def _table(heads: Sequence[str], rows: Sequence[Element], kind: str = "", texts: int = 1) -> Element:
    """`texts` columns are set to the left, the others hold numbers."""
    top = [
        element("th", {"scope": "col", **({"class": "text"} if column < texts else {})}, head)
        for column, head in enumerate(heads)
    ]
    table = element("table", {"class": kind} if kind else None, element("thead", None, element("tr", None, *top)))
    table.append(element("tbody", None, *rows))
    return element("div", {"class": "scroll"}, table)


def _with_unit(rows: Sequence[Result], measure: str) -> str:
    """The measure's name; distances in what they are counted, the surface Dice with its tolerance."""
    units = " or ".join(sorted({row.unit for row in rows}))
    if measure in ("hd95", "assd"):
        return f"{TITLES[measure]}, {units}"
    if measure == "surface_dice":
        return f"{TITLES[measure]} at {', '.join(sorted({f'{row.tolerance:g}' for row in rows}))} {units}"
    return TITLES[measure]


def _number(value: float, measure: str) -> str:
    return f"{value:.3f}" if measure in LARGER_IS_BETTER else f"{value:.1f}"


def _interval(one: Estimate, measure: str = "dice") -> str:
    if math.isnan(one.low):
        return "one case"
    return f"{_number(one.low, measure)}–{_number(one.high, measure)}"


def _signed(difference: float) -> str:
    return f"{difference:+.3f}".replace("-", "−")


def _p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _volume(row: Result) -> str:
    size = max(row.reference_volume, row.predicted_volume)
    return f"{size:.3g} ml" if row.unit == "mm" else f"{size:.2%} of the image"


def _listed(numbers: Sequence[int]) -> str:
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
