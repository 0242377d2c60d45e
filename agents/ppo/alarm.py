"""The reward-hacking alarm: the trained reward rises while a measure that isn't trained on falls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MEMORY = 0.9
"""Weight of the past in the running means that are compared."""
NOISE = 3.0
"""Standard errors of an iteration's mean by which the held-out measure has to fall."""


@dataclass
class Alarm:
    """Watches two running means.

    Attributes:
        trained, held_out: Running means, None before the first iteration.
        best: The highest running mean of the held-out measure so far.
        trained_at_best: The trained reward's then.
        ringing: Whether they have parted.
        state is JSON-able: see `to_json`.
    """

    trained: float | None = None
    held_out: float | None = None
    best: float = float("-inf")
    trained_at_best: float = 0.0
    ringing: bool = field(default=False)

    def note(self, trained: float, held_out: float, error: float) -> bool:
        """Take note of an iteration; returns whether the held-out measure's running mean is the best so far.

        Args:
            trained: Mean of what is trained on.
            held_out: Mean of what isn't.
            error: Standard error of the latter.
        """
        self.trained = trained if self.trained is None else MEMORY * self.trained + (1 - MEMORY) * trained
        self.held_out = held_out if self.held_out is None else MEMORY * self.held_out + (1 - MEMORY) * held_out
        if self.held_out > self.best:
            self.best, self.trained_at_best, self.ringing = self.held_out, self.trained, False
            return True
        # A running mean has that share of an iteration's error.
        noise = NOISE * error * ((1 - MEMORY) / (1 + MEMORY)) ** 0.5
        self.ringing = self.held_out < self.best - noise and self.trained > self.trained_at_best
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the state."""
        best = None if self.best == float("-inf") else self.best
        return {"trained": self.trained, "held_out": self.held_out, "best": best,
                "trained_at_best": self.trained_at_best, "ringing": self.ringing}  # fmt: skip

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Alarm:
        """Return an alarm in the state that `to_json` gave."""
        best = float("-inf") if state["best"] is None else state["best"]
        return cls(**{**state, "best": best})
