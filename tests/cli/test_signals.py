"""A signal that comes while C code runs ends a command, even if an error of that code hides it."""

import os
import signal
from collections.abc import Iterator

import pytest
import typer

from handful.cli import terminal
from handful.cli.terminal import Commands, raise_interrupted, raise_terminated, stopped_by_signals


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(terminal, "_received", [])
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, raise_terminated)
    signal.signal(signal.SIGINT, raise_interrupted)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def run(sent: signal.Signals | None) -> None:
    app = typer.Typer(cls=Commands, add_completion=False)

    @app.command()
    def draw() -> None:
        try:
            if sent is not None:
                os.kill(os.getpid(), sent)
                signal.sigtimedwait([], 0.0)  # the handler has run
        except KeyboardInterrupt:
            pass
        raise ValueError("Invalid bounding box")  # as matplotlib does

    @app.command()
    def other() -> None: ...

    with stopped_by_signals():
        app(["draw"])


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_hidden_signal_ends_the_command_as_always(sent: signal.Signals, code: int) -> None:
    with pytest.raises(SystemExit) as stop:
        run(sent)
    assert stop.value.code == code


def test_without_a_signal_the_error_stays() -> None:
    with pytest.raises(ValueError, match="bounding box"):
        run(None)
