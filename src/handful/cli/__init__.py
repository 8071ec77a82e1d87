"""The command line: `handful` runs `main`, and `app` is the Typer application that holds the commands.

A command parses its options, calls the package and prints the result. Packages are imported inside functions, so that
`--help` does not load torch.
"""

from __future__ import annotations

from handful.cli.application import app, main

__all__ = ["app", "main"]
