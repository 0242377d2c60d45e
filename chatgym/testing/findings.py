"""Collect the problems that a check finds, so that one run shows all of them."""

from __future__ import annotations

import contextlib
import random
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chatgym.errors import ChatGymError


class NonConforming(ChatGymError, AssertionError):
    """A plugin doesn't conform to its protocol.

    Attributes:
        problems: For each problem a sentence or two: what is wrong, and how to fix it.
    """

    def __init__(self, subject: str, contract: str, problems: list[str]) -> None:
        """Make the error from the problems of `subject`; the documentation of `contract` states the rules."""
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(f"{subject} doesn't keep to `{contract}`; {count}:{lines}")


class Findings:
    """The problems of one plugin.

    Attributes:
        problems: The problems found so far.
    """

    def __init__(self, subject: str, contract: str) -> None:
        """Begin without problems; see `NonConforming`."""
        self.subject, self.contract = subject, contract
        self.problems: list[str] = []

    def expect(self, holds: Any, problem: str) -> bool:
        """Add a problem unless `holds`; return `holds`."""
        if not holds:
            self.problems.append(problem)
        return bool(holds)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Add an exception in the block as a problem, "`what` raised ...", and leave the block."""
        try:
            yield
        except Exception as error:  # whatever a stranger's code raises
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {' '.join(lines[:3])[:300]}".rstrip(": ")
            where = f"{Path(place.filename).name}, line {place.lineno}"
            self.problems.append(f"{what} raised {said} ({where}). It should do it without an error.")

    @contextlib.contextmanager
    def global_randomness_kept(self, what: str, seed: int) -> Iterator[None]:
        """Seed the global random generators, add a problem if the block uses them, and restore them."""
        before = _states()
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the global state is what is watched)
        if torch := sys.modules.get("torch"):
            torch.default_generator.manual_seed(seed)
        seeded = _states()
        try:
            yield
        finally:
            now = _states()
            for name in sorted(name for name in seeded if now[name] != seeded[name]):
                self.problems.append(
                    f"{what} changes the global random state of {name}, so that it depends on whatever else draws "
                    f"from it, and that on it. Draw from `chatgym.dynamics.rng`, or from a generator of your own."
                )
            _restore(before)

    def conclude(self) -> None:
        """Raise the problems, if there are any.

        Raises:
            NonConforming: There is a problem.
        """
        __tracebackhide__ = True
        if self.problems:
            raise NonConforming(self.subject, self.contract, list(dict.fromkeys(self.problems)))


def _states() -> dict[str, Any]:
    """Return the states of the global random generators by name."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states: dict[str, Any] = {"random": random.getstate(), "np.random": (kind, np.asarray(keys).tobytes(), *rest)}
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


def _restore(states: dict[str, Any]) -> None:
    """Set the global random generators to states that `_states` returned."""
    random.setstate(states["random"])
    kind, keys, *rest = states["np.random"]
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))  # noqa: NPY002
    if "torch" in states:
        torch = sys.modules["torch"]
        torch.set_rng_state(torch.frombuffer(bytearray(states["torch"]), dtype=torch.uint8))
