"""`handful doctor`: checks of scans and label maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handful.cli import options
from handful.cli.terminal import by_reason, counted, exit_on, print_json, progress, some, stdout, table, visible

if TYPE_CHECKING:
    from handful.data.cases import Cohort
    from handful.data.checks import Finding

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    input: options.CohortFolder,
    cases: options.Cases = "",
    series: options.Series = None,
    slice_tolerance: options.SliceTolerance = None,
    channels: options.Channels = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check scans and label maps for damaged files, mismatching grids, wrong values and wrong units.

    Example: `handful doctor -i my_cohort`

    The exit code is 3 if a case has an error, or if a file of the cohort is left out, such as a scan in a format that
    is not read. All other commands leave out the same files.
    """
    from handful.cohort.choice import choose_cases
    from handful.data.checks import check_cases
    from handful.data.files import read_cohort

    cohort = read_cohort(input, series=series, slice_tolerance=slice_tolerance, channels=options.names_in(channels))
    chosen = choose_cases(cohort, options.names_in(cases))
    with progress("checking", quiet or json) as report:
        findings = check_cases(chosen, report)
    broken = sorted({finding.case for finding in findings if finding.severity == "error"})
    if json:
        counts = {"cohort": cohort.name, "cases": len(chosen), "with_errors": broken}
        print_json(counts | {"findings": findings, "left_out": cohort.left_out})
    else:
        _print(cohort, len(chosen), findings, broken)
    exit_on(broken, cohort.left_out)


def _print(cohort: Cohort, count: int, findings: list[Finding], broken: list[str]) -> None:
    from rich.text import Text

    console = stdout()
    labelled = sum(case.reference is not None for case in cohort.cases)
    names = ", ".join(f"{value} {name}" for value, name in cohort.labels.as_dict().items()) if cohort.labels else "none"
    console.print(Text(visible(f"{cohort.name}: {counted(count)} checked, {labelled} labelled; labels: {names}")))
    if findings or cohort.left_out:
        listed = table("cases", "severity", "finding")
        for (severity, message), cases in _by_message(findings).items():
            listed.add_row(Text(some(cases)), Text(severity, style=COLOURS[severity]), Text(visible(message)))
        for reason, files in by_reason(cohort.left_out).items():
            listed.add_row(Text(some(files)), Text("left out", style=COLOURS["error"]), Text(visible(reason)))
        console.print(listed)
    left_out = f"; left out: {counted(len(cohort.left_out), 'file')}" if cohort.left_out else ""
    usable = f"{len(broken)} of {counted(count)} cannot be used" if broken else "all cases can be used"
    console.print(f"{usable}{left_out}")


def _by_message(findings: list[Finding]) -> dict[tuple[str, str], list[str]]:
    """The names of the cases with the same finding."""
    cases: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        cases.setdefault((finding.severity, finding.message), []).append(finding.case)
    return cases
