"""Terminal output shared by all commands: progress, messages, JSON, tables, and exit codes."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from handful.errors import HandfulError, InputError, PathError, SettingsError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from handful.data.cases import LeftOut
    from handful.evaluation.evaluate import Failure
    from handful.jobs.progress import Report

FAILED_CASES, INTERRUPTED, TERMINATED = 3, 130, 143
OUT_OF_MEMORY = (
    "not enough memory; close other programs, use a smaller backbone, or take fewer --workers. What is done is kept: "
    "run the same command again"
)
ERROR = "[bold red]error[/] "
FAILED = "[bold red]failed[/] "
LEFT_OUT = "[yellow]left out[/] "
WARNING = "[bold yellow]warning[/] "
PLAIN_EVERY_S = 10.0
"""Seconds between two lines of progress where stderr is not a terminal."""


class Commands(TyperGroup):
    """A command group that turns the errors of `handful.errors` into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _signals_that_count():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            print_note("stopped; run the same command again to resume")
            raise typer.Exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED) from None
        except MemoryError as error:
            print_note(OUT_OF_MEMORY, lead=ERROR)
            raise typer.Exit(1) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            print_note(str(error), lead=ERROR)
            raise typer.Exit(_exit_code(error) or 1) from error
        except Exception as error:
            if (code := _exit_code(error)) is None:
                from handful.jobs.memory import is_lack_of_memory  # loads PyTorch

                if not is_lack_of_memory(error):
                    raise
                print_note(OUT_OF_MEMORY, lead=ERROR)
                raise typer.Exit(1) from error
            print_note(str(error), lead=ERROR)
            raise typer.Exit(code) from error


class Terminated(KeyboardInterrupt):
    """SIGTERM, with which schedulers end a process; everything is kept, as after Ctrl-C."""


_received: list[type[KeyboardInterrupt]] = []
"""What the signals raised that have come so far."""


def raise_terminated(signal: int, frame: object) -> None:
    """A handler of SIGTERM."""
    _received.append(Terminated)
    raise Terminated


def raise_interrupted(signal: int, frame: object) -> None:
    """A handler of Ctrl-C."""
    _received.append(KeyboardInterrupt)
    raise KeyboardInterrupt


@contextmanager
def _signals_that_count() -> Iterator[None]:
    """Libraries in C may raise an error of their own in place of what a signal raises; then the signal counts."""
    try:
        yield
    except Exception as error:
        if _received:
            raise _received[-1] from error
        raise


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Exit code 143 after SIGTERM and 130 after Ctrl-C, at whatever moment they come, and no traceback."""
    try:
        yield
    except KeyboardInterrupt as stop:
        sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)
    except SystemExit as done:
        cause: BaseException | None = done  # Typer makes 130 of any KeyboardInterrupt
        while done.code == INTERRUPTED and cause is not None:
            if isinstance(cause, Terminated):
                sys.exit(TERMINATED)
            cause = cause.__context__
        raise


def print_note(text: str, lead: str = "") -> None:
    """Print a line for the user on stderr; `lead` may contain rich markup, `text` is printed as it is."""
    stderr().print(f"{lead}{_escaped(visible(text))}", soft_wrap=True, highlight=False)


def print_failures(failures: Iterable[Failure]) -> None:
    """Print one line per failed case, with its reason, on stderr."""
    for failure in failures:
        print_note(f"{one_line(failure.case)}: {failure.reason}", lead=FAILED)


def print_left_out(left_out: Iterable[LeftOut]) -> None:
    """Print one line per reason for which files of a cohort are not read, on stderr."""
    for reason, files in by_reason(left_out).items():
        print_note(f"{some(files)}: {reason}", lead=LEFT_OUT)


def by_reason(left_out: Iterable[LeftOut]) -> dict[str, list[str]]:
    """The names of the files that are left out for the same reason."""
    files: dict[str, list[str]] = {}
    for one in left_out:
        files.setdefault(one.reason, []).append(one.file)
    return files


def some(names: Sequence[str]) -> str:
    """Up to three names, or two and the number of the others."""
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return ", ".join(map(one_line, shown))


def counted(number: int, noun: str = "case") -> str:
    """The number and the noun, as `handful.jobs.plain_text.counted`."""
    from handful.jobs import plain_text

    return plain_text.counted(number, noun)


def visible(text: str) -> str:
    """The text with control characters as escapes, as `handful.jobs.plain_text.visible`."""
    from handful.jobs import plain_text

    return plain_text.visible(text)


def one_line(name: str) -> str:
    """A name as it is shown in a line: line breaks and control characters as escapes."""
    return visible(name).replace("\n", "\\n")


def exit_on(*failures: Sized) -> None:
    """End the command with exit code 3 if any case failed or any file was left out."""
    if any(map(len, failures)):
        raise typer.Exit(FAILED_CASES)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> Console:
    from rich.console import Console

    return Console()


def print_json(content: Mapping[str, object]) -> None:
    """Print one JSON object on stdout; dataclasses become objects, paths become strings, NaN becomes null."""
    from handful.jobs.json_values import json_value

    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(json_value(content), indent=2, ensure_ascii=not unicode))


def print_lines(*lines: object, highlight: bool = False) -> None:
    """Print lines on stdout without markup and without wrapping; `highlight` colours numbers and paths."""
    stdout().print(visible("\n".join(map(str, lines))), soft_wrap=True, markup=False, highlight=highlight)


def table(*columns: str) -> Table:
    """An empty table with these column titles, in the style of all commands."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD, show_edge=False)


def command_line() -> str:
    """The command line of this process, quoted for a shell, with names in place of paths, which may tell a patient."""
    return shlex.join(["handful", *(_without_folder(argument) for argument in sys.argv[1:])])


def _without_folder(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return f"{option}{equals}{Path(value).name}" if "/" in value or "\\" in value else argument


@contextmanager
def progress(title: str, quiet: bool = False) -> Iterator[Report]:
    """A function that reports the progress of a long job on stderr: a bar with the time left, or plain lines.

    A note at step 0 is printed on a line of its own. `quiet` reports nothing.
    """
    from handful.jobs.progress import silent

    if quiet:
        yield silent
    elif stderr().is_terminal:
        with _bar() as report:
            yield lambda step, total, note: report(title, step, total, note)
    else:
        yield _plain_lines(title)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int, str], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=stderr(), transient=True) as bar:
        task = bar.add_task("", total=None, note="")

        def report(title: str, step: int, total: int, note: str) -> None:
            if step == 0 and note:
                bar.console.print(f"{title}: {_escaped(visible(note))}", highlight=False)
            bar.update(task, description=title, completed=step, total=total, note="" if step == 0 else one_line(note))

        yield report


def _plain_lines(title: str) -> Report:
    """Lines with the time left, at the speed since the job, or its current part, began or was resumed."""
    began = last = time.monotonic()
    first, before, size = 0, 0, 0

    def report(step: int, total: int, note: str) -> None:
        nonlocal began, last, first, before, size
        now = time.monotonic()
        if (step < before or total != size) and (size or step > 1):  # another part of the job, or a resumed one
            began, first = now, step
        before, size = step, total
        if step == 0 and note:
            print(f"{title}: {visible(note)}", file=sys.stderr, flush=True)
        elif step and (step == total or now - last > PLAIN_EVERY_S):
            last = now
            left = (now - began) / max(1, step - first) * (total - step)
            print(f"{title}: {step} of {total}, {one_line(note)}, {left:.0f} s left", file=sys.stderr, flush=True)

    return report


def _exit_code(error: Exception) -> int | None:
    """2 for wrong usage of the command, 1 for another `HandfulError`, None for a bug."""
    if not isinstance(error, HandfulError):
        return None
    return 2 if isinstance(error, SettingsError) or type(error) in (InputError, PathError) else 1


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
