"""The fixtures of cohort_fixtures."""

from cohort_fixtures import backbone, cohort, folder, model, support

__all__ = ["backbone", "cohort", "folder", "model", "support"]
