"""Curricula: training whose conversations change while the agent learns, such as from no errors to many.

A curriculum is a function of the turns trained for so far that returns arguments of the environment. It is called
before the first turn and after each iteration, so a resumed run has the same conversations as an uninterrupted one:

```python
def curriculum(turns):
    return {"error_rate": 0.2 * min(turns / 500_000, 1.0)}
```

Evaluations don't follow it: they are in the run's task.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

from chatgym.agent import Interface
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue, unknown

Curriculum = Callable[[int], Mapping[str, Any]]
"""``curriculum(turns)``: `ARGUMENTS` by name, as they are after so many turns; those left out are the task's."""

ARGUMENTS = ("error_rate", "max_turns")


def record(curriculum: Curriculum, task: Task, total_steps: int, every: int) -> dict[str, Any]:
    """Return what a run records of a curriculum: the name of the function, and its values at each evaluation.

    Raises:
        InvalidValue: The function returns what isn't allowed.
    """
    most = task.make_envs(Interface(), 1, reward_model=None).room.max_turns
    values = [{"turns": turns, **lesson(curriculum, turns, most)} for turns in range(0, total_steps + 1, every)]
    return {"function": name_of(curriculum), "values": values}


def check_same(curriculum: Curriculum, recorded: Mapping[str, Any]) -> None:
    """Check that a curriculum gives the values that a run recorded.

    Raises:
        InvalidValue: It gives others.
    """
    for values in recorded["values"]:
        there = {name: value for name, value in values.items() if name != "turns"}
        if (here := lesson(curriculum, values["turns"])) != there:
            raise InvalidValue(
                f"the curriculum gives {here} after {values['turns']:,} turns, the run's {recorded['function']} gave "
                f"{there}; go on with that one, or train again"
            )


def name_of(curriculum: Curriculum) -> str:
    """Return the name of the function."""
    return str(getattr(curriculum, "__qualname__", type(curriculum).__name__))


def lesson(curriculum: Curriculum, turns: int, most: int | None = None) -> dict[str, Any]:
    """Return the arguments that a curriculum gives after some turns of training, as plain numbers.

    Args:
        curriculum: The curriculum.
        turns: Turns trained for so far.
        most: The task's `max_turns`, which no conversation exceeds; None: not checked.

    Raises:
        InvalidValue: It returns something else.
    """
    given = curriculum(turns)
    if not isinstance(given, Mapping):
        raise InvalidValue(f"a curriculum returns a dict of {' or '.join(ARGUMENTS)}, not {given!r}")
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in ARGUMENTS:
            raise unknown("argument of a curriculum", name, ARGUMENTS)
        rate = name == "error_rate"
        if isinstance(value, bool) or not (_is_rate(value) if rate else _is_count(value, most)):
            allowed = "a probability from 0 to 1" if rate else f"a whole number from 1 to the task's{_of(most)}"
            raise InvalidValue(f"the curriculum gives {name} {value!r} after {turns:,} turns; it is {allowed}")
        found[name] = float(value) if rate else int(value)
    return found


def _is_rate(value: Any) -> bool:
    return isinstance(value, numbers.Real) and 0.0 <= float(value) <= 1.0


def _is_count(value: Any, most: int | None) -> bool:
    return isinstance(value, numbers.Integral) and int(value) >= 1 and (most is None or int(value) <= most)


def _of(most: int | None) -> str:
    return "" if most is None else f", {most}"


class Lessons:
    """A curriculum applied to the environments of a training.

    Attributes:
        now: The arguments that apply.
    """

    def __init__(self, curriculum: Curriculum | None, turns: int) -> None:
        """Begin after `turns` of training; without a curriculum nothing changes."""
        self.curriculum = curriculum
        self._envs: list[tuple[ChatVectorEnv, Mapping[str, Any]]] = []
        self.now: dict[str, Any] = {} if curriculum is None else lesson(curriculum, turns)

    def apply_to(self, envs: ChatVectorEnv) -> ChatVectorEnv:
        """Apply the curriculum to environments that were made for the agent, and return them."""
        if self.curriculum is not None:
            self._envs.append((envs, {"error_rate": envs.room.error_rate, "max_turns": envs.room.max_turns}))
            self._set()
        return envs

    def advance(self, turns: int) -> None:
        """Go on to the lesson after `turns` of training."""
        if self.curriculum is None:
            return
        before, self.now = self.now, lesson(self.curriculum, turns)
        if self.now != before:
            self._set()

    def _set(self) -> None:
        """Set the arguments in all environments."""
        for envs, own in self._envs:
            values = {**own, **self.now}
            envs.error_rate = values["error_rate"]  # refused where nothing would be garbled
            envs.room.limit(values["max_turns"])
