"""Copy environments by their state: snapshot, restore, deepcopy and pickle.

Each stateful part (room, action codec, token history, reward model's term, language model that plays the partner) has
the same four verbs: ``begin``, ``step``, ``dump`` and ``load``. ``dump`` returns arrays with a leading axis B, which
numpy saves without pickle; everything in this module follows from it.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle
import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import Snapshot
from chatgym.engines import LazyEngine
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from typing_extensions import Self


class Stateful(Protocol):
    """A part of an environment that has a state; the parts explain the arguments of `begin` and `step`."""

    def dump(self) -> Snapshot:
        """Copy the state: name to array with a leading axis B."""

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore a state that `dump` returned: arrays with a leading axis B."""


def encode_rows(rows: Iterable[Any]) -> npt.NDArray[np.str_]:
    """Return B values as str[B], a JSON text for each."""
    return np.array([json.dumps(row) for row in rows], np.str_)


def decode_rows(rows: npt.NDArray[np.str_]) -> list[Any]:
    """Return the B values in str[B] that `encode_rows` made; tuples come back as lists."""
    return [json.loads(row) for row in rows.tolist()]


def dump_parts(parts: Mapping[str, Stateful | None]) -> Snapshot:
    """Return the parts' arrays, with a leading axis B; those of the part ``name`` are named ``name.array``."""
    return {
        f"{name}.{key}": array for name, part in parts.items() if part is not None for key, array in part.dump().items()
    }


def load_parts(parts: Mapping[str, Stateful | None], snapshot: Mapping[str, npt.NDArray[Any]]) -> None:
    """Restore the parts from arrays that `dump_parts` returned, each with a leading axis B."""
    for name, part in parts.items():
        if part is not None:
            part.load({key[len(name) + 1 :]: array for key, array in snapshot.items() if key.startswith(f"{name}.")})


def check_snapshot(snapshot: Mapping[str, npt.NDArray[Any]], names: Iterable[str]) -> None:
    """Check that a snapshot, arrays with a leading axis B, has the given names.

    Raises:
        InvalidValue: One is missing: the snapshot's environment had other arguments.
    """
    missing = sorted(set(names) - snapshot.keys())
    if missing:
        raise InvalidValue(
            f"the snapshot has no {', '.join(missing)}: restore it into an environment made with the same arguments"
        )


class CopiedByState:
    """Mixin: deepcopy and pickle an environment as its arguments and its state.

    A copy opens a model given by name again, at its first use. A deep copy shares an `Engine`, `RewardModel` or
    `Scenario` object; a pickle contains it.
    """

    _arguments: dict[str, Any]

    def snapshot(self) -> Snapshot:
        """Copy the state of all conversations: arrays with a leading axis B."""
        raise NotImplementedError

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, arrays with a leading axis B."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the arguments that may have been set since, as they are now."""
        raise NotImplementedError

    def _carried(self) -> dict[str, Any]:
        """Return what a copy needs besides arguments and snapshot: generators, spaces, wordings."""
        raise NotImplementedError

    def _take(self, carried: dict[str, Any]) -> None:
        """Set what `_carried` of another environment returned."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self)(**{**self._arguments, **self.settings()})
        memo[id(self)] = made
        carried = self._carried()
        memo[id(carried.get("_spec"))] = carried.get("_spec")  # it may hold a model, and never changes
        made._take(copy.deepcopy(carried, memo))
        made.restore(self.snapshot())
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {name: _packed(name, value) for name, value in {**self._arguments, **self.settings()}.items()}
        return _rebuilt, (type(self), arguments, self._carried(), self.snapshot())


class _Packed:
    """An argument in pickled form, so that one that can't be pickled is found before the environment is."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def _packed(name: str, value: Any) -> Any:
    """Return an argument, pickled unless it is plain data.

    Raises:
        InvalidValue: It can't be pickled.
    """
    if value is None or isinstance(value, (str, int, float, bool, Mapping, Sequence)):
        return value
    try:
        if isinstance(value, LazyEngine):
            raise TypeError("its model is opened in this process")
        try:
            return _Packed(pickle.dumps(value))
        except Exception:
            return _Packed(cloudpickle.dumps(value))
    except Exception as error:  # whatever a stranger's object raises
        raise InvalidValue(
            f"{name}={type(value).__name__} object can't be pickled ({error}); give it by name, such as "
            f"{name}={_EXAMPLES.get(name, 'NAME')!r}, so that each process opens its own"
        ) from error


_EXAMPLES = {
    "llm": "hf:ID-or-folder", "reward_model": "FOLDER", "reward": "module:function", "scenario": "customer_service",
}  # fmt: skip


def _rebuilt(
    kind: type[CopiedByState], arguments: dict[str, Any], carried: dict[str, Any], snapshot: Snapshot
) -> CopiedByState:
    """Make an environment from a pickle's arguments and snapshot, arrays with a leading axis B."""
    opened = {n: pickle.loads(v.data) if isinstance(v, _Packed) else v for n, v in arguments.items()}
    made = kind(**opened)
    made._take(carried)
    made.restore(snapshot)
    return made
