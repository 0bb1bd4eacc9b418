"""Compiling ahead of time, without keeping the memory that it took."""

import ctypes
from typing import Any

import jax


def compiled(function: Any, *arguments: Any, **named: Any) -> jax.stages.Compiled:
    """Compiles a jitted function for arguments of these shapes and shardings.

    The compiler needs several hundred MB for a moment, which the C library keeps, and a training has no use for: they
    go back to the system, where that can be asked for (glibc).

    Args:
      function: what `jax.jit` returned.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.
      **named: likewise, passed by name.
    """
    program = function.lower(*arguments, **named).compile()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError, OSError):
        return program
    trim(0)
    return program
