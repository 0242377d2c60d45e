"""The default reward model of a scenario, ``reward.npz`` beside its sentences."""

from __future__ import annotations

import functools

from chatgym.rewards.encoder import FILE, EncoderRewardModel
from chatgym.scenarios import Scenario


def exists(scenario: Scenario) -> bool:
    """Return whether a scenario has a default reward model."""
    return (scenario.folder / FILE).is_file()


@functools.cache
def load(scenario: Scenario) -> EncoderRewardModel:
    """Return a scenario's default reward model, loaded once a process.

    Raises:
        Corrupted: The file is damaged.
    """
    return EncoderRewardModel.load(scenario.folder / FILE)
