"""The fixtures of evaluation_fixtures."""

from evaluation_fixtures import cube, label_map, scan

__all__ = ["cube", "label_map", "scan"]
