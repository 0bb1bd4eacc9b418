"""Synthetic medical images for data sets that are too small and too unbalanced: GANs in JAX.

`load`, `train`, `evaluate` and `metrics` are described in docs/python.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Generator", "Report", "UserError", "evaluate", "load", "metrics", "train"]

if TYPE_CHECKING:
    from medgan_jax.api import Generator, Report, UserError, evaluate, load, metrics, train


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and not before: JAX takes a second, and much here needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("medgan_jax.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
