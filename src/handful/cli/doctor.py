"""`handful doctor`: checks of scans and label maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handful.cli import options
from handful.cli.terminal import exit_on, print_json, progress, stdout, table

if TYPE_CHECKING:
    from handful.data.cases import Cohort
    from handful.data.checks import Finding

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    input: options.CohortFolder,
    cases: options.Cases = "",
    series: options.Series = None,
    slice_tolerance: options.SliceTolerance = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check scans and label maps for damaged files, mismatching grids, wrong values and wrong units.

    Example: `handful doctor -i my_cohort`

    The exit code is 3 if a case has an error.
    """
    from handful.cohort.choice import choose_cases
    from handful.data.checks import check_cases
    from handful.data.files import read_cohort

    cohort = read_cohort(input, series=series, slice_tolerance=slice_tolerance)
    chosen = choose_cases(cohort, options.names_in(cases))
    with progress("checking", quiet or json) as report:
        findings = check_cases(chosen, report)
    broken = sorted({finding.case for finding in findings if finding.severity == "error"})
    if json:
        print_json({"cohort": cohort.name, "cases": len(chosen), "with_errors": broken, "findings": findings})
    else:
        _print(cohort, len(chosen), findings, broken)
    exit_on(broken)


def _print(cohort: Cohort, count: int, findings: list[Finding], broken: list[str]) -> None:
    from rich.text import Text

    console = stdout()
    labelled = sum(case.reference is not None for case in cohort.cases)
    names = ", ".join(f"{value} {name}" for value, name in cohort.labels.as_dict().items()) if cohort.labels else "none"
    console.print(Text(f"{cohort.name}: {count} cases checked, {labelled} labelled; labels: {names}"))
    if findings:
        listed = table("cases", "severity", "finding")
        for (severity, message), cases in _by_message(findings).items():
            listed.add_row(Text(_some(cases)), Text(severity, style=COLOURS[severity]), Text(message))
        console.print(listed)
    console.print(f"{len(broken)} of {count} cases cannot be used" if broken else "all cases can be used")


def _by_message(findings: list[Finding]) -> dict[tuple[str, str], list[str]]:
    """The names of the cases with the same finding."""
    cases: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        cases.setdefault((finding.severity, finding.message), []).append(finding.case)
    return cases


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
