"""Label a handful of slices; get the whole cohort segmented.

The public names stand in `__init__.pyi`, each with its module. A name is imported when it is first used, so importing
the package loads nothing heavy.
"""

from lazy_loader import attach_stub

_public_name, __dir__, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("handful")
    return _public_name(name)
