"""Tables of the interactive study: what clicks come to, how configurations differ, and what pruning costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from handful.evaluation.statistics import Comparison, compare_pairs
from reproduction.evidence import FIRST
from reproduction.markdown import signed, table
from reproduction.study import Line, by_split


def tables(lines: list[Line]) -> str:
    """Of clicks, then of pruning."""
    pruning = [line for line in lines if line["part"] == "pruning"]
    clicks = [line for line in lines if line["part"] != "pruning"]
    return "\n\n".join(filter(None, (click_tables(clicks), pruning_tables(pruning))))


def click_tables(lines: list[Line]) -> str:
    """A set, and a set that was fitted on: what each configuration came to, in which ways, and how configurations
    differ."""
    parts = []
    for name, on in dict.fromkeys((line["set"], line["fitted_on"]) for line in lines):
        own = [line for line in lines if line["set"] == name and line["fitted_on"] in (on, name)]
        if on != name:  # of what was fitted on the set itself, only that nothing was fitted belongs here
            own = [line for line in own if line["fitted_on"] == on or line["configuration"] == "backbone"]
        for settings in dict.fromkeys(_settings(line) for line in own if line["fitted_on"] == on):
            same = [line for line in own if _settings(line) == settings]
            if any(line["configuration"] != "backbone" for line in same):
                parts.append(_click_table(name, on, same))
    return "\n\n".join(parts)


def _settings(line: Line) -> tuple[object, ...]:
    names = ("shots", "cases_most", "slices", "seeds", "most", "annotator", "digest")
    return (*[line[name] for name in names], line.get("unseen", FIRST))


def _click_table(name: str, on: str, lines: list[Line]) -> str:
    configurations = list(dict.fromkeys((line["configuration"], line["iterations"]) for line in lines))
    titles = {
        configuration: configuration[0] + (f" ({configuration[1]} iterations)" if configuration[1] else "")
        for configuration in configurations
    }
    by_configuration = {
        titles[configuration]: [line for line in lines if (line["configuration"], line["iterations"]) == configuration]
        for configuration in configurations
    }
    some = lines[0]
    measures = [key for key in some if key.startswith(("dice_", "noc_", "never_", "sensitivity_"))]
    title = f"**{name}**" + (f", fitted on **{on}**" if on != name else "")
    splits, cases = len({line["split"] for line in lines}), max(len(line["cases"]) for line in lines)
    regions = max(line["regions"] for line in lines)
    title += (
        f" ({some['shots']} labelled cases, {splits} splits, up to {cases} unseen cases and {regions} regions "
        f"each, prompted in {len(some['ways'])} ways by {some['seeds']} simulated annotators ({some['annotator']}); "
        f"at most {some['most']} prompts)"
    )
    rows = [
        [configuration, *[_mean(_all(own, key)) for key in measures], *_took(own)]
        for configuration, own in by_configuration.items()
    ]
    tables = [title, table(["configuration", *[_heading(key) for key in measures], "fit s", "prompting s"], rows)]
    ways = list(some["ways"])
    rows = [
        [configuration, *[_mean([d for x in own for d in x["ways"][way]["dice_1"]]) for way in ways]]
        for configuration, own in by_configuration.items()
    ]
    tables.append(table(["Dice after 1", *ways], rows))
    rows = [
        [_heading(key), f"{one.first} − {one.second}", *_difference(one)]
        for key in measures
        for one in _comparisons(dict(reversed(by_configuration.items())), key)
    ]
    if rows:
        tables.append(table(["measure", "difference", "mean [95 %]", "p", "p (Holm)", "cases"], rows))
    return "\n\n".join(tables)


def pruning_tables(lines: list[Line]) -> str:
    """A set: what each rule came to, and what it cost."""
    parts = []
    for name, *settings in dict.fromkeys((line["set"], line["iterations"], *_settings(line)) for line in lines):
        own = [x for x in lines if [x["set"], x["iterations"], *_settings(x)] == [name, *settings]]
        by_configuration = {
            configuration: [x for x in own if x["configuration"] == configuration]
            for configuration in dict.fromkeys(x["configuration"] for x in own)
        }
        measures = [key for key in own[0] if key.startswith("dice_")]
        last = measures[-1]
        organs = list(own[0]["labels"])
        heads = ["rule", *map(_heading, measures), *[f"{o} {_heading(last)}" for o in organs]]
        heads += ["rarest label", "share of steps", "measured fraction", "training, CPU s", "fit, wall s"]
        heads += ["minus none [95 %]", "p"]
        rows = [
            _pruned(configuration, some, by_configuration, measures, organs)
            for configuration, some in by_configuration.items()
        ]
        splits = len({x["split"] for x in own})
        title = (
            f"**{name}** ({own[0]['shots']} labelled cases, {splits} splits, {settings[0]} iterations before pruning)"
        )
        parts.append(f"{title}\n\n{table(heads, rows)}")
    return "\n\n".join(parts)


def _pruned(
    configuration: str, own: list[Line], by_configuration: dict[str, list[Line]], measures: list[str], organs: list[str]
) -> list[str]:
    last = measures[-1]
    rule = configuration.partition("pruning.rule=")[2] or f"none, {own[0]['steps']} steps"
    row = [rule, *[_mean(_all(own, key)) for key in measures]]
    row += [_mean([d for x in own for d in x["labels"][o][last] if d is not None]) for o in organs]
    rarest = [x["labels"][_rarest(x["held"])][last] for x in own]
    row.append(_mean([d for one in rarest for d in one if d is not None]))
    row.append(f"{np.mean([x['steps'] / x['iterations'] for x in own]):.3f}")
    row.append(f"{np.mean([x['fraction'] for x in own]):.3f}")
    row += [f"{np.mean([x[key] for x in own]):.0f}" for key in ("train_cpu_s", "fit_s")]
    plain = "interactive:pruning.rule=none"
    if configuration == plain or plain not in by_configuration:
        return [*row, "–", "–"]
    (found,) = _comparisons({configuration: own, plain: by_configuration[plain]}, last)
    return [*row, *_difference(found)[:2]]


def _rarest(held: dict[str, int]) -> str:
    return min(held, key=held.__getitem__)


def _comparisons(by_configuration: Mapping[str, list[Line]], key: str) -> list[Comparison]:
    """All pairs of configurations, as the package compares them, on the splits that all have."""
    splits = set.intersection(*[{line["split"] for line in own} for own in by_configuration.values()])
    return compare_pairs(
        {
            configuration: by_split([line for line in own if line["split"] in splits], key)
            for configuration, own in by_configuration.items()
        }
    )


def _difference(found: Comparison) -> list[str]:
    return [signed(found.difference), _chance(found.p), _chance(found.p_holm), str(found.n)]


def _chance(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _took(lines: list[Line]) -> list[str]:
    return [f"{np.mean([line[key] for line in lines]):.0f}" for key in ("fit_s", "ask_s")]


def _all(lines: list[Line], key: str) -> list[float]:
    return [value for line in lines for value in line[key]]


def _heading(key: str) -> str:
    name, _, number = key.partition("_")
    words = {"dice": "Dice after", "sensitivity": "sensitivity after", "noc": "NoC", "never": "never"}
    return f"{words[name]} {number}" + (" %" if name in ("noc", "never") else "")


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"
