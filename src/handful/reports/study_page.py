"""The report of a study as one HTML file with its pictures and charts; it loads nothing from the network."""

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
from handful.jobs.plain_text import counted
from handful.reports.charts import Curve, Style, box_chart, curve_chart, swatch
from handful.reports.markup import Content, Element, card, element, page, paragraph
from handful.reports.page_style import STYLE

WORST = 2
"""Number of pictures per configuration and data set."""
MOST_FAILURES = 30
"""Maximum number of missed and false positive labels that are listed."""
SIGNIFICANT = 0.05
FEW = (1, 2, 4)
"""Numbers of charts that are placed two in a line; others are placed three in a line."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content-Security-Policy that makes the browser load nothing but what is in the file."""


def write_html(study: Study, path: Path) -> None:
    """Write the report: summary, curves, tables, tests, box plots, worst cases, failures, costs and provenance."""
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
        ("decisions", "What the fits decided", _decisions(study)),
        ("origin", "Provenance", _provenance(study)),
    ]
    filled = [(key, title, content) for key, title, content in sections if content] if study.results else sections[-1:]
    links = [element("a", {"href": f"#{key}"}, title) for key, title, _ in filled]
    body = element("body", None, _header(study), element("nav", None, element("div", None, *links)))
    main = element("main")
    for key, title, content in filled:
        main.append(element("section", {"id": key}, element("h2", None, title), *content))
    body.extend([main, _footer()])
    write_atomically(path, page(f"{study.title} · handful", STYLE, body, POLICY))


def _header(study: Study) -> Element:
    header = element("header", None, element("h1", None, study.title))
    if not study.results:
        header.append(paragraph("Nothing has been measured yet."))
        return header
    header.append(paragraph(_design(study)))
    for note in _notes(study):
        header.append(element("p", {"class": "note"}, note))
    header.append(element("div", {"class": "cards"}, *_counts(study)))
    header.append(element("div", {"class": "cards wide"}, *[_winner(study, name) for name in study.data_sets]))
    return header


def _design(study: Study) -> str:
    shots = sorted({row.shots for row in study.results})
    splits = len({row.split for row in study.results})
    backbones = ", ".join(dict.fromkeys(row.backbone for row in study.results))
    return (
        f"Each configuration was fitted on {_listed(shots)} labelled {'case' if shots == [1] else 'cases'} "
        f"({counted(splits, 'random split')}), and tested on cases of other patients. "
        f"Backbone: {backbones}."
    )


def _notes(study: Study) -> list[str]:
    notes = []
    if study.done < study.trials:
        notes.append(
            f"Not complete: {study.done} of {counted(study.trials, 'fit')} done. Run the same command again to resume."
        )
    if study.annotators:
        names = ", ".join(name for name in study.configurations if name in study.annotators)
        notes.append(
            f"Dashed: {names}. Their prompts come from a simulated annotator, who uses the reference of every "
            "slice. They are upper bounds for that amount of work, not automatic results."
        )
    digests = {(row.backbone, row.backbone_sha256) for row in study.results}
    if len(digests) > len({row.backbone for row in study.results}):
        notes.append("Mixed: the fits used different weights of the same backbone. See Provenance.")
    if len({row.handful for row in study.results}) > 1:
        notes.append("Mixed: the fits were made by several versions of handful. See Provenance.")
    return notes


def _counts(study: Study) -> list[Element]:
    scans = {(row.data_set, row.configuration, row.shots, row.split, row.case): row.predict_s for row in study.results}
    fits = {(row.data_set, row.configuration, row.shots, row.split): row.fit_s for row in study.results}
    status = Counter(row.status for row in study.results)
    present = status["missed"] + status["scored"]
    seconds = sum(scans.values()) + sum(fits.values())
    return [
        card(
            f"{len(study.configurations)}",
            "configuration" if len(study.configurations) == 1 else "configurations",
            soft=True,
        ),
        card(f"{len(fits):,}", "fits", soft=True),
        card(f"{len(scans):,}", "scans segmented", soft=True),
        card(
            f"{status['missed'] / present:.1%}" if present else "–", f"labels missed ({status['missed']:,})", soft=True
        ),
        card(f"{status['false_positive']:,}", "false positive labels", soft=True),
        card(_duration(seconds), "computing time", soft=True),
    ]


def _winner(study: Study, data_set: str) -> Element:
    """The best configuration with the most labelled cases that all configurations have, and with the fewest."""
    best_of = element("div", {"class": "card wide"}, element("span", {"class": "soft"}, data_set))
    most, fewest = study.shared_shots(data_set), study.shots_of(data_set)[0]
    title = TITLES[study.main]
    for place, shots in enumerate(dict.fromkeys((most, fewest))):
        ranking = study.ranking(data_set, shots)
        if not ranking:
            continue
        configuration, best = ranking[0]
        if place == 0:
            best_of.append(element("b", None, f"{configuration} {best.mean:.3f}"))
            second = f"; next {ranking[1][0]} {ranking[1][1].mean:.3f}" if len(ranking) > 1 else ""
            best_of.append(paragraph(f"{title} with {shots} labelled, {_interval(best)}{second}"))
        else:
            best_of.append(paragraph(f"With {shots} labelled: {configuration} {best.mean:.3f}"))
    if sentence := _matched(study, data_set):
        best_of.append(paragraph(sentence))
    return best_of


def _matched(study: Study, data_set: str) -> str:
    """The number of labelled cases that is enough to reach the U-Net with its most labelled cases."""
    for match in reversed(study.matches(data_set)):
        reached = {configuration: n for configuration, n in match.needed.items() if n is not None}
        if reached:
            fewest = min(reached.values())
            configurations = ", ".join(configuration for configuration, n in reached.items() if n == fewest)
            cases = "1 labelled case is" if fewest == 1 else f"{fewest} labelled cases are"
            target = f"{match.baseline} with {match.shots} labelled ({match.score:.3f})"
            return f"{cases} enough for {configurations} to match {target}"
    return ""


def _curves(study: Study, styles: dict[str, Style]) -> list[Content]:
    legend = [
        element("li", None, swatch(styles[configuration]), configuration) for configuration in study.configurations
    ]
    content: list[Content] = [
        paragraph(
            "Means over test cases and splits. Bars are 95 % t intervals over the splits; one split has none. The "
            "score of a case is the mean over its labels. A missed or false positive label counts as 0, in distances "
            "as the diagonal of the image.",
            soft=True,
        ),
        element("ul", {"class": "legend"}, *legend),
    ]
    if len(study.data_sets) == 1:  # the measures side by side
        (name,) = study.data_sets
        charts = [
            _chart(study, name, measure, styles, _with_unit(study.results, measure)) for measure in study.measures
        ]
        return [*content, _grid(charts)]
    for measure in study.measures:
        content.append(element("h3", None, _with_unit(study.results, measure)))
        content.append(_grid([_chart(study, name, measure, styles, name) for name in study.data_sets]))
    return content


def _grid(charts: Sequence[Element]) -> Element:
    return element("div", {"class": "charts few" if len(charts) in FEW else "charts"}, *charts)


def _chart(study: Study, data_set: str, measure: str, styles: dict[str, Style], caption: str) -> Element:
    curves = []
    for configuration in study.configurations_of(data_set):
        estimates = {n: study.estimate(data_set, configuration, n, measure) for n in study.shots_of(data_set)}
        points = {n: estimate for n, estimate in estimates.items() if estimate is not None}
        if points:
            curves.append(Curve(configuration, styles[configuration], points))
    largest = 1.0 if measure in LARGER_IS_BETTER else None
    drawing = curve_chart(curves, TITLES[measure], largest) if curves else paragraph("no scores")
    return element("figure", None, element("figcaption", None, caption), drawing)


def _tables(study: Study) -> list[Content]:
    content: list[Content] = []
    for data_set in study.data_sets:
        content.append(element("h3", None, data_set))
        tables = [_score_table(study, data_set, measure) for measure in study.measures]
        content.append(element("div", {"class": "pair"}, *tables))
    return content


def _score_table(study: Study, data_set: str, measure: str) -> Element:
    shots = study.shots_of(data_set)
    of_set = [row for row in study.results if row.data_set == data_set]
    heads = [_with_unit(of_set, measure), *[f"{n} labelled" for n in shots]]
    best = {n: _best(study, data_set, n, measure) for n in shots}
    rows = []
    for configuration in study.configurations_of(data_set):
        cells: list[Element] = []
        for n in shots:
            estimate = study.estimate(data_set, configuration, n, measure)
            if estimate is None:
                cells.append(element("td", None, "–"))
                continue
            kind = {"class": "best"} if configuration == best[n] else None
            interval = element("small", None, _interval(estimate, measure))
            cells.append(element("td", kind, _number(estimate.mean, measure), interval))
        rows.append(element("tr", None, element("th", {"scope": "row"}, configuration), *cells))
    return _table(heads, rows)


def _best(study: Study, data_set: str, shots: int, measure: str) -> str | None:
    """The automatic configuration with the best mean."""
    means = {
        configuration: estimate.mean
        for configuration in study.configurations_of(data_set)
        if configuration not in study.annotators
        and (estimate := study.estimate(data_set, configuration, shots, measure)) is not None
    }
    if not means:
        return None
    pick = max if measure in LARGER_IS_BETTER else min
    return pick(means, key=lambda configuration: means[configuration])


def _tests(study: Study) -> list[Content]:
    if len(study.configurations) < 2:
        return []
    content: list[Content] = [
        paragraph(
            f"{TITLES[study.main]} of the row minus that of the column, over the splits and cases that both have "
            "segmented. Below: p of Wilcoxon's signed-rank test over cases (a case in several splits counts once, with "
            f"its mean) after Holm's correction for all pairs of the table. Shaded: p below {SIGNIFICANT}, which needs "
            "at least six cases. Point at a figure for its 95 % t interval over splits. Configurations with a "
            "simulated annotator are compared among themselves.",
            soft=True,
        )
    ]
    for data_set in study.data_sets:
        for family in study.comparisons(data_set):
            numbers = sorted({pair.n for pair in family})
            n = counted(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} cases"
            content.append(element("h3", None, f"{data_set}, {study.shared_shots(data_set)} labelled, {n}"))
            content.append(_matrix(family))
    return content


def _matrix(family: Sequence[Comparison]) -> Element:
    configurations = list(dict.fromkeys(name for pair in family for name in (pair.first, pair.second)))
    by_pair = {(pair.first, pair.second): pair for pair in family}
    rows = []
    for first in configurations[:-1]:
        cells = []
        for second in configurations[1:]:
            pair = by_pair.get((first, second))
            if pair is None:
                cells.append(element("td"))
                continue
            shading = {"class": "sure"} if pair.p_holm < SIGNIFICANT else {}
            uncorrected = "" if math.isnan(pair.p) else f", p = {pair.p:.3g} uncorrected"
            details = f"{first} minus {second}: {counted(pair.n)}, {_range(pair.difference)}{uncorrected}"
            p = element("small", None, _p(pair.p_holm))
            cells.append(element("td", {**shading, "title": details}, _signed(pair.difference.mean), p))
        rows.append(element("tr", None, element("th", {"scope": "row"}, first), *cells))
    return _table(["", *configurations[1:]], rows, "matrix")


def _boxes(study: Study, styles: dict[str, Style]) -> list[Content]:
    content: list[Content] = [
        paragraph(
            "Dice of each label, one value per case and split, for the largest number of labelled cases at which most "
            "configurations were measured: median, quartiles, whiskers to the last value within 1.5 times the "
            "interquartile range, and outliers as dots. Cases without the label are left out.",
            soft=True,
        )
    ]
    for data_set in study.data_sets:
        shots = study.shared_shots(data_set)
        content.append(element("h3", None, f"{data_set}, {shots} labelled"))
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
        content.append(_grid(charts))
    return content


def _gallery(study: Study, styles: dict[str, Style]) -> list[Content]:
    content: list[Content] = []
    for data_set in study.data_sets:
        cards = [
            _picture(picture, styles[configuration])
            for configuration in study.configurations_of(data_set)
            for picture in _worst(
                [p for p in study.pictures if (p.data_set, p.configuration) == (data_set, configuration)]
            )
        ]
        if cards:
            content += [element("h3", None, data_set), element("div", {"class": "gallery"}, *cards)]
    if content:
        text = (
            "The worst cases of each configuration, on the slice where prediction (filled) and reference (dashed "
            "white) differ most. The pictures show patients: protect this page like their scans."
        )
        content.insert(0, paragraph(text, soft=True))
    return content


def _worst(pictures: Iterable[Picture]) -> list[Picture]:
    """The pictures with the lowest Dice, one per case, for the largest number of shots that has pictures."""
    ranked = sorted(pictures, key=lambda picture: (-picture.shots, picture.dice))
    by_case = {picture.case: picture for picture in reversed(ranked) if picture.shots == ranked[0].shots}
    return sorted(by_case.values(), key=lambda picture: picture.dice)[:WORST]


def _picture(picture: Picture, style: Style) -> Element:
    source = "data:image/webp;base64," + base64.b64encode(picture.webp).decode()
    text = f"{picture.configuration}, case {picture.case}: prediction and reference"
    image = element("img", {"src": source, "alt": text})
    dot = element("span", {"class": f"dot {style.colour}"})
    where = element("span", {"class": "soft"}, f"{picture.case}, split {picture.split}, {picture.shots} labelled")
    score = f"{picture.configuration}: Dice {picture.dice:.2f}"
    return element("figure", None, image, element("figcaption", None, dot, score, element("br"), where))


def _failures(study: Study) -> list[Content]:
    content: list[Content] = [_failure_counts(study)]
    for failure in study.failed:
        content.insert(0, element("p", {"class": "note"}, f"Fit failed: {failure.case}. {failure.reason}"))
    reasons = {(r.configuration, r.data_set, r.case, r.shots, r.split): r.failure for r in study.results if r.failure}
    for (configuration, data_set, case, shots, split), reason in list(reasons.items())[:MOST_FAILURES]:
        where = f"{configuration}, {data_set}, {shots} labelled, split {split}, case {case}"
        content.append(element("p", {"class": "note"}, f"Not segmented: {where}. {reason}"))
    if len(reasons) > MOST_FAILURES:
        content.append(paragraph(f"And {len(reasons) - MOST_FAILURES} more not segmented; all are in results.csv."))
    listed = [
        row
        for row in study.results
        if row.status in ("missed", "false_positive") and row.shots == study.shared_shots(row.data_set)
    ]
    if not listed:
        return content
    listed.sort(key=lambda row: -max(row.reference_volume, row.predicted_volume))
    text = "The largest ones, for the largest number of labelled cases at which most configurations were measured:"
    content.append(paragraph(text, soft=True))
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
    content.append(_table(["configuration", "data set", "case", "label", "kind", "size", "split"], rows, texts=5))
    if len(listed) > MOST_FAILURES:
        content.append(paragraph(f"And {len(listed) - MOST_FAILURES} more; all are in results.csv.", soft=True))
    return content


def _failure_counts(study: Study) -> Element:
    """Numbers of missed and false positive labels: one row per configuration, one column per data set."""
    rows = []
    for configuration in study.configurations:
        cells = []
        for data_set in study.data_sets:
            of_configuration = [
                row.status for row in study.results if (row.configuration, row.data_set) == (configuration, data_set)
            ]
            missed, present = (
                of_configuration.count("missed"),
                of_configuration.count("missed") + of_configuration.count("scored"),
            )
            counts = f"{missed} of {present}" if of_configuration else "–"
            false_positive = (
                element("small", None, f"{of_configuration.count('false_positive')} false positive")
                if of_configuration
                else None
            )
            cells.append(element("td", None, counts, false_positive))
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
    text = (
        f"Times are medians. Memory is the maximum over all fits with their predictions. Measured on {devices}; other "
        "programs may have run at the same time."
    )
    heads = ["data set", "configuration", "labelled", "fit, s", "one case, s", "peak, MiB"]
    return [paragraph(text, soft=True), _table(heads, rows, texts=2)]


def _decisions(study: Study) -> list[Content]:
    """One row per fit of the first split with the most labelled cases."""
    rows = []
    for fit in study.decisions:
        if fit.shots == study.shared_shots(fit.data_set) and fit.split == min(row.split for row in study.results):
            texts = [element("td", {"class": "text"}, part) for part in (fit.data_set, fit.configuration)]
            sentences = element("td", {"class": "long"}, *[element("div", None, part) for part in fit.sentences])
            rows.append(element("tr", None, *texts, sentences))
    return [_table(["data set", "configuration", "decisions"], rows, texts=3)] if rows else []


def _provenance(study: Study) -> list[Content]:
    content: list[Content] = []
    if study.command:
        content += [paragraph("Command"), element("pre", None, study.command)]
    if not study.results:
        return content or [paragraph("The command was not recorded.")]
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
    content.append(_table(["configuration", "method", "backbone", "settings"], rows, texts=4))
    digests = sorted({(row.backbone, row.backbone_sha256) for row in study.results})
    versions = ", ".join(sorted({row.handful for row in study.results}))
    content.append(paragraph(f"handful {versions}. SHA-256 of the weights:"))
    content.append(element("pre", None, "\n".join(f"{digest}  {name}" for name, digest in digests)))
    content.append(
        paragraph("The labelled cases and the seed of each fit, and all scores, are in results.csv in the same folder.")
    )
    return content


def _footer() -> Element:
    text = "Not a medical device. A qualified person must check every result before it is used."
    return element("footer", {"class": "soft"}, text)


def _table(heads: Sequence[str], rows: Sequence[Element], kind: str = "", texts: int = 1) -> Element:
    """A table whose first `texts` columns are left-aligned text; the others are numbers."""
    top = [
        element("th", {"scope": "col", **({"class": "text"} if column < texts else {})}, head)
        for column, head in enumerate(heads)
    ]
    table = element("table", {"class": kind} if kind else None, element("thead", None, element("tr", None, *top)))
    table.append(element("tbody", None, *rows))
    return element("div", {"class": "scroll"}, table)


def _with_unit(rows: Sequence[Result], measure: str) -> str:
    """The name of the measure, for distances with their unit, for the surface Dice with its tolerance."""
    units = " or ".join(sorted({row.unit for row in rows}))
    if measure in ("hd95", "assd"):
        return f"{TITLES[measure]}, {units}"
    if measure == "surface_dice":
        return f"{TITLES[measure]} at {', '.join(sorted({f'{row.tolerance:g}' for row in rows}))} {units}"
    return TITLES[measure]


def _number(value: float, measure: str) -> str:
    return f"{value:.3f}" if measure in LARGER_IS_BETTER else f"{value:.1f}"


def _interval(estimate: Estimate, measure: str = "dice") -> str:
    if math.isnan(estimate.low):
        return "one split"
    return f"[{_number(estimate.low, measure)}, {_number(estimate.high, measure)}]"


def _range(difference: Estimate) -> str:
    if math.isnan(difference.mean):
        return "nothing to compare"
    if math.isnan(difference.low):
        return "one split"
    return f"95 % interval {_signed(difference.low)} to {_signed(difference.high)}"


def _signed(difference: float) -> str:
    return "–" if math.isnan(difference) else f"{difference:+.3f}".replace("-", "−")


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
