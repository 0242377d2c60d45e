"""Checks of the numbers that set a room up: sizes, rates, turns and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from chatgym.errors import InvalidValue, unknown


def is_integer(value: Any) -> bool:
    """Tell whether a value is an integer of Python or numpy, but not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite real number of Python or numpy, but not a bool."""
    return (is_integer(value) or isinstance(value, (float, np.floating))) and math.isfinite(value)


def check_size(size: Any) -> None:
    """Check a number of conversations.

    Raises:
        InvalidValue: It isn't an integer of at least 1.
    """
    if not is_integer(size) or size < 1:
        raise InvalidValue(f"num_envs is the number of conversations, an integer of at least 1, not {size!r}")


def check_rate(error_rate: Any) -> float:
    """Return a semantic error rate as a float.

    Raises:
        InvalidValue: It is not a number from 0 to 1.
    """
    if not is_number(error_rate) or not 0.0 <= error_rate <= 1.0:
        raise InvalidValue(f"error_rate is a probability from 0 to 1, not {error_rate!r}")
    return float(error_rate)


def check_turns(max_turns: Any) -> int:
    """Return a number of turns as an int.

    Raises:
        InvalidValue: It is not an integer from 1 to 10,000.
    """
    if not is_integer(max_turns) or not 1 <= max_turns <= 10_000:
        raise InvalidValue(f"max_turns is a number of turns, an integer from 1 to 10000, not {max_turns!r}")
    return int(max_turns)


def check_weights(reward_weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return reward weights as floats; None gives an empty dict.

    Raises:
        InvalidValue: They are no mapping, or a weight is not a finite number.
    """
    if reward_weights is not None and not isinstance(reward_weights, Mapping):
        raise InvalidValue(f"reward_weights maps names of reward terms to weights; it is {reward_weights!r}")
    for term, weight in (reward_weights or {}).items():
        if not is_number(weight):
            raise InvalidValue(f"the weight of the reward term {term!r} is a finite number, not {weight!r}")
    return {term: float(weight) for term, weight in (reward_weights or {}).items()}


def weigh(terms: Mapping[str, float], reward_weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weights of all `terms`, which come with their defaults, after `reward_weights` changed some.

    Raises:
        InvalidValue: A weight is not a finite number, or is that of a term that isn't there.
    """
    weights = dict(terms)
    for term, weight in check_weights(reward_weights).items():
        if term not in weights:
            raise unknown("reward term", term, weights, "Set reward_weights for these only.")
        weights[term] = weight
    return weights
