"""The documents that are made of results: docs/evidence/claims.md, and the tables in README.md and docs/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from reproduction.claims import CLAIMS, MEASURED_ON, PAPERS, Claim, exactly
from reproduction.evidence import FIRST, NARROW, OF_UNSEEN_CASES, Evidence
from reproduction.markdown import MARKED, table, with_tables
from reproduction.parts import PARTS, ROOT
from reproduction.tables import TABLES, intervals, matches
from reproduction.verdicts import ERROR, SURE, VOTES, Figure, Finding, Verdict

CLAIMS_PAGE = Path("docs") / "evidence" / "claims.md"

HEAD = f"""# The claims of the papers

Four papers describe methods that handful implements. This page tests what they claim, on our data sets and with
`handful-tiny`. `make claims` writes it from the raw results in
[reproduction/results](../../reproduction/results); each verdict follows from its rule, and none is typed in.
`make claims DATA=folder` first measures what is missing: days on two cores, or one part with `PART=acdc`. A
stopped run continues.

How to read it. A figure is a difference of mean Dice on unseen cases, first configuration minus second, paired by split
and case, with its 95 % t interval over splits. A row says where it differs from that. A missed or false positive label
counts as 0. Each figure is **for** the claim where its whole interval is on the claim's side of the limit (**bold**),
**against** it where its whole interval is on the other side (*italic*), and **undecided** otherwise (plain). A figure
of one split has no interval, so it is undecided. Figures in (brackets) are shown for comparison and do not count.

* **holds**: all figures that count are for the claim, and no comparison that it needs is missing.
* **holds in part**: more figures are for it than against it, and more than chance gives.
* **mixed**: more figures are for it than chance gives, but no more than are against it.
* **refuted here**: more figures are against it than for it, and more than chance gives; those for it may be chance.
* **undecided**: none of these.
* **not tested here**: there is no figure, for the reason given.

*More than chance gives* is a binomial test: so many figures or more would have a probability below {SURE} if each had
one of {ERROR}, the chance that an interval lies above 0 without a difference. The figures of a claim share methods and
data sets, so they are not independent, and the test is a rough one.

A verdict says how a method does with `handful-tiny` and on our data. It neither proves nor disproves a paper, which
used SAM's own weights and other data.
"""


def document(evidence: Evidence) -> str:
    """docs/evidence/claims.md."""
    found = [(claim, claim.figures(evidence)) for claim in CLAIMS]
    chosen = MEASURED_ON.format(older=", ".join(f"`{name}`" for name in older(evidence)) or "no study", narrow=NARROW)
    parts = [HEAD, overview(found, "#"), chosen, f"## Labels needed to match a U-Net\n\n{matches(evidence)}"]
    for paper, title in PAPERS.items():
        parts.append(f"## {title}")
        parts += [section(claim, one) for claim, one in found if claim.number.startswith(paper)]
    parts += [f'<a id="intervals"></a>\n\n## How often the intervals cover the true value\n\n{intervals(evidence)}']
    parts.append(recipes())
    return "\n\n".join(part.strip() for part in parts) + "\n"


def overview(found: Sequence[tuple[Claim, Finding]], page: str) -> str:
    """One row per claim, linked to its section on `page`."""
    rows = [
        (
            f"[{claim.number}]({page}{claim.anchor})",
            claim.says,
            claim.theirs,
            headline(one),
            *[str(one.count(vote)) if one.deciding else "–" for vote in VOTES],
            verdict_of(claim, one),
        )
        for claim, one in found
    ]
    return table(("", "claim", "the paper's figure", "ours", *VOTES, "verdict"), rows)


def claims_table(evidence: Evidence, words: Sequence[str]) -> str:
    """The overview, for another document: `words` holds the path from there to this one."""
    return overview([(claim, claim.figures(evidence)) for claim in CLAIMS], f"{words[0] if words else 'claims.md'}#")


def verdicts(evidence: Evidence, words: Sequence[str]) -> str:
    """How many claims have each verdict, in a sentence."""
    found = [claim.figures(evidence).verdict for claim in CLAIMS]
    counts = [f"*{verdict}* {found.count(verdict)}" for verdict in get_args(Verdict) if verdict in found]
    return f"Verdicts on {len(CLAIMS)} claims: {', '.join(counts)}."


def verdict_of(claim: Claim, finding: Finding) -> str:
    """The verdict, with the reason where there is none."""
    if finding.verdict != "not tested here":
        return f"**{finding.verdict}**"
    needs = PARTS[claim.parts[0]].needs if len(claim.parts) == 1 else ""
    return f"{finding.verdict}: needs {needs}" if needs else f"{finding.verdict}: not run yet"


def headline(finding: Finding) -> str:
    """The figure that counts; of several, the range of those that share a unit with the first."""
    deciding = finding.deciding
    if len(deciding) < 2:
        return str(deciding[0]) if deciding else "–"
    alike = sorted((one for one in deciding if one.unit == deciding[0].unit), key=lambda one: one.estimate.mean)
    ends = [str(replace(one, estimate=exactly(one.estimate.mean))) for one in (alike[0], alike[-1])]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def section(claim: Claim, finding: Finding) -> str:
    """A claim with its rule, its figures and its commands."""
    lines = [
        f'<a id="{claim.anchor}"></a>\n\n### {claim.number} {claim.says}',
        f"{verdict_of(claim, finding)}\n\n*Rule.* {claim.rule}\n\n*Differences from the paper.* {claim.differs}",
    ]
    if finding.missing and finding.figures:
        lines.append(f"Not measured yet: {'; '.join(finding.missing)}.")
    if finding.figures:
        lines.append(grid(finding.figures) + counted(finding.figures))
    with_data = any("{data}" in command for part in claim.parts for command in PARTS[part].commands)
    parts = " ".join(claim.parts)
    lines.append(f'`make claims {"DATA=FOLDER " if with_data else ""}PART="{parts}"`')
    return "\n\n".join(lines)


def older(evidence: Evidence) -> list[str]:
    """Studies with lines that scored the first cases by name."""
    return [
        name
        for name in OF_UNSEEN_CASES
        if any(line.get("unseen", FIRST) == FIRST and line.get("set") != "speed" for line in evidence.raw(name))
    ]


def counted(figures: Sequence[Figure]) -> str:
    """The numbers of cases and splits behind the figures, and how many are of the first cases by name."""
    cases, splits = ([one for figure in figures if (one := getattr(figure, name))] for name in ("cases", "splits"))
    if not cases:
        return ""
    first = sum(figure.pool.endswith(FIRST) for figure in figures)
    text = f"\n\nUnseen cases per figure: {between(cases)}. Random splits: {between(splits)}."
    return text + (f" Figures whose unseen cases are the first by name, not random ones: {first}." if first else "")


def between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def recipes() -> str:
    """What each part runs."""
    lines = []
    for name, part in PARTS.items():
        lines.append(f"# {name}" + (f": needs {part.needs}; runs only when it is named" if part.needs else ""))
        lines += [command.format(data="FOLDER") for command in part.commands]
    return "## Commands of each part\n\n```\n" + "\n".join(lines) + "\n```"


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
    """Bold where it is for the claim, italic where it is against it, in brackets where it does not count."""
    if one.vote is None:
        return f"({one})"
    mark = {"for": "**", "against": "*", "undecided": ""}[one.vote]
    return f"{mark}{one}{mark}"


def documents(evidence: Evidence, root: Path = ROOT) -> dict[Path, str]:
    """Every document that is made of results, and what it should hold."""
    tables = TABLES | {"claims": claims_table, "verdicts": verdicts}
    made = {root / CLAIMS_PAGE: document(evidence)}
    for path in [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        if path not in made and MARKED in (text := path.read_text(encoding="utf-8")):
            made[path] = with_tables(text, tables, evidence, path.name)
    return made
