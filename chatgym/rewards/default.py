"""The default reward model of a scenario, ``reward.npz`` beside its sentences."""

from __future__ import annotations

import functools

from chatgym.rewards.encoder import FILE, EncoderRewardModel
from chatgym.scenarios import Scenario


def exists(scenario: Scenario) -> bool:
    """Tell whether a scenario has one."""
    return (scenario.folder / FILE).is_file()


@functools.cache
def load(scenario: Scenario) -> EncoderRewardModel:
    """Return the process's default reward model of a scenario.

    Raises:
        Corrupted: When the file isn't what it was.
    """
    return EncoderRewardModel.load(scenario.folder / FILE)
