"""A reward of one's own: a function of arrays that replaces the weighted sum of a scenario's reward terms.

``reward=`` of the environments takes ``reward(step) -> float64[N]``, where `RewardStep` holds N turns as arrays. The
value becomes the reward term ``custom`` with weight 1, and the other terms have weight 0, so ``info["reward_terms"]``
still adds up to the reward exactly. The function never sees the partner's hidden state.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.content import bytecode_digest, source_digest
from chatgym.errors import InvalidValue
from chatgym.scenarios import ABOUT, Scenario

CUSTOM = "custom"
"""Name of the function's term in ``info["reward_terms"]``."""


@dataclass(frozen=True, eq=False)
class RewardStep:
    """The N turns that were taken in one step, as read-only arrays that are yours to keep.

    N is 1 in the single environment, and at most B in the vector environment: rows that took no turn (they began a
    conversation, were inactive, or have not ended their turn of tokens) are left out, and their reward is 0.

    Attributes:
        rows: int64[N], the rows of the environment that took a turn, in ascending order.
        acts: int64[N], the agent's acts: indices into ``scenario.agent_acts``, or -2 (`UNCLEAR_ACT`) for words that
            NLU didn't understand.
        user_acts: int64[N], the partner's acts: indices into ``scenario.user_acts``; the number after the last one is
            the partner's question what was meant.
        belief_before: records[N] of dtype ``scenario.belief``: the agent's belief when it acted.
        belief: records[N], its belief after the partner's answer.
        terms: float64[N, T], the unweighted reward terms, in the order of `term_names`.
        term_names: The T names.
        rewards: float64[N], what the environment pays without a function: the weighted sum of the terms, by the
            scenario's weights.
        outcomes: int64[N], indices into ``scenario.outcomes``; 0 while the conversation goes on.
        terminations, truncations: bool[N], whether the conversation ended by this turn, and how.
        turns: int64[N], the number of this turn in its conversation, from 1.
        scenario: The scenario, for the names of acts and outcomes.
    """

    rows: npt.NDArray[np.int64]
    acts: npt.NDArray[np.int64]
    user_acts: npt.NDArray[np.int64]
    belief_before: npt.NDArray[Any]
    belief: npt.NDArray[Any]
    terms: npt.NDArray[np.float64]
    term_names: tuple[str, ...]
    rewards: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.int64]
    terminations: npt.NDArray[np.bool_]
    truncations: npt.NDArray[np.bool_]
    turns: npt.NDArray[np.int64]
    scenario: Scenario = field(repr=False)

    def term(self, name: str) -> npt.NDArray[np.float64]:
        """Return a term by its name, float64[N].

        Raises:
            ValueError: There is no such term.
        """
        column: npt.NDArray[np.float64] = self.terms[:, self.term_names.index(name)]
        return column

    def acted(self, *names: str) -> npt.NDArray[np.bool_]:
        """Return where the agent took one of the named acts, bool[N].

        Raises:
            ValueError: The scenario has no such act.
        """
        return _among(self.acts, [self.scenario.agent_acts.index(name) for name in names])

    def ended(self, *names: str) -> npt.NDArray[np.bool_]:
        """Return where the conversation ended with one of the named outcomes, bool[N].

        Raises:
            ValueError: The scenario has no such outcome.
        """
        return _among(self.outcomes, [self.scenario.outcomes.index(name) for name in names])


Function: TypeAlias = Callable[[RewardStep], npt.NDArray[np.float64]]


class RewardFunction:
    """A user's function, with its name, its checks and its identity.

    Attributes:
        name: ``"module:function"``.
    """

    def __init__(self, given: str | Function) -> None:
        """Take a function, or import ``"module:function"``.

        Raises:
            InvalidValue: It is neither, or can't be imported.
        """
        self._function = _imported(given) if isinstance(given, str) else given
        if not callable(self._function):
            raise InvalidValue(
                f"reward is a function of a chatgym.rewards.RewardStep, or its name 'module:function', not {given!r}"
            )
        self.name = given if isinstance(given, str) else name_of(given)

    def __call__(self, step: RewardStep) -> npt.NDArray[np.float64]:
        """Return the rewards of N turns, float64[N].

        Raises:
            InvalidValue: The function returned something else.
        """
        found = self._function(step)
        shape = (len(step.rows),)
        if not isinstance(found, np.ndarray) or found.dtype != np.float64 or found.shape != shape:
            kind = f"{found.dtype}{list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
            raise InvalidValue(
                f"the reward function {self.name} returned {kind}, not an array float64{list(shape)}: one number for "
                "each turn (in RewardStep.rows); arrays of other numbers become such by .astype(np.float64)"
            )
        if not np.isfinite(found).all():
            first = int(np.flatnonzero(~np.isfinite(found))[0])
            act = step.acts[first]
            raise InvalidValue(
                f"the reward function {self.name} returned {found[first]} in row {step.rows[first]}, turn "
                f"{step.turns[first]}, act {'unclear' if act < 0 else step.scenario.agent_acts[act]!r}; rewards are "
                "finite"
            )
        return found

    def identity(self) -> dict[str, Any]:
        """Return the function's name, and the SHA-256 of its content: code, and what it calls, closes over and reads.

        A function that can be imported by its name counts as its syntax tree, the same under every Python; others, such
        as lambdas, have no source in another process and count as this Python's bytecode. A callable object with an
        attribute ``identity`` (a JSON value) is known by that instead.

        Raises:
            InvalidValue: It reads something that has no content, such as an open file.
        """
        own = getattr(self._function, "identity", None)
        if own is not None:
            return dict(own) if isinstance(own, Mapping) else {"name": self.name, "identity": own}
        try:
            digest = bytecode_digest if importable_name(self._function) is None else source_digest
            return {"name": self.name, "sha256": digest(self._function)}
        except InvalidValue as error:
            raise InvalidValue(
                f"the reward function {self.name} has no identity: {error}; or give it an attribute `identity`, a JSON "
                "value that you change whenever the function changes"
            ) from error


def name_of(function: Any) -> str:
    """Return ``"module:function"`` of a function, or that of the class of another callable object."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def importable_name(function: Any) -> str | None:
    """Return ``"module:function"`` if that is found there by `RewardFunction`, otherwise None."""
    name = name_of(function)
    try:
        return name if _imported(name) is function else None
    except InvalidValue:
        return None


def make_step(
    scenario: Scenario,
    rows: npt.NDArray[np.bool_] | None,
    names: tuple[str, ...],
    **arrays: npt.NDArray[Any],
) -> RewardStep:
    """Make the step of the turns that were taken in `rows`, bool[B] (None: all).

    `arrays` are those of `RewardStep` with a leading axis B instead of N, but for ``rows``; acts may be about a slot.
    """
    size = len(arrays["acts"])
    taken = np.arange(size) if rows is None else np.flatnonzero(rows)
    chosen = {name: copy_of(array, None if rows is None else taken) for name, array in arrays.items()}
    acts = chosen["acts"]
    chosen["acts"] = np.where(acts < 0, acts, acts % ABOUT)
    chosen["user_acts"] = chosen["user_acts"].astype(np.int64)
    for array in (taken, *chosen.values()):
        array.flags.writeable = False
    return RewardStep(taken, term_names=names, scenario=scenario, **chosen)


def copy_of(array: npt.NDArray[Any], rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[Any]:
    """Copy an array with a leading axis B, or its `rows`, int64[N]; records as bytes, for numpy copies each field."""
    plain = array.view(f"V{array.dtype.itemsize}") if array.dtype.names and array.flags.c_contiguous else array
    found: npt.NDArray[Any] = (plain.copy() if rows is None else plain[rows]).view(array.dtype)
    return found


def _among(values: npt.NDArray[np.int64], numbers: list[int]) -> npt.NDArray[np.bool_]:
    """Return where `values`, int64[N], are one of a few numbers, bool[N]; `np.isin` takes longer than the turns."""
    found = np.zeros(values.shape, bool)
    for number in numbers:
        found |= values == number
    return found


def _imported(name: str) -> Any:
    """Return what ``"module:function"`` names.

    Raises:
        InvalidValue: It isn't there.
    """
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise InvalidValue(f"reward={name!r} names no function; write 'module:function', such as 'my_rewards:polite'")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidValue(
            f"the reward function {name!r} can't be imported ({error}); it is 'module:function', and the module is one "
            "that `import` finds"
        ) from error
    return found
