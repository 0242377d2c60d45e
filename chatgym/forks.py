"""Models in forked processes, such as those of ``gym.make_vec(..., vectorization_mode="async")``.

A forked process has none of its parent's threads. OpenMP doesn't notice: where torch has computed on several threads in
the parent, the child waits for them forever. So torch computes on one thread in such a child, if it computes for a
model of ours. This module is imported with the package, before any fork, and imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

loading = threading.RLock()
"""Held while a model is loaded, which changes global state of torch; a forked child has a lock of its own."""

_loaded = _inherited = False


def opening() -> None:
    """Call before a model is loaded; torch computes on one thread from then on, if a forked process needs that."""
    global _loaded
    _loaded = True
    _compute_alone()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute by one thread in the block: several threads sum in another order, and change the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        if not (_inherited and _loaded):  # since the block opened a model, perhaps
            torch.set_num_threads(before)


def _compute_alone() -> None:
    """Let torch compute on one thread, where it was inherited and a model is loaded, by the parent or here."""
    if _inherited and _loaded:
        sys.modules["torch"].set_num_threads(1)


def _forked() -> None:
    """Note, in a forked child, that torch was inherited."""
    global loading, _inherited
    loading = threading.RLock()
    _inherited = "torch" in sys.modules
    _compute_alone()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
