"""The fixtures of evaluation_fixtures and cohort_fixtures."""

from cohort_fixtures import backbone, cohort, folder, model, support
from evaluation_fixtures import cube, label_map, scan

__all__ = ["backbone", "cohort", "cube", "folder", "label_map", "model", "scan", "support"]
