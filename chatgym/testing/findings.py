"""What a check found: sentences, collected so that one run shows all of them."""

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
    """A plugin doesn't do what its protocol says.

    Attributes:
        problems: A sentence or two for each problem: what is wrong, and what to do.
    """

    def __init__(self, subject: str, contract: str, problems: list[str]) -> None:
        """List the problems of `subject`, whose rules stand in the documentation of `contract`."""
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(f"{subject} doesn't keep to `{contract}`; {count}:{lines}")


class Findings:
    """Collects the problems of one plugin.

    Attributes:
        problems: So far.
    """

    def __init__(self, subject: str, contract: str) -> None:
        """Begin without problems; see `NonConforming`."""
        self.subject, self.contract = subject, contract
        self.problems: list[str] = []

    def expect(self, holds: Any, problem: str) -> bool:
        """Note a problem where something doesn't hold; returns whether it does."""
        if not holds:
            self.problems.append(problem)
        return bool(holds)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Note an exception as a problem: "`what` raised ..."; the rest of the block is left out."""
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
        """Seed the global generators, note it as a problem if they are used, and put them back as they were."""
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
        """Raise what was found.

        Raises:
            NonConforming: When there is a problem.
        """
        __tracebackhide__ = True
        if self.problems:
            raise NonConforming(self.subject, self.contract, list(dict.fromkeys(self.problems)))


def _states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states: dict[str, Any] = {"random": random.getstate(), "np.random": (kind, np.asarray(keys).tobytes(), *rest)}
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


def _restore(states: dict[str, Any]) -> None:
    random.setstate(states["random"])
    kind, keys, *rest = states["np.random"]
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))  # noqa: NPY002
    if "torch" in states:
        torch = sys.modules["torch"]
        torch.set_rng_state(torch.frombuffer(bytearray(states["torch"]), dtype=torch.uint8))
