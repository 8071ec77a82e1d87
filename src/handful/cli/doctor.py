"""`handful doctor`: every check of the inputs, nothing computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from handful.cli import options
from handful.cli.terminal import FAILED_CASES, print_json, progress, stdout

if TYPE_CHECKING:
    from handful.data.cases import Cohort, Finding

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    input: options.CohortFolder, cases: options.Cases = "", json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Check scans and labels before anything is computed: damaged files, grids, values, units.

    Example: `handful doctor -i my_cohort`

    Exit code 3 when a case has an error.
    """
    from handful.cohort.choice import choose_cases
    from handful.data.cases import check_case
    from handful.data.files import read_cohort

    cohort = read_cohort(input)
    chosen = choose_cases(cohort, options.names_in(cases)) if cases else cohort.cases
    findings: list[Finding] = []
    with progress("checking", quiet or json) as report:
        for number, case in enumerate(chosen, start=1):
            findings += check_case(case)
            report(number, len(chosen), case.name)
    broken = sorted({finding.case for finding in findings if finding.severity == "error"})
    if json:
        content = [{"case": one.case, "severity": one.severity, "message": one.message} for one in findings]
        print_json({"cohort": cohort.name, "cases": len(chosen), "with_errors": broken, "findings": content})
    else:
        _print(cohort, len(chosen), findings, broken)
    if broken:
        raise typer.Exit(FAILED_CASES)


def _print(cohort: Cohort, count: int, findings: list[Finding], broken: list[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console = stdout()
    labelled = sum(case.reference is not None for case in cohort.cases)
    names = ", ".join(f"{value} {name}" for value, name in cohort.labels.as_dict().items()) if cohort.labels else "none"
    console.print(Text(f"{cohort.name}: {count} cases checked, {labelled} labelled; labels: {names}"))
    if findings:
        table = Table("case", "severity", "finding", box=SIMPLE_HEAD, show_edge=False)
        for one in findings:
            table.add_row(Text(one.case), Text(one.severity, style=COLOURS[one.severity]), Text(one.message))
        console.print(table)
    console.print(f"{len(broken)} of {count} cases cannot be used" if broken else "all cases can be used")
