"""Check that a scenario's draws have purpose numbers of their own: the part of `check_scenario` about random draws.

Draws are recorded where the scenario's functions run in plain Python, which takes them a thousand times longer.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chatgym.dynamics import rng
from chatgym.scenarios import Scenario
from chatgym.testing.copies import Copies, plain_room
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import mixed_policy, room_of

ROWS = 40
TURNS = 20
ERROR_RATE = 0.5
"""So high that values are misheard, and heard right, in few conversations."""


class Draw(NamedTuple):
    """Where a draw is made, and for what.

    Attributes:
        source: The constant that its purpose was made from; without one, the place.
        purpose: The expression, such as ``D_ERROR + 2``.
        place: File and line.
    """

    source: Any
    purpose: str
    place: str


def check_draws(findings: Findings, scenario: Scenario) -> None:
    """Check that in a turn different draws have different purposes, and that all are below `rng.WORDING`."""
    copies = _Recording()
    plain = copies.of_scenario(scenario)
    room, policy = room_of(scenario, ROWS, error_rate=ERROR_RATE), mixed_policy(scenario, 12)
    room.begin()
    twin = plain_room(plain, room)
    with _recording():
        twin.begin(keys=room.keys)
    for _ in range(TURNS):
        acts, going = policy(room), room.outcomes == 0
        twin.load(room.dump())
        with _recording():
            twin.step(acts, going)
        room.step(acts, going)
    outside = {
        f"{one.purpose} = {number} ({one.place})"
        for (_, _, number), draws in copies.draws_at.items() if not 0 <= number < rng.WORDING
        for one in draws.values()
    }  # fmt: skip
    findings.expect(
        not outside,
        f"draws have purposes below 0 or from {rng.WORDING} on: {_some(outside)}. Number them from 0 to "
        f"{rng.WORDING - 1}: higher ones choose wordings.",
    )
    shared = {
        f"{number} is {one.purpose} ({one.place}) and {other.purpose} ({other.place})"
        for (_, _, number), draws in copies.draws_at.items()
        for one, other in itertools.combinations(sorted(draws.values(), key=str), 2)
    }
    findings.expect(
        not shared,
        f"different draws of a turn have the same purpose, so they are the same number: {_some(shared)}. Give every "
        "draw a purpose of its own, and room for what is added to it.",
    )


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    """Let plain Python run as compiled code does; what it can't run isn't recorded."""
    with contextlib.suppress(Exception), np.errstate(all="ignore"):
        yield


def _some(texts: set[str]) -> str:
    """Return the first three texts."""
    return "; ".join(sorted(texts)[:3])


class _Purpose(int):
    """A constant of the scenario, which remembers its name, also if a number is added to it."""

    name: str
    constant: int

    @classmethod
    def of(cls, number: int, name: str, constant: int) -> _Purpose:
        """Make `number` from the constant of a name."""
        purpose = cls(number)
        purpose.name, purpose.constant = name, constant
        return purpose

    def __add__(self, other: Any) -> Any:
        """Return a purpose that is `other` further on."""
        total = int(self) + other
        return _Purpose.of(int(total), self.name, self.constant) if isinstance(total, (int, np.integer)) else total

    __radd__ = __add__


class _Recording(Copies):
    """Copies in plain Python that record their draws.

    Attributes:
        draws_at: (key, turn, purpose) to the draws there, by their sources.
    """

    def __init__(self) -> None:
        """Begin without copies and draws."""
        self.draws_at: defaultdict[tuple[int, int, int], dict[Any, Draw]] = defaultdict(dict)
        super().__init__()

    def copy(self, thing: Any, name: str) -> Any:
        """Return a copy; of an integer, one that remembers its name."""
        return _Purpose.of(thing, name, thing) if type(thing) is int else super().copy(thing, name)

    def draws(self, original: Any) -> Callable[..., Any]:
        """Return a function that records where it is called, and draws."""

        def recorded(key: Any, turn: Any, purpose: Any, *more: Any) -> Any:
            """Draw as `original` does."""
            self._record(int(key), int(turn), purpose)
            if original is rng.public_seed:
                self._record(int(key), int(turn), purpose + 1)
            return original(key, int(turn), int(purpose), *map(int, more))

        return recorded

    def _record(self, key: int, turn: int, purpose: Any) -> None:
        """Record a draw, made by the function two calls up."""
        frame = sys._getframe(2)
        path = Path(frame.f_code.co_filename)
        place = f"{path.parent.name}/{path.name}, line {frame.f_lineno}"
        source: Any = frame.f_code, frame.f_lasti
        text = str(int(purpose))
        if isinstance(purpose, _Purpose):
            source, more = purpose.name, int(purpose) - purpose.constant
            text = f"{purpose.name} + {more}" if more else purpose.name
        self.draws_at[key, turn, int(purpose)].setdefault(source, Draw(source, text, place))
