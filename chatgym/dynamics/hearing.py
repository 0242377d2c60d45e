"""What agents would believe if they heard everything right, and why their conversations failed.

The error channel changes what an agent hears. Beside each conversation `Hearing` keeps the *clear belief*: the belief
after the same acts and the same utterances without the channel, made by the scenario's own ``note`` and ``hear``. The
two beliefs differ by what was garbled and by nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics import nb
from chatgym.dynamics.content import bytecode_digest
from chatgym.dynamics.room import ChatRoom, kernels
from chatgym.dynamics.scenario import ABOUT, NO_ACT, Scenario

CAUSES = {
    "garbled": "the agent was misled by what it had misheard",
    "policy": "the agent ended it wrongly, and wasn't misled",
    "patience": "the partner left, or the turns ran out",
}
"""Why a conversation failed, to its description; see `Listener.causes`."""
GARBLED, POLICY, PATIENCE = CAUSES

Bools = npt.NDArray[np.bool_]
Acts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Kernels:
    """Compiled loops over a scenario's `note`, `hear` and `misled`; None where it has no `misled`."""

    follow: Callable[..., None]
    misled: Callable[..., None] | None


_compiled: dict[str, _Kernels] = {}


def _kernels(scenario: Scenario) -> _Kernels:
    """Return a scenario's loops: compiled at the first use, later read from the cache on disk."""
    kernels(scenario)  # has functions compiled anew that read something else by now
    parts = scenario.note, scenario.hear, scenario.misled
    content = functools.partial(bytecode_digest, _loops, parts)
    digest = content()
    if digest not in _compiled:
        loops = _loops(*parts)
        for loop in loops.values():
            loop._cache = nb.CodeCache(loop.py_func, content, digest)
        _compiled[digest] = _Kernels(loops["follow"], loops.get("misled"))
    return _compiled[digest]


def _loops(note: Any, hear: Any, misled: Any) -> dict[str, Any]:
    """Compile the loops over a scenario's functions; `misled` may be None."""

    @nb.njit
    def follow(rows, acts, turns, said, belief):  # type: ignore[no-untyped-def]
        """Note acts, int64[B], and hear utterances in `rows`, bool[B]. Turns: int64[B]; said, belief: records[B]."""
        for i in range(rows.shape[0]):
            if rows[i]:
                note(belief[i], acts[i] % ABOUT if acts[i] >= 0 else acts[i], turns[i])
                hear(belief[i], said[i])

    if misled is None:
        return {"follow": follow}

    @nb.njit
    def judge(acts, belief, clear, hidden, astray, out):  # type: ignore[no-untyped-def]
        """Fill `out`, bool[B], from acts and astray, int64[B], and the records[B] belief, clear and hidden."""
        for i in range(out.shape[0]):
            out[i] = misled(acts[i], belief[i], clear[i], hidden[i], astray[i])

    return {"follow": follow, "misled": judge}


def opening(room: ChatRoom) -> npt.NDArray[Any]:
    """Return the beliefs with which a room's conversations begin if the first utterance is heard right, records[B]."""
    return room.openings(error_rate=0.0)


def facts(scenario: Scenario) -> tuple[str, ...]:
    """Return the fields that hold what was heard: those of `said` that `belief` has too, acts and tone excluded."""
    belief: Mapping[str, Any] = scenario.belief.fields or {}
    said: Mapping[str, Any] = scenario.said.fields or {}
    return tuple(
        name
        for name in said
        if name not in ("act", "tone", "about") and name in belief and belief[name][0] == said[name][0]
    )


def differ(scenario: Scenario, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Bools:
    """Return in which rows two beliefs, records[B], hold different `facts`, bool[B]."""
    found = np.zeros(len(one), bool)
    for name in facts(scenario):
        apart = one[name] != other[name]
        found |= apart if apart.ndim == 1 else apart.any(axis=tuple(range(1, apart.ndim)))
    return found


def led_astray(room: ChatRoom, acts: Acts, belief: npt.NDArray[Any], clear: npt.NDArray[Any]) -> Bools:
    """Return which acts are the expert's for what was heard, and not for what was said, bool[B].

    Args:
        room: The room.
        acts: int64[B], as `ChatRoom.step` takes them.
        belief: records[B], what the agents believed when they took them.
        clear: records[B], the clear beliefs then.
    """
    heard = room.expert_acts(belief)
    return np.asarray((acts % ABOUT == heard) & (heard != room.expert_acts(clear)) & (acts >= 0))


class Listener:
    """Compiled functions that follow conversations of a scenario without the error channel, and judge their ends."""

    def __init__(self, scenario: Scenario) -> None:
        """Compile them, or read them from the cache on disk."""
        self._scenario, self._kernels = scenario, _kernels(scenario)

    def follow(self, belief: npt.NDArray[Any], acts: Acts, turns: Acts, said: npt.NDArray[Any], rows: Bools) -> None:
        """Update beliefs by the agents' acts and by utterances that are heard right.

        Args:
            belief: records[B], changed in place.
            acts: int64[B], as `ChatRoom.step` takes them.
            turns: int64[B], the numbers of the agents' turns.
            said: records[B], the partners' utterances.
            rows: bool[B].
        """
        self._kernels.follow(rows, acts, turns, said, belief)

    def causes(
        self, outcomes: npt.NDArray[np.int64], acts: Acts, belief: npt.NDArray[Any], clear: npt.NDArray[Any],
        hidden: npt.NDArray[Any], astray: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.object_]:  # fmt: skip
        """Return why each conversation failed, str[B]: one of `CAUSES`; empty where it succeeded or goes on.

        - ``patience``: the partner left (an outcome in ``scenario.leaving``), or the turns ran out.
        - ``garbled``: the agent ended it, misled by what it had misheard: ``scenario.misled`` says so, or, where a
          scenario declares none, the agent's belief differed in a fact from the clear belief.
        - ``policy``: the agent ended it, and not because of what it had misheard.

        Args:
            outcomes: int64[B], index into ``scenario.outcomes``.
            acts: int64[B], the last acts.
            belief: records[B], what the agents believed when they took them.
            clear: records[B], the clear beliefs then.
            hidden: records[B], the partners at the end.
            astray: int64[B], how many acts were led astray, see `led_astray`.
        """
        scenario, judge = self._scenario, self._kernels.misled
        misled = np.zeros(len(acts), bool)
        if judge is None:
            misled = differ(scenario, belief, clear)
        else:
            judge(acts, belief, clear, hidden, astray, misled)
        out_of_patience = [scenario.outcomes.index(name) for name in (*scenario.leaving, scenario.outcomes[-1])]
        causes = np.where(np.isin(outcomes, out_of_patience), PATIENCE, np.where(misled, GARBLED, POLICY))
        causes[np.isin(outcomes, (0, scenario.outcomes.index(scenario.success)))] = ""
        return causes.astype(object)


class Hearing:
    """The clear beliefs beside a room's B conversations.

    Attributes:
        clear: records[B], what the agents would believe had they heard everything right.
        acts: int64[B], the last act in each conversation that has ended.
        believed, believed_clear: records[B], the belief and the clear belief when it was taken.
        astray: int64[B], how many acts were led astray so far, see `led_astray`.
    """

    def __init__(self, room: ChatRoom) -> None:
        """Begin, right after the room's conversations have begun."""
        self._room, self._exact, self._listener = room, room.error_rate == 0.0, Listener(room.scenario)
        self.clear = room.belief if self._exact else opening(room)
        self.acts = np.full(room.size, NO_ACT)
        self.believed, self.believed_clear = room.belief.copy(), room.belief.copy()
        self.astray = np.zeros(room.size, np.int64)
        self._before = room.belief.copy()

    def step(self, acts: Acts, rows: Bools) -> None:
        """Follow a step of the room in which the agents in `rows`, bool[B], took `acts`, int64[B]."""
        room = self._room
        over = rows & (room.outcomes > 0)
        if over.any():
            self.acts[over] = acts[over]
            self.believed[over] = self._before[over]
            self.believed_clear[over] = (self._before if self._exact else self.clear)[over]
        if not self._exact:
            self.astray += rows & led_astray(room, acts, self._before, self.clear)
            self._listener.follow(self.clear, acts, room.turns, room.said, rows & ~over)
        self._before = room.belief.copy()

    def causes(self) -> npt.NDArray[np.object_]:
        """Return why each conversation failed, str[B], see `Listener.causes`; empty while it goes on."""
        room = self._room
        return self._listener.causes(
            room.outcomes, self.acts, self.believed, self.believed_clear, room.hidden, self.astray
        )
