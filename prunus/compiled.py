"""Compile kernels with numba, with a cache on disk that may be missing, read-only or damaged.

`numba.njit(cache=True)` raises where no cache directory is writable (a read-only installation without a home
directory), where a cache file belongs to another user, where it is damaged, and where the disk is full. A cache
only saves time, so here each of these means that the kernel is compiled again in this process.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


@cache
def _digest_of_sources(folder: Path) -> str:
    """A digest of all sources in a folder, because kernels may call those of other files in it."""
    hashed = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*.py")):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


class _OptionalCache(FunctionCache):  # type: ignore[misc]
    """numba's cache of one function; reading and writing it may fail without consequences."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._sources = _digest_of_sources(Path(function.__code__.co_filename).parent)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), self._sources)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the cached code, or None where there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file may raise anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled code, where that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception:  # a damaged index is read before it is written
            return


def compile_kernel(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator that compiles a function in numba's nopython mode.

    Args:
        options: Options of `numba.njit` other than `cache`.

    Returns:
        A decorator. What it returns can be called from Python and from other kernels.

    Example:
        >>> @compile_kernel()
        ... def add_one(number: int) -> int:
        ...     return number + 1
        >>> add_one(1)
        2
    """

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        dispatcher: Any = njit(**options)(function)
        try:
            dispatcher._cache = _OptionalCache(function)
        except (RuntimeError, OSError):  # numba found no directory that it can write to
            return dispatcher  # type: ignore[no-any-return]
        return dispatcher  # type: ignore[no-any-return]

    return compile_function
