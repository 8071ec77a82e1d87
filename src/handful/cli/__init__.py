"""The command line: `main` is what `handful` runs, `app` what its commands hang on.

The doors are thin: parse, call, print. They import rooms inside functions, so nothing heavy is imported before a
command has begun.
"""

from __future__ import annotations

from handful.cli.application import app, main

__all__ = ["app", "main"]
