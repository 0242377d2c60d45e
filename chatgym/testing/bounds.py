"""Check that a scenario's functions compile, and stay within their arrays.

Compiled code doesn't check array bounds: it would overwrite other memory, and crash now or later. So copies that check
them are run first. What goes wrong is then done again in plain Python, which tells the line.
"""

from __future__ import annotations

import difflib
import inspect
import linecache
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba.core.errors import NumbaError
from numba.core.ir import Loc

from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import ABOUT, Scenario
from chatgym.testing.copies import CheckedCopies, Copies, plain_records, plain_room
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import mixed_policy, room_of

ROWS = 1000
TURNS = 30
PERSONS = 20
"""Rows in which `note` and `hear` follow, as for a partner who is a person."""

_CALLS = {"discrete": "index", "embedding": "embed", "action_masks": "mask", "expert_acts": "expert"}
"""Methods of a room that read beliefs, with the functions that they run."""


class _Failed(Exception):
    """A function failed, and the problem has been added."""


def check_bounds(findings: Findings, scenario: Scenario) -> bool:
    """Play with functions that check array bounds; return whether the scenario can be run without these checks."""
    trial = _Trial(findings, scenario)
    try:
        for error_rate, most in ((0.1, 1), (0.0, 1), (1.0, 4)):
            trial.play(error_rate, most * scenario.max_turns)
    except _Failed:
        return False
    return True


class _Trial:
    """A scenario's copies: `checked`, and `plain` to find the line of an error."""

    def __init__(self, findings: Findings, scenario: Scenario) -> None:
        """Make the copies; they are compiled when they are called."""
        self._findings, self._scenario = findings, scenario
        self._checked = CheckedCopies().of_scenario(scenario)
        self._copies = Copies()
        self._plain = self._copies.of_scenario(scenario)

    def play(self, error_rate: float, max_turns: int) -> None:
        """Take `TURNS` turns in each of `ROWS` rows.

        Raises:
            _Failed: A function raised an error, which is a problem by now.
        """
        room = room_of(self._checked, ROWS, error_rate=error_rate, max_turns=max_turns)
        policy = mixed_policy(self._scenario, 11)
        self._call(room, "start", "begin")
        for turn in range(1, TURNS + 1):
            for method, function in _CALLS.items():
                self._call(room, function, method)
            acts, before, going = policy(room), room.belief[:PERSONS].copy(), room.outcomes == 0
            self._call(room, "respond", "step", acts, going)
            noted = np.where(acts >= 0, acts % ABOUT, acts)
            for i in np.flatnonzero(going[:PERSONS]):
                self._try("note", before[i : i + 1], int(noted[i]), turn)
                self._try("hear", before[i : i + 1], room.said[i : i + 1])
            if self._scenario.misled is not None:
                for i in np.flatnonzero(room.terminations):
                    belief, hidden = room.belief[i : i + 1], room.hidden[i : i + 1]
                    self._try("misled", int(acts[i]), belief, belief, hidden, 0)
            self._call(room, "start", "begin", room.terminations | room.truncations)

    def _call(self, room: ChatRoom, function: str, method: str, *arguments: Any) -> None:
        """Call a method of a room, which runs a function of the scenario."""
        before = room.dump()
        try:
            getattr(room, method)(*arguments)
        except Exception as error:  # whatever a stranger's code raises
            room.load(before)
            twin = plain_room(self._plain, room)
            raise self._failed(function, error, lambda: getattr(twin, method)(*arguments)) from error

    def _try(self, name: str, *arguments: Any) -> None:
        """Call a function of the scenario; records are given as arrays, records[1]."""

        def call(scenario: Scenario, view: Callable[[Any], Any]) -> None:
            """Call the function of a scenario, with views of the records."""
            given = [view(each)[0] if isinstance(each, np.ndarray) else each for each in arguments]
            getattr(scenario, name)(*given)

        try:
            call(self._checked, lambda records: records)
        except Exception as error:  # whatever a stranger's code raises
            raise self._failed(name, error, lambda: call(self._plain, plain_records)) from error

    def _failed(self, name: str, error: Exception, again: Callable[[], None]) -> _Failed:
        """Add the problem of a function that raised an error; `again` does the same in plain Python."""
        place = self._place(error)
        if place is None:
            try:
                with np.errstate(all="ignore"):  # as in compiled code
                    again()
            except Exception as plainly:  # whatever a stranger's code raises
                if isinstance(error, (type(plainly), NumbaError)) and (place := self._place(plainly)):
                    error = plainly
        code = inspect.unwrap(getattr(self._plain, name)).__code__
        file, line = place or (code.co_filename, code.co_firstlineno)
        source = linecache.getline(file, line).strip()
        self._findings.problems.append(
            f"`{name}` raised {_said(error)} ({Path(file).parent.name}/{Path(file).name}, line {line}: `{source}`). "
            f"{self._remedy(name, error)}"
        )
        return _Failed()

    def _place(self, error: Exception) -> tuple[str, int] | None:
        """Return file and line of the scenario where an error was raised, or what numba couldn't compile; or None."""
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            compiling = frame.f_locals.get("loc")
            if isinstance(compiling, Loc) and compiling.filename in self._copies.files:
                return compiling.filename, compiling.line
            if frame.f_code.co_filename in self._copies.files:
                return frame.f_code.co_filename, line
        told = re.findall(r" at (.+) \((\d+)\)$", str(error), re.M) if isinstance(error, NumbaError) else []
        return next(((file, int(line)) for file, line in told if file in self._copies.files), None)

    def _remedy(self, name: str, error: Exception) -> str:
        """Return how to mend it."""
        scenario = self._scenario
        if isinstance(error, IndexError):
            arrays = {
                "embed": f" `out` has `embedding_size` places, {scenario.embedding_size}.",
                "mask": f" `out` has a place for each of `agent_acts`, {len(scenario.agent_acts)}.",
                "respond": f" `terms` has a place for each of `measured` (or else `reward_terms`), "
                f"{len(scenario.measured)}: {', '.join(scenario.measured)}.",
            }
            return (
                "Compiled code would read or overwrite other memory there: declare the array larger, or keep the "
                f"index below its size.{arrays.get(name, '')}"
            )
        if isinstance(error, (KeyError, AttributeError)):
            fields = [each for record in ("hidden", "belief", "said") for each in getattr(scenario, record).names]
            near = difflib.get_close_matches(str(error).strip("'\"").split("'")[-1], fields, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            return f"The fields of records are declared in `hidden`, `belief` and `said`.{hint}"
        if isinstance(error, (NumbaError, TypeError, NameError)):
            return "numba has to find the type of every value: use numbers, arrays and records, and return one type."
        return "It should do it without an error."


def _said(error: Exception) -> str:
    """Return an error's type and message in one line, without what numba says in each of its messages."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = [line for line in lines if line and not line.startswith("Failed in nopython mode pipeline")]
    return f"{type(error).__name__}: {' '.join(telling[:3])[:300]}".rstrip(": ")
