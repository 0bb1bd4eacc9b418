"""Compiling ahead of time, and what the C library does with the memory of compilers and compiled programs.

On CPU both are measurable: a program's workspace of hundreds of MB is asked for at each call. By itself glibc maps it
anew each time, and the system fills it with zeros page by page, 8 % of a training at 64 px.
"""

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def keep_workspace() -> None:
    """From here on large blocks of memory that are freed are kept for the next call. Call it before threads start.

    Does nothing where the C library is not glibc.
    """
    mallopt = _from_c_library("mallopt")
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)  # threads' own arenas cannot hold large blocks
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def compiled(function: Any, *arguments: Any) -> "jax.stages.Compiled":
    """Compiles a jitted function for arguments of these shapes and shardings.

    The compiler needs several hundred MB for a moment, which a training has no use for: they go back to the system.

    Args:
      function: what `jax.jit` returned.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    program = function.lower(*arguments).compile()
    trim = _from_c_library("malloc_trim")
    if trim:
        trim(0)
    return program


def _from_c_library(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (TypeError, OSError):
        return None
