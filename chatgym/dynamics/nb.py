"""numba's ``njit``, with a cache on disk that may be missing or read-only.

numba refuses to compile a function with ``cache=True`` if it finds no folder that it can write to, and without a home
it writes below a folder ``~`` in the working directory. Here such a function is compiled anyway: it is read from the
package's own ``__pycache__`` if it was compiled there before, else it is compiled in each process.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numba
from numba.core import caching

from chatgym.dynamics.content import bytecode_digest
from chatgym.storage.paths import has_home

_Known: Any = caching.CompileResultCacheImpl
_InTree: Any
_UserProvided: Any
_UserProvided, _InTree, *_Others = _Known._locator_classes


class _ByContent:
    """A folder also for functions whose source isn't here: the code is kept by content, not by the source's date."""

    def get_source_stamp(self) -> Any:
        """Return the digest of the source's file; None without one."""
        try:
            return super().get_source_stamp()  # type: ignore[misc]
        except OSError:
            return None

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        """Return the place of a function's code; None if it can't be written to."""
        found: Any = cls(py_func, py_file)  # type: ignore[call-arg]
        try:
            found.ensure_cache_path()
        except OSError:
            return None
        return found


class _Chosen(_ByContent, _UserProvided):
    """The folder in NUMBA_CACHE_DIR."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        """Return the place of a function's code; None if NUMBA_CACHE_DIR isn't set, or can't be written to."""
        return super().from_function(py_func, py_file) if numba.config.CACHE_DIR else None


class _AsInstalled(_ByContent, _InTree):
    """The package's ``__pycache__``, whether or not it can be written to."""

    def ensure_cache_path(self) -> None:
        """Accept the folder."""


class _Places(_Known):
    """Finds the folder of a function's compiled code: numba's own choice, or the package's folder as it is."""

    # Of numba's locators NUMBA_CACHE_DIR and the package's folder, if it can be written to, need no home.
    _locator_classes = (_Chosen, _InTree, *(_Others if has_home() else ()), _AsInstalled)


class CodeCache(caching.FunctionCache):
    """numba's cache of one function's compiled code; what it can't read is compiled, what it can't write is left.

    The code is kept by content: by a digest of the function and of all that it calls, closes over and reads. numba
    itself doesn't notice a change in another file or of a value, and would read what another process compiled.
    """

    _impl_class = _Places

    def __init__(self, function: Callable[..., Any], content: Callable[[], str], digest: str) -> None:
        """Make the cache of a Python function; `content` returns its digest, which was `digest` now."""
        super().__init__(function)
        self._content, self._digest = content, digest

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for a signature; None if it isn't stored, or can't be read."""
        try:
            return super().load_overload(sig, target_context)
        except (OSError, ImportError):  # the same function may have stood in a module that isn't here
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the compiled function for a signature, if that is possible."""
        if self._content() != self._digest:
            return  # something changed while it was compiled, so nobody knows what was
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(error.strerror)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return sig, codegen.magic_tuple(), self._digest


class LoopCache(CodeCache):
    """The cache of a scenario's loops, which says that they are compiled."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled loop for a signature, or None."""
        found = super().load_overload(sig, target_context)
        if found is None and self._py_func.__name__ == "start" and sys.stderr and sys.stderr.isatty():
            print("Compiling a scenario; once, it takes about ten seconds ...", file=sys.stderr)
        return found


@functools.cache
def _warn_once(reason: str | None) -> None:
    """Warn that compiled code isn't kept."""
    warnings.warn(
        f"compiled code can't be kept ({reason}), so each process compiles it again, about ten seconds a scenario; set "
        "NUMBA_CACHE_DIR to a folder that can be written to",
        stacklevel=2,
    )


def keep_by_content(compiled: Any) -> None:
    """Give a function with numba's own cache (``cache=True``), which may hold outdated code, a `CodeCache`."""
    if type(compiled._cache) is caching.FunctionCache:
        compiled._cache = _cache_of(compiled.py_func)


def forget(compiled: Any) -> None:
    """Have a function compiled anew at its next use, unless its signature is fixed."""
    if compiled._can_compile:
        compiled._reset_overloads()


def _cache_of(function: Callable[..., Any]) -> CodeCache:
    """Return the cache of a Python function by its own content."""
    content = functools.partial(bytecode_digest, function)
    return CodeCache(function, content, content())


def njit(signature: Any = None, *, cache: bool = False) -> Any:
    """Compile a function, as ``numba.njit`` does.

    Args:
        signature: The types of arguments and result, to compile at once; or, of a bare decorator, the function.
        cache: Whether to keep the compiled code on disk, where that is possible.
    """
    if callable(signature):
        return numba.njit(signature)

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = numba.njit(function)
        if cache:
            compiled._cache = _cache_of(function)
        if signature is not None:
            compiled.compile(signature)
            compiled.disable_compile()
        return compiled

    return decorate
