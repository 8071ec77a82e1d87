"""Label a handful of slices; get the whole cohort segmented.

The public names are listed in `__init__.pyi` with their modules. Each is imported on first use, so that importing the
package does not load torch.
"""

from lazy_loader import attach_stub

_public_name, __dir__, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("handful")
    return _public_name(name)
