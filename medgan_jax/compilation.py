"""Compiling ahead of time, without keeping the memory that it took."""

import ctypes
from typing import Any

import jax


def compiled(function: Any, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a jitted function for arguments of these shapes and shardings.

    The compiler needs several hundred MB for a moment, and the C library keeps them for later. A training asks for none
    of that kind again, so they are given back to the system before it starts.

    Args:
      function: what `jax.jit` returned.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    program = function.lower(*arguments).compile()
    trim_memory()
    return program


def trim_memory() -> None:
    """Gives memory that is free, but kept by the C library, back to the system, where that can be asked for (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError, OSError):  # another C library
        return
    trim(0)
