"""The documents that are made of results: docs/claims.md, and the tables in README.md and docs/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reproduction.claims import CLAIMS, PAPERS, Claim
from reproduction.evidence import Evidence
from reproduction.markdown import MARKED, table, with_tables
from reproduction.parts import PARTS, ROOT
from reproduction.tables import TABLES, matches
from reproduction.verdicts import Figure, Finding

HEAD = """# The papers' claims, on our scans

Written by `make claims` from the raw lines in [reproduction/results](../reproduction/results); nothing here is typed
in, verdicts least of all. `make claims DATA=folder` measures what is missing first (days on two cores; `PART=acdc`
takes one part), and goes on where it was stopped.

Figures are differences of mean Dice over unseen cases, first configuration minus second, paired by split and case,
with 95 % two-stage bootstrap intervals over splits and cases (of one split, over its cases), unless they say otherwise.
A missed or false positive label counts as 0.
**Bold** figures support their claim by its rule, plain ones do not, those in (brackets) stand beside and decide
nothing. The overview shows the median of the deciding ones.

* **holds**: all deciding figures support it, and none of the comparisons it speaks of is missing.
* **holds in part**: some do.
* **does not hold**: none does. That includes differences that these few cases cannot tell from 0.
* **not tested here**: there is no figure, for the reason named.

Unless a row says otherwise all is with `handful-tiny`, not with SAM's weights, and on other data than the papers'. A
verdict says how the method fares in that setting; it neither proves nor refutes a paper. Many figures are looked at and
none is corrected for that: of forty intervals, one lies above 0 by chance.
"""


def document(evidence: Evidence) -> str:
    """docs/claims.md."""
    found = [(claim, claim.figures(evidence)) for claim in CLAIMS]
    parts = [HEAD, overview(found, "#"), f"## To match a U-Net\n\n{matches(evidence)}"]
    for paper, title in PAPERS.items():
        parts.append(f"## {title}")
        parts += [section(claim, one) for claim, one in found if claim.number.startswith(paper)]
    parts.append(recipes())
    return "\n\n".join(part.strip() for part in parts) + "\n"


def overview(found: Sequence[tuple[Claim, Finding]], page: str) -> str:
    """A row a claim, linked to its section on `page`."""
    rows = [
        (f"[{claim.number}]({page}{claim.anchor})", claim.says, claim.theirs, headline(one), said(claim, one))
        for claim, one in found
    ]
    return table(("", "claim", "the paper's figure", "ours", "verdict"), rows)


def claims_table(evidence: Evidence, words: Sequence[str]) -> str:
    """The overview, for another document: `words` is the way from there to this one."""
    return overview([(claim, claim.figures(evidence)) for claim in CLAIMS], f"{words[0] if words else 'claims.md'}#")


def said(claim: Claim, finding: Finding) -> str:
    """The verdict, with the reason where there is none."""
    if finding.verdict != "not tested here":
        return f"**{finding.verdict}**"
    needs = PARTS[claim.parts[0]].needs if len(claim.parts) == 1 else ""
    return f"{finding.verdict}: needs {needs}" if needs else f"{finding.verdict}: not run yet"


def headline(finding: Finding) -> str:
    """The median of the deciding figures that share a unit with the first, and how many of all support the claim."""
    deciding = finding.deciding
    if not deciding:
        return "–"
    alike = sorted((one for one in deciding if one.unit == deciding[0].unit), key=lambda one: one.estimate.mean)
    middle = alike[(len(alike) - 1) // 2]
    where = ", ".join(filter(None, (middle.where, middle.column)))
    count = f"; {sum(bool(one.supports) for one in deciding)} of {len(deciding)} in favour" if len(deciding) > 1 else ""
    return f"{middle} ({middle.what}; {where}){count}"


def section(claim: Claim, finding: Finding) -> str:
    """A claim with its rule, its figures and its commands."""
    lines = [
        f'<a id="{claim.anchor}"></a>\n\n### {claim.number} {claim.says}',
        f"{said(claim, finding)}. Rule: {claim.rule} What differs: {claim.differs}",
    ]
    if finding.missing and finding.figures:
        lines.append(f"Not measured yet: {'; '.join(finding.missing)}.")
    if finding.figures:
        lines.append(grid(finding.figures) + counted(finding.figures))
    with_data = any("{data}" in command for part in claim.parts for command in PARTS[part].commands)
    parts = " ".join(claim.parts)
    lines.append(f'`make claims {"DATA=FOLDER " if with_data else ""}PART="{parts}"`')
    return "\n\n".join(lines)


def counted(figures: Sequence[Figure]) -> str:
    """Of how many cases and splits the figures are."""
    cases, splits = ([one for figure in figures if (one := getattr(figure, name))] for name in ("cases", "splits"))
    if not cases:
        return ""
    return f"\n\nUnseen cases a figure: {between(cases)}; splits of the labelled ones: {between(splits)}."


def between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def recipes() -> str:
    """What each part runs."""
    lines = []
    for name, part in PARTS.items():
        lines.append(f"# {name}" + (f": needs {part.needs}; runs only when it is named" if part.needs else ""))
        lines += [command.format(data="FOLDER") for command in part.commands]
    return "## What each part runs\n\n```\n" + "\n".join(lines) + "\n```"


def grid(figures: Sequence[Figure]) -> str:
    """Figures by data set and comparison, with the numbers of labelled cases side by side; then those without."""
    columns = sorted({one.column for one in figures if one.column}, key=lambda name: int(name.split()[0]))
    rows: dict[tuple[str, str], dict[str, Figure]] = {}
    for one in figures:
        rows.setdefault((one.where, one.what), {})[one.column] = one
    wide = [
        (*row, *[shown(cells[column]) if column in cells else "" for column in columns])
        for row, cells in rows.items()
        if "" not in cells
    ]
    narrow = [(*row, shown(cells[""])) for row, cells in rows.items() if "" in cells]
    tables = [table(("where", "what", *columns), wide)] if wide else []
    return "\n\n".join(tables + ([table(("where", "what", "figure"), narrow)] if narrow else []))


def shown(one: Figure) -> str:
    """Bold where it supports the claim, in brackets where it decides nothing."""
    if one.supports is None:
        return f"({one})"
    return f"**{one}**" if one.supports else str(one)


def documents(evidence: Evidence, root: Path = ROOT) -> dict[Path, str]:
    """Every document that is made of results, and what it should hold."""
    tables = TABLES | {"claims": claims_table}
    made = {root / "docs" / "claims.md": document(evidence)}
    for path in [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        if path not in made and MARKED in (text := path.read_text(encoding="utf-8")):
            made[path] = with_tables(text, tables, evidence, path.name)
    return made
