"""Copy the state of environments: snapshot, restore, deepcopy and pickle.

Each stateful part (the room, the action codec, the token history, the reward model's term, the language model that
plays the partner) has the same four verbs: ``begin``, ``step``, ``dump`` and ``load``. ``dump`` returns arrays with a
leading axis B, one row a conversation, which numpy saves without pickle; everything in this module follows from it.
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
    """What a part of an environment that has a state can do; see the parts for the arguments of `begin` and `step`."""

    def dump(self) -> Snapshot:
        """Copy the state of B conversations: name to array with a leading axis B."""

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `dump` returned."""


def encode_rows(rows: Iterable[Any]) -> npt.NDArray[np.str_]:
    """Return B values that JSON can hold as str[B], a JSON text a row."""
    return np.array([json.dumps(row) for row in rows], np.str_)


def decode_rows(rows: npt.NDArray[np.str_]) -> list[Any]:
    """Return the B values that `encode_rows` was given; tuples come back as lists."""
    return [json.loads(row) for row in rows.tolist()]


def dump_parts(parts: Mapping[str, Stateful | None]) -> Snapshot:
    """Dump parts by name; the arrays of the part ``name`` are called ``name.array``."""
    return {
        f"{name}.{key}": array for name, part in parts.items() if part is not None for key, array in part.dump().items()
    }


def load_parts(parts: Mapping[str, Stateful | None], snapshot: Mapping[str, npt.NDArray[Any]]) -> None:
    """Load parts from what `dump_parts` returned."""
    for name, part in parts.items():
        if part is not None:
            part.load({key[len(name) + 1 :]: array for key, array in snapshot.items() if key.startswith(f"{name}.")})


def check_snapshot(snapshot: Mapping[str, npt.NDArray[Any]], names: Iterable[str]) -> None:
    """Check that a snapshot has the arrays of these names.

    Raises:
        InvalidValue: One is missing: it is the snapshot of an environment with other arguments.
    """
    missing = sorted(set(names) - snapshot.keys())
    if missing:
        raise InvalidValue(
            f"the snapshot has no {', '.join(missing)}: restore it into an environment made with the same arguments"
        )


class CopiedByState:
    """Mixin: an environment is copied and pickled as its arguments and its state.

    A model given by name is opened again by the copy, when it is first needed; an `Engine`, a `RewardModel` or a
    `Scenario` object is shared by a deep copy, and pickled with it.
    """

    _arguments: dict[str, Any]

    def snapshot(self) -> Snapshot:
        """Copy the state of all conversations."""
        raise NotImplementedError

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        raise NotImplementedError

    def _carried(self) -> dict[str, Any]:
        """Return what a copy has besides the snapshot, such as generators and spaces."""
        raise NotImplementedError

    def _take(self, carried: dict[str, Any]) -> None:
        """Take what `_carried` of another environment returned."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self)(**self._arguments)
        memo[id(self)] = made
        carried = self._carried()
        memo[id(carried.get("_spec"))] = carried.get("_spec")  # it may hold a model, and never changes
        made._take(copy.deepcopy(carried, memo))
        made.restore(self.snapshot())
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {name: _packed(name, value) for name, value in self._arguments.items()}
        return _rebuilt, (type(self), arguments, self._carried(), self.snapshot())


class _Packed:
    """An object in pickled form, which was tried out before it went into another pickle."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def _packed(name: str, value: Any) -> Any:
    """Pickle an argument that isn't plain data.

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


_EXAMPLES = {"llm": "hf:ID-or-folder", "reward_model": "FOLDER", "scenario": "customer_service"}


def _rebuilt(
    kind: type[CopiedByState], arguments: dict[str, Any], carried: dict[str, Any], snapshot: Snapshot
) -> CopiedByState:
    opened = {n: pickle.loads(v.data) if isinstance(v, _Packed) else v for n, v in arguments.items()}
    made = kind(**opened)
    made._take(carried)
    made.restore(snapshot)
    return made
