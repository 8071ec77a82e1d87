"""Notes of what a job has done, kept beside its outputs."""

from __future__ import annotations

NOTES = ".handful"
"""Folder inside the output folder: the lock, a note a case, and outputs that somebody had changed."""
