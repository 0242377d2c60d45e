"""Copies of a scenario's compiled functions: with checks of array bounds, or as plain Python.

A copy calls copies of all that the original calls, so none of it runs unchecked. The originals stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numba as nb
import numpy as np
from numba.core.dispatcher import Dispatcher

from chatgym.dynamics import rng
from chatgym.dynamics.room import ChatRoom, Kernels, kernels
from chatgym.scenarios import Scenario

COMPILED = ("start", "respond", "index", "embed", "mask", "expert", "note", "hear", "misled")
"""The fields of a scenario that are compiled functions."""
DRAWS = (rng.bits, rng.draw, rng.randint, rng.public_seed)


class Copies:
    """Copies, in plain Python, of compiled functions and of all that they call.

    Attributes:
        files: The files in which the originals stand.
    """

    def __init__(self) -> None:
        """Begin without copies."""
        self.files: set[str] = set()
        self._done: dict[int, Any] = {id(draw): self.draws(draw) for draw in DRAWS}

    def of_scenario(self, scenario: Scenario) -> Scenario:
        """Return a scenario with copies of its functions."""
        copies = {name: self.copy(getattr(scenario, name), name) for name in COMPILED}
        return dataclasses.replace(scenario, **copies)

    def copy(self, thing: Any, name: str) -> Any:
        """Return the copy of a compiled function that is called `name`, or of a tuple of such; others as they are."""
        if isinstance(thing, tuple) and any(isinstance(each, Dispatcher) for each in thing):
            return tuple(self.copy(each, name) for each in thing)
        if not isinstance(thing, Dispatcher):
            return thing
        if id(thing) not in self._done:
            function, code = thing.py_func, thing.py_func.__code__
            self.files.add(code.co_filename)
            scope, cells = dict(function.__globals__), [CellType() for _ in code.co_freevars]
            copy = FunctionType(code, scope, function.__name__, function.__defaults__, tuple(cells))
            copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
            self._done[id(thing)] = self.made(copy, thing)  # before what it calls: it may call itself
            for free, cell, original in zip(code.co_freevars, cells, function.__closure__ or (), strict=True):
                cell.cell_contents = self.copy(original.cell_contents, free)
            names = set(_names(code))
            scope.update({each: self._within(scope[each], each, names, ()) for each in names & scope.keys()})
        return self._done[id(thing)]

    def made(self, copy: FunctionType, original: Any) -> Any:
        """Return what is called instead of a compiled function, from a copy of its Python function."""
        return copy

    def draws(self, original: Any) -> Any:
        """Return what is called instead of one of `DRAWS`: itself, for it has no arrays."""
        return original

    def _within(self, thing: Any, name: str, names: set[str], above: tuple[ModuleType, ...]) -> Any:
        """Return the copy of a thing; of a module, one with copies of what is read from it, which is in `names`."""
        if not isinstance(thing, ModuleType) or thing in above:
            return self.copy(thing, name)
        parts = {each: vars(thing)[each] for each in names & vars(thing).keys()}
        copies = {each: self._within(part, each, names, (*above, thing)) for each, part in parts.items()}
        if all(copies[each] is part for each, part in parts.items()):
            return thing
        module = ModuleType(thing.__name__)
        vars(module).update({**vars(thing), **copies})
        return module


class CheckedCopies(Copies):
    """Copies that are compiled with checks of array bounds: they raise IndexError where others overwrite memory."""

    def __init__(self) -> None:
        """Begin without copies."""
        super().__init__()
        self._signed: list[tuple[Any, Any]] = []

    def of_scenario(self, scenario: Scenario) -> Scenario:
        """Return a scenario with copies of its functions."""
        copied = super().of_scenario(scenario)
        for copy, original in self._signed:
            for signature in original.nopython_signatures:
                copy.compile(signature)
            copy.disable_compile()
        return copied

    def made(self, copy: FunctionType, original: Any) -> Any:
        """Return a function that is compiled as the original is, with checks."""
        checked = nb.jit(**{**original.targetoptions, "boundscheck": True}, locals=original.locals)(copy)
        if not original._can_compile:  # its types are stated
            self._signed.append((checked, original))
        return checked


def plain_room(plain: Scenario, room: ChatRoom) -> ChatRoom:
    """Return a room in the state of another one of the same scenario, whose functions `plain` has as plain Python."""
    twin = ChatRoom(plain, room.size, error_rate=room.error_rate, max_turns=room.max_turns)
    loops = vars(kernels(plain))
    twin._kernels = Kernels(**{name: loop.py_func for name, loop in loops.items()})
    twin.load(room.dump())
    twin.hidden, twin.belief, twin.said = map(plain_records, (twin.hidden, twin.belief, twin.said))
    return twin


def plain_records(records: Any) -> Any:
    """Return a view of records[...] from which numbers are read as by compiled code, see `_Record`."""
    return records.view(np.dtype((_Record, records.dtype)))


class _Record(np.record):  # type: ignore[misc]
    """A record for plain Python whose numbers are as in compiled code: read wide, and cut off where they are written.

    numpy would calculate in 8 bits with int8, and refuse to write 300 there.
    """

    def __getattribute__(self, name: str) -> Any:
        """Return a field."""
        return _wide(super().__getattribute__(name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Write a field."""
        super().__setattr__(name, _cut(value, self.dtype[name]))

    def __getitem__(self, name: Any) -> Any:
        """Return a field."""
        return _wide(super().__getitem__(name))

    def __setitem__(self, name: Any, value: Any) -> None:
        """Write a field."""
        super().__setitem__(name, _cut(value, self.dtype[name]))


class _Numbers(np.ndarray[Any, Any]):
    """An array in a `_Record`."""

    def __getitem__(self, place: Any) -> Any:
        """Return a number, or an array of some."""
        return _wide(super().__getitem__(place))

    def __setitem__(self, place: Any, value: Any) -> None:
        """Write numbers."""
        super().__setitem__(place, _cut(value, self.dtype))


def _wide(value: Any) -> Any:
    """Return a number as Python's, and an array as `_Numbers`; uint64, anything else too, stays as it is."""
    if isinstance(value, np.number | np.bool_) and value.dtype != np.uint64:
        return value.item()
    return value.view(_Numbers) if isinstance(value, np.ndarray) else value


def _cut(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return an integer as it is after it was written into a place of a `dtype`; anything else as it is."""
    return np.array(value).astype(dtype) if isinstance(value, int) and dtype.kind in "iu" else value


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes that code reads, and all code within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
