"""Tables of a study for papers, in Markdown or LaTeX: scores, paired tests, and numbers of labelled cases needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from handful.evaluation.evaluate import Estimate
from handful.evaluation.results import FEATURES, LARGER_IS_BETTER, TITLES
from handful.evaluation.study import MARGIN, Study
from handful.evaluation.thirds import thirds
from handful.jobs.plain_text import counted

FEATURE_TITLES = {
    "size_share": "size of the object",
    "complexity": "complexity of its boundary",
    "contrast": "contrast",
}

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def markdown(study: Study) -> str:
    """One table per data set and measure, the tables of tests, and a note on the statistics."""
    return "\n".join(_in_markdown(table) for table in _tables(study)) + f"\n{_note(study)}\n"


def latex(study: Study) -> str:
    """The same tables as `table` environments for the booktabs package."""
    parts = [_in_latex(table) for table in _tables(study)]
    return "% needs \\usepackage{booktabs}\n\n" + "\n".join(parts) + f"\n% {_note(study)}\n"


@dataclass(frozen=True)
class _Table:
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _tables(study: Study) -> Iterator[_Table]:
    for data_set in study.data_sets:
        shots, configurations = study.shots_of(data_set), study.configurations_of(data_set)
        for measure in study.measures:
            heads = ("configuration", *[f"{n} labelled" for n in shots])
            rows = tuple(
                (configuration, *[_cell(study.estimate(data_set, configuration, n, measure), measure) for n in shots])
                for configuration in configurations
            )
            yield _Table(f"{data_set}: {TITLES[measure]}", heads, rows)
        for family in study.comparisons(data_set):
            compared = tuple(
                (
                    f"{pair.first} − {pair.second}",
                    str(pair.n),
                    _difference(pair.difference),
                    _p(pair.p),
                    _p(pair.p_holm),
                )
                for pair in family
            )
            title = f"{data_set}: differences in {TITLES[study.main]} with {study.shared_shots(data_set)} labelled"
            yield _Table(title, ("pair", "cases", "difference", "p", "p (Holm)"), compared)
        needed = tuple(
            (
                configuration,
                f"{match.baseline} with {match.shots} ({match.score:.3f})",
                str(n) if n else "more than measured",
            )
            for match in study.matches(data_set)
            for configuration, n in match.needed.items()
        )
        if needed:
            yield _Table(
                f"{data_set}: labelled cases needed to match", ("configuration", "matches", "labelled cases"), needed
            )
    yield from _feature_tables(study)


def _feature_tables(study: Study) -> Iterator[_Table]:
    """Scores by thirds of each property of the objects, for configurations whose objects were described."""
    heads = ("configuration", "lowest third", "middle third", "highest third", "rank correlation")
    described = [row for row in study.results if not math.isnan(row.size_share)]
    for feature in FEATURES if described else ():
        found = {
            name: thirds([row for row in described if row.configuration == name], feature, study.main)
            for name in study.configurations
        }
        measured = {name: one for name, one in found.items() if one is not None}
        rows = tuple(
            (
                name,
                *[f"{mean:.3f}" for mean in one.means],
                "–" if math.isnan(one.correlation) else f"{one.correlation:+.2f}",
            )
            for name, one in measured.items()
        )
        if rows:
            most = max(one.data_sets for one in measured.values())
            title = f"{TITLES[study.main]} by {FEATURE_TITLES[feature]}, mean over {most} data sets"
            yield _Table(title, heads, rows)


def _note(study: Study) -> str:
    splits = len({row.split for row in study.results})
    interval = "95 % t interval over splits" if splits > 1 else "one split, so no interval"
    return (
        f"Means over test cases and {counted(splits, 'split')} [{interval}]. A missed or false positive label counts "
        "as 0, in distances as the image diagonal. p: two-sided Wilcoxon signed-rank test over cases, with Holm's "
        "correction within a table. A method matches another where the interval of the difference lies above "
        f"−{MARGIN}."
    )


def _cell(estimate: Estimate | None, measure: str) -> str:
    if estimate is None:
        return "–"
    digits = 3 if measure in LARGER_IS_BETTER else 1
    if math.isnan(estimate.low):
        return f"{estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _difference(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "–"
    ends = "" if math.isnan(estimate.low) else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"
    return f"{estimate.mean:+.3f}{ends}"


def _p(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _in_markdown(table: _Table) -> str:
    lines = [table.heads, ("---",) + ("---:",) * (len(table.heads) - 1), *table.rows]
    rows = [
        "| " + " | ".join(cell if number == 1 else _plain(cell) for cell in line) + " |"
        for number, line in enumerate(lines)
    ]
    return f"**{_plain(table.title)}**\n\n" + "\n".join(rows) + "\n"


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return "".join(f"\\{mark}" if mark in "\\|`*_<>[]" else mark for mark in text.replace("\n", " "))


def _in_latex(table: _Table) -> str:
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (table.heads, *table.rows)]
    columns = "l" + "r" * (len(table.heads) - 1)
    body = [lines[0], r"\midrule", *lines[1:]]
    inside = "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])
    return f"\\begin{{table}}\n\\caption{{{_escaped(table.title)}}}\n\\centering\n{inside}\n\\end{{table}}\n"


def _escaped(text: str) -> str:
    escaped = "".join(_SPECIAL.get(mark, mark) for mark in text.replace("\n", " "))
    return escaped.replace("−", "$-$").replace("–", "--").replace("< ", "$<$ ")
